"""JSON Lines: one document a line."""

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
    """Documents of JSON Lines.

    Args:
        lines: The lines; None is one that is too long. Undecodable bytes match ``UNDECODABLE``.
        name: Prefix of the ids of records without one: ``name:line``.
        fields: Which fields are text and id.
        encoding: What the lines are decoded from.
    """
    decoder = Decoder()
    for line, text in enumerate(lines, 1):
        if text is None:
            yield Skipped(line, TOO_LONG)
            continue
        record_text = text.removeprefix("\ufeff")  # files put together keep their marks
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
        except (RecursionError, ValueError):  # absurd nesting; a whole number of thousands of digits
            yield Skipped(line, "not JSON that can be read: nested too deeply, or a number too long")
        else:
            yield record_outcome(record, decoder, fields, f"{name}:{line}", line)


class Decoder:
    """Decodes JSON and remembers the names that came twice in one object of the last value."""

    def __init__(self) -> None:
        self.repeated: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def decode(self, text: str) -> Any:
        """One JSON value.

        Raises:
            json.JSONDecodeError: It is not JSON.
            RecursionError, ValueError: It is nested too deeply, or has a number too long.
        """
        self.repeated.clear()
        return self._decoder.decode(text)

    def first(self, text: str, start: int) -> tuple[Any, int]:
        """The JSON value that begins at a position, and where it ends; errors as ``decode``'s."""
        self.repeated.clear()
        return self._decoder.raw_decode(text, start)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            times = Counter(name for name, _ in pairs)
            self.repeated += (name for name in value if times[name] > 1)
        return value


def record_outcome(record: Any, decoder: Decoder, fields: Fields, default_id: str, line: int) -> Outcome:
    """A decoded value as a document, or the reason why it is none."""
    if not isinstance(record, dict):
        return Skipped(line, f"a JSON {_json_type(record)}, not an object")
    if decoder.repeated:
        return Skipped(line, f"the field {decoder.repeated[0]!r} comes twice in one object")
    return outcome_of(record, fields, default_id, line)


def _json_type(value: object) -> str:
    if isinstance(value, list):
        return "array"
    return "null" if value is None else type(value).__name__.replace("str", "string")
