"""JSON Lines with examples: our form and FlagEmbedding's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m3_connectors.training_data.examples import Example, NotAnExample, Unusable, broken, example_of
from m3_connectors.training_data.lines import json_records


def read_examples(path: Path, kind: str) -> Iterator[Example | Unusable]:
    """Yield the examples of a file, and the lines that have none."""
    for row in json_records(path):
        if isinstance(row, Unusable):
            yield row
            continue
        place, record = row
        try:
            yield example_of(record, place, kind)
        except NotAnExample as error:
            yield broken(place, str(error))
