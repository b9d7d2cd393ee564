"""Read files and folders of JSON Lines, CSV, Parquet, text, HTML, PDF and more as documents in constant memory.

A record that cannot be read becomes a dead letter with its file, line number and reason; the rest is read.
"""

from __future__ import annotations

from m3_connectors.readers.dead_letters import (
    CUT_SUFFIX,
    SUFFIX,
    CutLetter,
    DeadLetter,
    DeadLetterFiles,
    ReportFiles,
)
from m3_connectors.readers.fields import Fields
from m3_connectors.readers.formats import FORMATS, ReadOptions, format_names, is_records
from m3_connectors.readers.inputs import Input
from m3_connectors.readers.outcomes import Found, Outcome, Skipped, checked, outcome_of
from m3_connectors.readers.settings import Reader, ReadSettings
from m3_connectors.readers.sources import check_sources, files_of, files_to_read, read_documents

__all__ = [
    "CUT_SUFFIX",
    "FORMATS",
    "SUFFIX",
    "CutLetter",
    "DeadLetter",
    "DeadLetterFiles",
    "Fields",
    "Found",
    "Input",
    "Outcome",
    "ReadOptions",
    "ReadSettings",
    "Reader",
    "ReportFiles",
    "Skipped",
    "check_sources",
    "checked",
    "files_of",
    "files_to_read",
    "format_names",
    "is_records",
    "outcome_of",
    "read_documents",
]
