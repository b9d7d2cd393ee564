"""Measure MaxSim from the bytes of each precision, beside the bare int8 and bfloat16 products of the same size.

    python benchmarks/maxsim.py
    python benchmarks/maxsim.py --report benchmarks/results/maxsim-2025-01-31.jsonl

200 documents of 300 rows of 1,024 dimensions, and 32 query rows. All rounds of a way follow each other, because the
threads of numpy's product and of torch's wait for work on the same cores. "numpy" is the kernel of a process that has
not imported torch; "as before" decodes all rows and scores them with ``scoring.multivector_scores``, as stores did
until they scored bytes. On a machine with other work, run it at real-time priority (``chrt -r 1``): a product on all
cores waits for the slowest of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3_connectors import maxsim
from m3_connectors.backends.precision import PRECISIONS, Precision
from m3_connectors.embeddings import Float32, MultiVectors
from m3_connectors.environment import describe, environment
from m3_connectors.scoring import multivector_scores
from m3_connectors.testing.worlds import unit_rows

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS, ROWS, DIMENSION, QUERY_ROWS = 200, 300, 1024, 32


def run(rounds: int) -> Iterator[Row]:
    """Yield the machine, and a row for each way."""
    yield environment(
        "torch",
        "numpy",
        documents=DOCUMENTS,
        rows=ROWS,
        dimension=DIMENSION,
        query_rows=QUERY_ROWS,
        rounds=rounds,
    )
    rng = np.random.default_rng(11)
    rows = unit_rows(rng.normal(size=(DOCUMENTS * ROWS, DIMENSION)))
    query = unit_rows(rng.normal(size=(QUERY_ROWS, DIMENSION)))
    documents = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
    ways: dict[str, Callable[[], object]] = {}
    for name, product in (("int8", _int8(query, rows)), ("bfloat16", _bfloat16(query, rows))):
        ways[f"bare {name} product"] = product
    sizes: dict[str, float] = {}
    for name, precision in PRECISIONS.items():
        started = time.perf_counter()
        encoded = [precision.encode(some) for some in documents]
        encoding = time.perf_counter() - started
        sizes |= dict.fromkeys((name, f"{name}, numpy"), len(encoded[0]) / ROWS)
        ways[name] = lambda precision=precision, encoded=encoded: precision.scores(query, encoded)  # type: ignore[misc]
        ways[f"{name}, numpy"] = lambda way=ways[name]: _without_torch(way)  # type: ignore[misc]
        yield {"way": f"encode {name}", "rows_per_second": round(len(rows) / encoding)}
        if name in ("float16", "float32"):
            ways[f"{name}, as before"] = lambda precision=precision, encoded=encoded: _before(  # type: ignore[misc]
                precision, query, encoded
            )
    for name, way in ways.items():
        taken = []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            way()
            taken.append(time.perf_counter() - started)
        milliseconds = 1e3 * np.array(taken[1:])  # the first round prepares threads and buffers
        low, median, high = np.percentile(milliseconds, [10, 50, 90])
        yield {
            "way": name,
            "row_bytes": sizes.get(name),
            "best_ms": round(float(milliseconds.min()), 2),
            "p10_ms": round(float(low), 2),
            "p50_ms": round(float(median), 2),
            "p90_ms": round(float(high), 2),
        }


def _int8(query: Float32, rows: Float32) -> Callable[[], object]:
    coded = [torch.from_numpy(np.rint(some * 127).astype(np.int8)) for some in (rows, query)]
    return lambda: torch._int_mm(coded[0], coded[1].t())


def _bfloat16(query: Float32, rows: Float32) -> Callable[[], object]:
    halves = [torch.from_numpy(some).bfloat16() for some in (rows, query)]
    return lambda: halves[0] @ halves[1].t()


def _before(precision: Precision, query: Float32, encoded: list[bytes]) -> Float32:
    joined = np.empty((len(encoded) * ROWS, DIMENSION), dtype=np.float32)
    for i, part in enumerate(encoded):
        precision.decode(part, joined[i * ROWS : (i + 1) * ROWS])
    offsets = np.arange(len(encoded) + 1, dtype=np.int64) * ROWS
    return multivector_scores(precision.round_query(query), MultiVectors(joined, offsets))


def _without_torch(way: Callable[[], object]) -> object:
    loaded = maxsim._loaded_torch
    maxsim._loaded_torch = lambda: None
    try:
        return way()
    finally:
        maxsim._loaded_torch = loaded


def report(path: Path) -> str:
    """Return the table in Markdown."""
    machine, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    size = f"{machine['documents']} documents of {machine['rows']} rows × {machine['dimension']:,}"
    lines = [
        f"{size}, {machine['query_rows']} query rows; milliseconds of {machine['rounds']} rounds; load average at the "
        f"start {machine['load_average'][0]:.1f}; {describe(machine)}.",
        "",
        "| way | bytes a row | best | p10 | p50 | p90 | encode, rows/s |",
        "|---|---|---|---|---|---|---|",
    ]
    pace = {
        row["way"].removeprefix("encode "): row["rows_per_second"] for row in rows if "rows_per_second" in row
    }
    for row in rows:
        if "p50_ms" in row:
            times = " | ".join(f"{row[f'{name}_ms']:.1f}" for name in ("best", "p10", "p50", "p90"))
            encoding = f"{pace[row['way']]:,}" if row["way"] in pace else ""
            lines.append(
                f"| {row['way']} | {row['row_bytes'] or 0:,.0f} | {times} | {encoding} |".replace(
                    "| 0 |", "| |"
                )
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/maxsim-DATE.jsonl")
    parser.add_argument("--report", type=Path, help="only print the table of this file")
    options = parser.parse_args()
    path = options.report
    if path is None:
        path = options.out or ROOT / "benchmarks" / "results" / f"maxsim-{datetime.date.today()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for row in run(options.rounds):
                file.write(json.dumps(row) + "\n")
                file.flush()
    print(report(path))


if __name__ == "__main__":
    main()
