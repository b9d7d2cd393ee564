"""What a reader is told about the files that it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from m3_connectors.readers.columns import Columns
from m3_connectors.readers.fields import Fields
from m3_connectors.readers.inputs import Input
from m3_connectors.readers.outcomes import Outcome


@dataclasses.dataclass(frozen=True)
class ReadSettings:
    """The settings of one call that reads files.

    Attributes:
        fields: The fields of text and id.
        codec: The Python codec of files without a byte order mark; None detects it.
        delimiter: The delimiter of CSV and TSV; None detects it.
        columns: The types of the columns of all CSV and TSV files.
        main_content: Whether only the main content of HTML is read.
    """

    fields: Fields = dataclasses.field(default_factory=Fields)
    codec: str | None = None
    delimiter: str | None = None
    columns: Columns = dataclasses.field(default_factory=Columns)
    main_content: bool = False


Reader = Callable[[Input, ReadSettings], Iterator[Outcome]]
"""Reads one file: yields a document or the reason why one is skipped, in order and one at a time.

An OSError or InvalidInput that it raises ends the file, and becomes its last dead letter; so does any other exception,
which is reported as a bug of the reader.
"""
