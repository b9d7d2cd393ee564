"""``python -m m3_connectors.evaluation.datasets [FILE]``: print the catalogue as a table, or insert it into a page."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from m3_connectors.evaluation.datasets.catalogue import CATALOGUE, Entry
from m3_connectors.evaluation.datasets.published import numbers_by_task

_BETWEEN = re.compile(r"(?<=<!-- catalogue -->\n).*?(?=<!-- /catalogue -->)", re.DOTALL)

_COLUMNS: dict[str, Callable[[Entry], str]] = {
    "name": lambda entry: f"`{entry.family}{'/LANGUAGE' if entry.languages else ''}`",
    "languages": lambda entry: " ".join(entry.languages) or "en",
    "splits": lambda entry: ", ".join(entry.splits),
    "files of the hub, at commit": lambda entry: "<br>".join(
        f"{repository.name} `{repository.revision[:12]}`: {' '.join(f'`{file}`' for file in repository.files)}"
        for repository in entry.repositories
    ),
    "licence": lambda entry: entry.licence,
    "measures": lambda entry: ", ".join(entry.paper.measures),
    "tokens of query / passage": lambda entry: (
        f"{entry.paper.query_max_length:,} / {entry.paper.passage_max_length:,}"
    ),
    "weights of Dense+Sparse; All": lambda entry: (
        f"{_numbers(entry.paper.dense_sparse)}; {_numbers(entry.paper.all)}"
    ),
    "published All": lambda entry: _published(entry),
}


def table() -> str:
    """What the catalogue holds, as Markdown."""
    lines = [list(_COLUMNS), ["---"] * len(_COLUMNS)]
    lines += [[cell(entry) for cell in _COLUMNS.values()] for entry in CATALOGUE.values()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def with_table(page: str) -> str:
    """A page with the table of now between its two marks."""
    return _BETWEEN.sub(table(), page)


def _numbers(weights: tuple[float, ...] | None) -> str:
    return " ".join(f"{weight:g}" for weight in weights or ())


def _published(entry: Entry) -> str:
    measure = entry.paper.measures[0]
    return f"{measure} {100 * numbers_by_task()[entry.family, 'all', measure]:.1f}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(table())
