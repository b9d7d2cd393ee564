"""Read JSON Lines: one document per line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from m3_connectors.readers.encodings import UNDECODABLE
from m3_connectors.readers.fields import Fields
from m3_connectors.readers.lines import TOO_LONG
from m3_connectors.readers.outcomes import Outcome, Skipped, outcome_of


def read_jsonl(lines: Iterable[str | None], name: str, fields: Fields, encoding: str) -> Iterator[Outcome]:
    """Yield the documents of JSON Lines.

    Args:
        lines: The lines; None stands for a line that is too long. Undecodable bytes match ``UNDECODABLE``.
        name: The prefix of the ids of records without an id: ``name:line``.
        fields: The fields of text and id.
        encoding: The encoding of the lines, for messages.
    """
    decoder = Decoder()
    for line, text in enumerate(lines, 1):
        if text is None:
            yield Skipped(line, TOO_LONG)
            continue
        record_text = text.removeprefix("\ufeff")  # concatenated files keep their byte order marks
        if record_text.isspace() or not record_text:
            continue
        undecodable = UNDECODABLE.search(text)
        if undecodable:
            yield Skipped(line, f"not {encoding} at character {undecodable.start() + 1} of the line")
            continue
        try:
            record = decoder.decode(record_text)
        except json.JSONDecodeError as error:
            yield Skipped(line, f"not JSON: {error.msg} at character {error.pos + 1}")
        except (RecursionError, ValueError):  # very deep nesting, or an integer of thousands of digits
            yield Skipped(line, "not readable JSON: nested too deeply, or a number is too long")
        else:
            yield record_outcome(record, decoder, fields, f"{name}:{line}", line)


class Decoder:
    """Decodes JSON, and records the names that occur twice in one object of the last value."""

    def __init__(self) -> None:
        self.repeated: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def decode(self, text: str) -> Any:
        """Decode one JSON value.

        Raises:
            json.JSONDecodeError: The text is not JSON.
            RecursionError, ValueError: The value is nested too deeply, or contains a number that is too long.
        """
        self.repeated.clear()
        return self._decoder.decode(text)

    def first(self, text: str, start: int) -> tuple[Any, int]:
        """Decode the value at a position, and return it with its end; raises the errors of ``decode``."""
        self.repeated.clear()
        return self._decoder.raw_decode(text, start)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            times = Counter(name for name, _ in pairs)
            self.repeated += (name for name in value if times[name] > 1)
        return value


def record_outcome(record: Any, decoder: Decoder, fields: Fields, default_id: str, line: int) -> Outcome:
    """Convert a decoded value to a document, or to the reason why it is skipped."""
    if not isinstance(record, dict):
        return Skipped(line, f"a JSON {_json_type(record)}, not an object")
    if decoder.repeated:
        return Skipped(line, f"the field {decoder.repeated[0]!r} occurs twice in one object")
    return outcome_of(record, fields, default_id, line)


def _json_type(value: object) -> str:
    if isinstance(value, list):
        return "array"
    return "null" if value is None else type(value).__name__.replace("str", "string")
