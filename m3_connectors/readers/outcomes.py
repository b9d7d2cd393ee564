"""The results of a reader: documents and skipped records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from m3_connectors.documents import Document, check_documents
from m3_connectors.errors import InvalidInput
from m3_connectors.readers.fields import Fields


@dataclasses.dataclass(frozen=True)
class Found:
    """A document that can be stored.

    Attributes:
        line: Where its record begins, from 1: the number of its line, of its row (Parquet, Arrow) or of its page
            (PDF); None if the whole file is the document.
        document: The document.
    """

    line: int | None
    document: Document


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A record or file that was skipped.

    Attributes:
        line: Where the record begins, from 1: the number of its line, row or page; None if it is about the whole
            file.
        reason: Why it was skipped, in one line.
        is_column: Whether only a column was left out: all records were read.
    """

    line: int | None
    reason: str
    is_column: bool = False


Outcome = Found | Skipped


def outcome_of(record: Mapping[str, Any], fields: Fields, default_id: str, line: int) -> Outcome:
    """Convert a record to a document, or to the reason why it is skipped.

    Args:
        record: The values by field.
        fields: The fields of id and text.
        default_id: The id if the record has none.
        line: The line number where the record begins.
    """
    try:
        document = fields.document(record, default_id)
    except (InvalidInput, RecursionError, ValueError, OverflowError) as error:
        return Skipped(line, reason_of(error))
    return checked(line, document)


def checked(line: int | None, document: Document) -> Outcome:
    """Return a document if it can be stored, or the reason why it is skipped."""
    try:
        check_documents([document])
    except (InvalidInput, RecursionError, ValueError, OverflowError) as error:
        return Skipped(line, reason_of(error))
    return Found(line, document)


def reason_of(error: Exception) -> str:
    """Return the first line of an error's message, without the position in the checked list."""
    text = str(error) or type(error).__name__
    reason = text.splitlines()[0].removeprefix("documents[0]").removeprefix(".")
    return reason if len(reason) <= _LONGEST_REASON else reason[:_LONGEST_REASON] + "…"


_LONGEST_REASON = 1_000
"""The limit for a reason, because a message may contain a value of any length."""
