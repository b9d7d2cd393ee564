"""Read JSON files (an array of records, one record, or JSON Lines) in constant memory."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from m3_connectors.json_lines import Decoder, NotARecord
from m3_connectors.readers.encodings import UNDECODABLE, written
from m3_connectors.readers.fields import Fields
from m3_connectors.readers.inputs import Input
from m3_connectors.readers.jsonl import json_lines
from m3_connectors.readers.lines import text_lines
from m3_connectors.readers.outcomes import Outcome, Skipped, outcome_of
from m3_connectors.readers.settings import ReadSettings

MAX_VALUE_CHARACTERS = 64 * 2**20
"""The limit of a record, because it is held in memory as a whole."""

_CHUNK_CHARACTERS = 2**16
_BLANK = re.compile(r"[ \t\n\r\ufeff]*")


def read_json(file: Input, settings: ReadSettings) -> Iterator[Outcome]:
    """Yield the documents of a JSON file."""
    with file.open_text(settings.codec) as text:
        yield from _records(text, file.name, settings.fields)


def _records(stream: TextIO, name: str, fields: Fields) -> Iterator[Outcome]:
    """Yield the documents of a JSON array, of consecutive JSON objects, or of JSON Lines.

    Records without an id get the ids ``name:1``, ``name:2`` and so on. After text that is not JSON, records
    cannot be separated, so the rest of the file is skipped and reported with the line where it begins.

    Args:
        stream: The text of the file; undecodable bytes match ``UNDECODABLE``.
        name: The prefix of the ids of records without an id.
        fields: The fields of text and id.
    """
    encoding = written(stream.encoding)
    first_line = stream.readline(_CHUNK_CHARACTERS)
    if _is_object(first_line):
        lines = itertools.chain([first_line], text_lines(stream))
        yield from json_lines(lines, name, fields, encoding)
        return
    values = _Values(first_line, stream)
    in_array = values.take("[")
    if not in_array and values.at_end():
        yield Skipped(None, "empty, which is not JSON: the file may be cut (no records are [])")
        return
    number = 0
    closed = not in_array
    while not values.at_end():
        if in_array and number == 0 and values.take("]"):
            closed = True
            break
        number += 1
        line = values.line
        try:
            record, undecodable = values.next_value()
        except _NotJson as error:
            yield Skipped(line, f"{error}: the file was read only up to here, record {number}")
            return
        if undecodable:
            yield Skipped(line, f"record {number} is not {encoding}")
        else:
            try:
                yield outcome_of(values.decoder.checked(record), fields, f"{name}:{number}", line)
            except NotARecord as error:
                yield Skipped(line, str(error))
        if in_array:
            closed = values.take("]")
            if closed:
                break
            if not values.at_end() and not values.take(","):
                yield Skipped(
                    values.line, "not JSON: no comma between two records; the file was read only up to here"
                )
                return
    if not closed:
        yield Skipped(
            values.line, f"the array is not closed: the file may be truncated after record {number}"
        )
    elif not values.at_end():
        yield Skipped(values.line, "the text after the end of the array was ignored")


def _is_object(line: str) -> bool:
    """Return whether a line is a complete JSON object, and not only the beginning of one."""
    try:
        return line.endswith(("\n", "\r", "}")) and isinstance(json.loads(line.removeprefix("\ufeff")), dict)
    except (ValueError, RecursionError):
        return False


class _NotJson(Exception):
    """The text is not JSON, so the records after it cannot be separated."""


class _Values:
    """Reads JSON values from a stream, of which a part is buffered."""

    def __init__(self, begun: str, stream: TextIO) -> None:
        self.decoder = Decoder()
        self.line = 1
        """The line number where the next token begins."""
        self._stream = stream
        self._held = begun
        self._at = 0
        self._ended = False

    def at_end(self) -> bool:
        """Return whether only whitespace is left."""
        self._skip_blanks()
        return self._at == len(self._held)

    def take(self, mark: str) -> bool:
        """Consume a character if it comes next, and return whether it did."""
        if self.at_end() or self._held[self._at] != mark:
            return False
        self._at += 1
        return True

    def next_value(self) -> tuple[Any, bool]:
        """Return the next value, and whether it contains undecodable bytes.

        Raises:
            _NotJson: The text is not a JSON value.
        """
        self._skip_blanks()
        while True:
            try:
                value, end = self.decoder.first(self._held, self._at)
                if self._ended or self._is_whole(value, end):
                    break
            except json.JSONDecodeError as error:
                if self._ended:
                    raise _NotJson(f"not JSON: {error.msg}") from None
                if len(self._held) - self._at > MAX_VALUE_CHARACTERS:
                    limit = f"{MAX_VALUE_CHARACTERS // 2**20} Mi characters"
                    raise _NotJson(f"not JSON, or a record of more than {limit}: {error.msg}") from None
            except (RecursionError, ValueError):
                raise _NotJson("nested too deeply, or a number is too long") from None
            self._read_more()
        text = self._held[self._at : end]
        self.line += text.count("\n")
        self._at = end
        return value, UNDECODABLE.search(text) is not None

    def _is_whole(self, value: Any, end: int) -> bool:
        """Return whether the value is complete, and not the beginning of a longer number."""
        if isinstance(value, dict | list | str):
            return True
        too_long = len(self._held) - self._at > MAX_VALUE_CHARACTERS
        return too_long or self._held[end : end + 1] in (*" \t\r\n,]",)

    def _skip_blanks(self) -> None:
        while True:
            blanks = _BLANK.match(self._held, self._at)
            assert blanks is not None
            self.line += blanks[0].count("\n")
            self._at = blanks.end()
            if self._at < len(self._held) or self._ended:
                return
            self._read_more()

    def _read_more(self) -> None:
        """Double the buffer, so that a long value is not decoded many times."""
        kept = self._held[self._at :]
        more = self._stream.read(max(_CHUNK_CHARACTERS, len(kept)))
        self._held, self._at, self._ended = kept + more, 0, not more
