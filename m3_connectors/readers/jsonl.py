"""Read JSON Lines: one document per line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from m3_connectors.json_lines import Decoder, NotARecord
from m3_connectors.readers.encodings import UNDECODABLE, written
from m3_connectors.readers.fields import Fields
from m3_connectors.readers.inputs import Input
from m3_connectors.readers.lines import TOO_LONG, text_lines
from m3_connectors.readers.outcomes import Outcome, Skipped, outcome_of
from m3_connectors.readers.settings import ReadSettings


def read_json_lines(file: Input, settings: ReadSettings) -> Iterator[Outcome]:
    """Yield the documents of a file of JSON Lines."""
    # Only a line feed ends a line: a text may contain other line ends.
    with file.open_text(settings.codec, "\n") as text:
        yield from json_lines(text_lines(text), file.name, settings.fields, written(text.encoding))


def json_lines(lines: Iterable[str | None], name: str, fields: Fields, encoding: str) -> Iterator[Outcome]:
    """Yield the documents of JSON Lines.

    Args:
        lines: The lines; None stands for a line that is too long. Undecodable bytes match ``UNDECODABLE``.
        name: The prefix of the ids of records without an id: ``name:line``.
        fields: The fields of text and id.
        encoding: The encoding of the lines, for messages.
    """
    for line, record in json_objects(lines, encoding):
        if isinstance(record, str):
            yield Skipped(line, record)
        else:
            yield outcome_of(record, fields, f"{name}:{line}", line)


def json_objects(lines: Iterable[str | None], encoding: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the number of each line that is not blank, and its JSON object, or why it has none.

    Args:
        lines: As for ``json_lines``.
        encoding: The encoding of the lines, for messages.
    """
    decoder = Decoder()
    for line, text in enumerate(lines, 1):
        if text is None:
            yield line, TOO_LONG
        elif not text.removeprefix("\ufeff").strip():
            continue
        elif undecodable := UNDECODABLE.search(text):
            yield line, f"not {encoding} at character {undecodable.start() + 1} of the line"
        else:
            try:
                record = decoder.record(text)
            except NotARecord as error:
                yield line, str(error)
            else:
                yield line, record
