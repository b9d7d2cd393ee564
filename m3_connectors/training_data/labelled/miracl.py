"""Mr. TyDi and MIRACL: JSON Lines with a query, and its passages with titles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m3_connectors.evaluation.datasets.lines import titled
from m3_connectors.training_data.examples import Example, NotAnExample, Unusable, broken, text_of
from m3_connectors.training_data.lines import Record, json_records


def read_miracl(path: Path, kind: str) -> Iterator[Example | Unusable]:
    """Yield the examples of a file: ``query``, ``positive_passages`` and ``negative_passages``, each with a title."""
    for row in json_records(path):
        if isinstance(row, Unusable):
            yield row
            continue
        place, record = row
        try:
            positives = _passages(record, "positive_passages")
            if not positives:
                yield Unusable(place, "no positive", "it has no positive passage")
                continue
            negatives = _passages(record, "negative_passages") if record.get("negative_passages") else ()
            yield Example(text_of(record, "query"), positives, place, kind, negatives)
        except NotAnExample as error:
            yield broken(place, str(error))


def _passages(record: Record, field: str) -> tuple[str, ...]:
    value: Any = record.get(field)
    if not isinstance(value, list) or not all(isinstance(passage, dict) for passage in value):
        raise NotAnExample(f"{field!r} is {value!r:.60}; it must be a list of passages")
    return tuple(titled(passage.get("title") or "", text_of(passage, "text")) for passage in value)
