"""Read files, folders, URLs and databases as documents, in constant memory.

A record that cannot be read becomes a dead letter with its file, line number and reason; the rest is read.
"""

from __future__ import annotations

from m3_connectors.readers.dead_letters import (
    CUT_SUFFIX,
    DROPPED_SUFFIX,
    SUFFIX,
    CutLetter,
    DeadLetter,
    DeadLetterFiles,
    DroppedLetter,
    ReportFiles,
)
from m3_connectors.readers.fields import Fields
from m3_connectors.readers.formats import FORMATS, ReadOptions, format_names, is_records
from m3_connectors.readers.inputs import Input, Source, origin_name
from m3_connectors.readers.limits import Limits
from m3_connectors.readers.mapping import read_mapping
from m3_connectors.readers.outcomes import Found, Outcome, Skipped, checked, outcome_of
from m3_connectors.readers.schemes import SCHEMES, Opener, is_database, whole
from m3_connectors.readers.settings import Reader, ReadSettings
from m3_connectors.readers.sources import check_sources, files_of, files_to_read, letter_of, read_documents
from m3_connectors.readers.urls import Url, source_of

__all__ = [
    "CUT_SUFFIX",
    "DROPPED_SUFFIX",
    "FORMATS",
    "SCHEMES",
    "SUFFIX",
    "CutLetter",
    "DeadLetter",
    "DeadLetterFiles",
    "DroppedLetter",
    "Fields",
    "Found",
    "Input",
    "Limits",
    "Opener",
    "Outcome",
    "ReadOptions",
    "ReadSettings",
    "Reader",
    "ReportFiles",
    "Skipped",
    "Source",
    "Url",
    "check_sources",
    "checked",
    "files_of",
    "files_to_read",
    "format_names",
    "is_database",
    "is_records",
    "letter_of",
    "origin_name",
    "outcome_of",
    "read_documents",
    "read_mapping",
    "source_of",
    "whole",
]
