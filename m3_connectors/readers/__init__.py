"""Files and folders as documents: JSON Lines, CSV, text, Markdown and HTML, read in constant memory.

What cannot be read becomes a dead letter with its file, line number and reason; the rest is read.
"""

from __future__ import annotations

from m3_connectors.readers.dead_letters import CUT_SUFFIX, CutLetter, DeadLetter, DeadLetterFiles, ReportFiles
from m3_connectors.readers.fields import Fields
from m3_connectors.readers.sources import FORMATS, check_sources, is_records, read_documents

__all__ = [
    "CUT_SUFFIX",
    "FORMATS",
    "CutLetter",
    "DeadLetter",
    "DeadLetterFiles",
    "Fields",
    "ReportFiles",
    "check_sources",
    "is_records",
    "read_documents",
]
