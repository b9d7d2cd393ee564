"""Read files and folders (JSON Lines, JSON, CSV, text, Markdown, HTML) as documents in constant memory.

A record that cannot be read becomes a dead letter with its file, line number and reason; the rest is read.
"""

from __future__ import annotations

from m3_connectors.readers.dead_letters import CUT_SUFFIX, CutLetter, DeadLetter, DeadLetterFiles, ReportFiles
from m3_connectors.readers.fields import Fields
from m3_connectors.readers.inputs import FORMATS, ReadOptions, is_records
from m3_connectors.readers.sources import check_sources, files_of, read_documents

__all__ = [
    "CUT_SUFFIX",
    "FORMATS",
    "CutLetter",
    "DeadLetter",
    "DeadLetterFiles",
    "Fields",
    "ReadOptions",
    "ReportFiles",
    "check_sources",
    "files_of",
    "is_records",
    "read_documents",
]
