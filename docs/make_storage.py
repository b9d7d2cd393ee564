"""Writes the tables of docs/storage.md from the planner's formulas and from benchmarks/results.

Run it after a change of a formula, or when a result was added::

    python docs/make_storage.py
"""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m3_connectors.backends.planning import Plan, Shape, formula_of
from m3_connectors.backends.precision import PRECISIONS
from m3_connectors.environment import describe

PAGE = Path(__file__).with_name("storage.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

Row = dict[str, Any]

STORES = ("qdrant", "milvus", "elasticsearch")
TITLES = {"qdrant": "Qdrant Edge", "qdrant server": "Qdrant server", "milvus": "Milvus"}
FACTORS = (1, 2, 3)
BY_SIZE = sorted(PRECISIONS, key=lambda name: -PRECISIONS[name].encoded_bytes(300, 1024))


def page(text: str) -> str:
    """Return the page with each table between ``<!-- NAME -->`` and ``<!-- end -->`` made again."""

    def table(found: re.Match[str]) -> str:
        lines = "\n".join(_TABLES[found[1]]())
        return f"<!-- {found[1]} -->\n{lines}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def _sizes() -> Iterator[str]:
    """The bytes of the multi-vector of 300 tokens, and of a hundred million such documents on each store."""
    choices = [(name, factor) for name in BY_SIZE for factor in FACTORS]
    compact = Shape.of_tokens(1e8, 300, dtype="int8")
    stores = [plan.title for store in STORES for plan in _plans(store, compact)]
    names = [TITLES.get(store, store.capitalize()) for store in stores]
    yield f"| precision | pooled by | multi-vector, bytes | {' | '.join(f'{name}, TB' for name in names)} |"
    yield "|---|---|" + "---:|" * (1 + len(stores))
    for name, factor in choices:
        shape = Shape.of_tokens(1e8, 300, dtype=name, pool_factor=factor)
        yield f"| {name} | {_factor(factor)} | {shape.blob_bytes:,.0f} | {_terabytes(stores, shape)} |"
    without = Shape.of_tokens(1e8, 300, components=("dense", "sparse"))
    yield f"| no multi-vectors |  |  | {_terabytes(stores, without)} |"


def _terabytes(stores: list[str], shape: Shape) -> str:
    sizes = {plan.title: plan.disk_bytes for store in STORES for plan in _plans(store, shape)}
    cells = []
    for store in stores:
        # A server needs its own plan only where it stores differently.
        size = sizes.get(store, sizes[store.partition(" ")[0]]) / 1e12
        cells.append(f"**{size:.1f}**" if size <= 5 and shape.keeps_rows else f"{size:.1f}")
    return " | ".join(cells)


def _plans(store: str, shape: Shape) -> list[Plan]:
    formula = formula_of(store)
    assert formula is not None
    return formula.plans(shape)


def _quality() -> Iterator[str]:
    """The change of nDCG@10 against float32 without pooling: for each model, the mean over the measured sets."""
    models: dict[str, dict[tuple[str, int, str], Row]] = defaultdict(dict)
    for path in sorted(RESULTS.glob("precision-*.jsonl")):
        machine, *rows = _rows(path)
        title = Path(machine["model"].split(" ")[0]).name
        models[title] |= {(row["folder"], row["factor"], row["precision"]): row for row in rows}
    yield "| precision | pooled by | " + " | ".join(f"{title}: All | Multi-vec" for title in models) + " |"
    yield "|---|---|" + "---|---|" * len(models)
    for name in BY_SIZE:
        for factor in FACTORS:
            found = [
                [row for (_, f, p), row in rows.items() if (f, p) == (factor, name)]
                for rows in models.values()
            ]
            if any(found) and (name, factor) != ("float32", 1):
                cells = [_change(rows, method) for rows in found for method in ("All", "Multi-vec")]
                yield f"| {name} | {_factor(factor)} | {' | '.join(cells)} |"
    about = []
    for rows in models.values():
        sets = {folder: row["queries"] for (folder, _, _), row in rows.items()}
        about.append(f"{', '.join(sets)}; {sum(sets.values()):,} queries |")
    yield f"| measured on |  | {' | '.join(about)} |"


def _change(rows: list[Row], method: str) -> str:
    """Return the mean over sets with its interval; the sets are drawn independently, so their variances add up."""
    if not rows:
        return ""
    change = sum(row[method]["change"] for row in rows) / len(rows)
    half = 1.96 * sum(row[method]["error"] ** 2 for row in rows) ** 0.5 / len(rows)
    return f"{round(change, 4) + 0.0:+.4f} ± {half:.4f}"


def _measured() -> Iterator[str]:
    """Planned and measured bytes of a document, as ``m3 bench`` reports them."""
    yield "| store | precision | pooled by | planned | measured | planned is |"
    yield "|---|---|---|---:|---:|---|"
    _, *rows = _rows(max(RESULTS.glob("plan-*.jsonl")))
    for row in rows:
        planned, measured = row["planned_bytes"], row["measured_bytes"]
        difference = planned / measured - 1
        off = f"{abs(difference):.1%} {'more' if difference > 0 else 'less'}"
        yield (
            f"| {row['store']} | {row['precision']} | {_factor(row['factor'])} | {planned:,.0f} | {measured:,.0f} | "
            f"{off} |"
        )


def _latency() -> Iterator[str]:
    """The time of whole queries with the method ``all``, from the last run that compares precisions."""
    found = None
    for path in sorted(RESULTS.glob("versions-*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            machine, *rows = [json.loads(line) for line in file]
        rows = [row for row in rows if row["kind"] == "search" and row["method"] == "all"]
        if len({row.get("precision") for row in rows}) > 1:
            found = path.name, machine, rows
    if found is None:
        yield "Not measured yet. `python benchmarks/versions.py --precisions float16 int8 int4 int2 int1` measures it."
        return
    name, machine, rows = found
    yield (
        f"{machine['documents']:,} documents of {machine['rows']} rows of {machine['dimension']:,}, queries of "
        f"{machine['query_rows']} rows, top {machine['k']}; p50 / p95 in milliseconds; {describe(machine)}; "
        f'[raw rows](../benchmarks/results/{name}). "Before" is version {machine["commits"]["before"]}.'
    )
    yield ""
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        side = "before, " if row["side"] == "before" else ""
        times[row["store"]][side + row["precision"]].append(row["seconds"] * 1e3)
    columns = sorted({column for store in times.values() for column in store}, key=_by_size)
    yield f"| store | {' | '.join(columns)} |"
    yield "|---|" + "---:|" * len(columns)
    for store, own in times.items():
        cells = [f"{_quantile(own[one], 0.5):.0f} / {_quantile(own[one], 0.95):.0f}" for one in columns]
        yield f"| {store} | {' | '.join(cells)} |"


def _by_size(column: str) -> tuple[bool, int]:
    return not column.startswith("before"), BY_SIZE.index(column.removeprefix("before, "))


def _quantile(values: list[float], share: float) -> float:
    return float(np.percentile(values, 100 * share))


def _factor(factor: int) -> str:
    return "not" if factor == 1 else str(factor)


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


_TABLES = {"sizes": _sizes, "quality": _quality, "latency": _latency, "measured": _measured}

if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
