"""Triples as tab-separated lines, as MS MARCO has them: query, positive, negative."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m3_connectors.errors import InvalidInput
from m3_connectors.training_data.examples import Example, Unusable, broken
from m3_connectors.training_data.lines import text_rows

_HEADERS = ("query", "anchor")


def read_triples(path: Path, kind: str) -> Iterator[Example | Unusable]:
    """Yield the triples of a file, those of one query and positive that follow each other as one example.

    Raises:
        InvalidInput: The first line has ids instead of texts.
    """
    held: Example | None = None
    for row in text_rows(path):
        if isinstance(row, Unusable):
            yield row
            continue
        place, line = row
        if not line.strip():
            continue
        cells = line.split("\t")
        if place == f"{path}:1":
            if len(cells) > 1 and all(cell.strip().isdecimal() for cell in cells):
                raise InvalidInput(
                    f"{path} has ids ({line[:60]!r}), not texts.\n"
                    "  Give triples of texts, or a BEIR folder with corpus, queries and qrels."
                )
            if cells[0].strip().lower() in _HEADERS:
                continue
        if len(cells) not in (2, 3) or not all(cell.strip() for cell in cells):
            yield broken(
                place, f"it has {len(cells)} cells separated by tabs; query, positive and negative are needed"
            )
            continue
        query, positive, *negatives = cells
        if held is not None and (held.query, held.positives) == (query, (positive,)):
            held = Example(query, (positive,), held.place, kind, (*held.negatives, *negatives))
            continue
        if held is not None:
            yield held
        held = Example(query, (positive,), place, kind, tuple(negatives))
    if held is not None:
        yield held
