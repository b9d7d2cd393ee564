"""Measure the latency of search on Qdrant Edge without encoding, and the share of this package's Python code in it.

    python benchmarks/search.py                     # 10,000 documents, all methods, at 256 and 1,024 dimensions
    python benchmarks/search.py --graph             # also after optimize(): the dense graph and its recall
    python benchmarks/search.py --report benchmarks/results/search-2025-01-31.jsonl

Documents are random unit vectors around common topics. Queries are given as embeddings, so a time includes everything
in ``Index.search`` except the model: candidates, exact scores, fusion, and the texts of ten hits. The engine's share is
measured inside the same calls, by a wrapper around its shard. One row per search is written to a JSON Lines file, after
a record of the machine; the table is generated from that file alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from m3_connectors import connect
from m3_connectors.backends.base import Schema, Storage
from m3_connectors.backends.qdrant.edge import connection as shard
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.blocking import Index
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings, ModelInfo
from m3_connectors.environment import environment
from m3_connectors.methods import METHODS
from m3_connectors.testing.worlds import join, unit_rows

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]

VOCABULARY = 30_000
TOKENS = 48
"""Number of tokens with a weight in a document of 64 rows."""

_CHUNK = 250
_WARM_UP = 20


class Timed:
    """A wrapper of the engine's shard that adds up the time inside its calls."""

    def __init__(self, edge: Any) -> None:
        self._edge = edge

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._edge, name)

        def call(*arguments: Any) -> Any:
            start, start_cpu = time.perf_counter(), time.process_time()
            try:
                return method(*arguments)
            finally:
                Timed.seconds += time.perf_counter() - start
                Timed.cpu_seconds += time.process_time() - start_cpu
                Timed.calls += 1

        return call

    seconds = cpu_seconds = 0.0
    calls = 0


def texts(
    rng: np.random.Generator, topics: np.ndarray[Any, Any], count: int, rows: int, model: ModelInfo
) -> M3Embeddings:
    """Return embeddings of random texts about topics, with ``rows`` multi-vector rows each."""
    made = []
    for _ in range(count):
        about = topics[rng.integers(len(topics))] + 0.7 * rng.standard_normal(
            model.dimension, dtype=np.float32
        )
        tokens = rng.zipf(1.3, size=TOKENS * rows // 64 + 4) % VOCABULARY
        weights = dict(zip(tokens.tolist(), rng.gamma(2.0, 0.1, len(tokens)).tolist(), strict=True))
        spread = rng.standard_normal((rows, model.dimension), dtype=np.float32)
        made.append((unit_rows(about), weights, unit_rows(about + spread)))
    return join(made, model)


async def fill(
    directory: str, model: ModelInfo, topics: np.ndarray[Any, Any], options: argparse.Namespace
) -> Row:
    """Create the collection and return the write rate in documents per second."""
    rng = np.random.default_rng(1)
    backend = EdgeBackend(directory)
    await backend.create(Schema(model, storage=Storage()))
    seconds = 0.0
    for start in range(0, options.documents, _CHUNK):
        count = min(_CHUNK, options.documents - start)
        embeddings = texts(rng, topics, count, options.rows, model)
        documents = [
            Document(
                f"document-{start + i}", "A text of about two hundred characters. " * 5, {"n": start + i}
            )
            for i in range(count)
        ]
        began = time.perf_counter()
        await backend.upsert(documents, embeddings)
        seconds += time.perf_counter() - began
    assert backend._shard is not None
    size_bytes = backend._shard.size_bytes()
    await backend.close()
    return {"kind": "fill", "dimension": model.dimension, "seconds": seconds, "size_bytes": size_bytes}


def searches(index: Index, queries: M3Embeddings, state: str) -> Iterator[Row]:
    """Yield one row for each method and query, alternating between the methods."""
    for number, query in enumerate(queries):
        for method in METHODS:
            Timed.seconds = Timed.cpu_seconds = 0.0
            Timed.calls = 0
            began, began_cpu = time.perf_counter(), time.process_time()
            hits = index.search(query, method=method)
            seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
            if number < _WARM_UP:
                continue
            yield {
                "kind": "search",
                "state": state,
                "dimension": queries.dense.shape[1] if "dense" in queries.components else 0,
                "method": method,
                "query": number - _WARM_UP,
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "engine_seconds": Timed.seconds,
                "engine_cpu_seconds": Timed.cpu_seconds,
                "engine_calls": Timed.calls,
                "hits": len(hits),
            }


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield all rows of a run."""
    packages = ("qdrant-edge-py", "numpy", "scipy", "anyio")
    sizes = {"documents": options.documents, "rows": options.rows, "query_rows": options.query_rows}
    yield environment(*packages, **sizes, storage="float16")
    shard._load = lambda home, load=shard._load: Timed(load(home))  # type: ignore[assignment, misc]
    for dimension in options.dimensions:
        rng = np.random.default_rng(0)
        model = ModelInfo("benchmark/random", None, dimension, VOCABULARY, "random")
        topics = rng.standard_normal((100, dimension), dtype=np.float32)
        queries = texts(rng, topics, options.queries + _WARM_UP, options.query_rows, model)
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            yield anyio.run(fill, directory, model, topics, options)
            with connect(f"qdrant:{directory}", create=False) as index:
                yield from searches(index, queries, "scan")
            if options.graph:
                yield from anyio.run(graph, directory, queries)
                with connect(f"qdrant:{directory}", create=False) as index:
                    yield from searches(index, queries, "graph")


async def graph(directory: str, queries: M3Embeddings) -> list[Row]:
    """Build the dense graph and measure which share of the exact top 200 its lists contain."""
    backend = EdgeBackend(directory)
    await backend.open()
    began = time.perf_counter()
    await backend.optimize()
    seconds = time.perf_counter() - began
    recalls = []
    for query in queries:
        found = await backend.candidates("dense", query, 200)
        true = await backend.candidates("dense", query, 200, exact=True)
        recalls.append(len(set(found.ids) & set(true.ids)) / len(true.ids))
    dimension = backend.schema.model.dimension
    await backend.close()
    return [
        {
            "kind": "graph",
            "dimension": dimension,
            "seconds": seconds,
            "recall_at_200": float(np.mean(recalls)),
        }
    ]


def report(path: Path) -> str:
    """Return the tables of one file of rows."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    machine = next(row for row in rows if row["kind"] == "environment")
    lines = [
        f"{machine['documents']:,} documents of {machine['rows']} rows in {machine['storage']}, queries of "
        f"{machine['query_rows']} rows, top 10; {machine['processor']}, {machine['cores']} cores, "
        f"qdrant-edge-py {machine['versions']['qdrant-edge-py']}; commit {machine['commit']}, {machine['date']}",
        "",
        "| dims | list | method | p50 ms | p95 ms | p99 ms | in the engine | our Python | CPU ms | engine calls | n |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    cases = dict.fromkeys(
        (row["dimension"], row["state"], row["method"]) for row in rows if row["kind"] == "search"
    )
    for dimension, state, method in cases:
        chosen = [
            row
            for row in rows
            if row["kind"] == "search"
            and (row["dimension"], row["state"], row["method"]) == (dimension, state, method)
        ]
        total = np.array([row["seconds"] for row in chosen]) * 1e3
        engine = np.array([row["engine_seconds"] for row in chosen]) * 1e3
        cpu = float(np.median([row["cpu_seconds"] for row in chosen])) * 1e3
        ours_cpu = float(np.median([row["cpu_seconds"] - row["engine_cpu_seconds"] for row in chosen])) * 1e3
        p50, p95, p99 = np.percentile(total, [50, 95, 99])
        ours = float(np.median(total - engine))
        cells = [
            f"{dimension:,}",
            state,
            method,
            *(f"{value:.2f}" for value in (p50, p95, p99)),
            f"{np.median(engine):.2f} ms",
            f"{ours:.2f} ms ({ours / p50:.0%})",
            f"{cpu:.2f}, ours {ours_cpu:.2f}",
            f"{chosen[0]['engine_calls']}",
            f"{len(chosen)}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for row in rows:
        if row["kind"] == "fill":
            lines.append(
                f"Writing at {row['dimension']:,} dims: {machine['documents'] / row['seconds']:,.0f} documents/s, "
                f"{row['size_bytes'] / 2**20:,.0f} MiB on disk."
            )
        elif row["kind"] == "graph":
            lines.append(
                f"optimize() at {row['dimension']:,} dims: {row['seconds']:.1f} s; its lists hold "
                f"{row['recall_at_200']:.2%} of the exact top 200."
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=64, help="multi-vector rows per document")
    parser.add_argument("--query-rows", type=int, default=32)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--graph", action="store_true", help="also build the dense graph (slow)")
    parser.add_argument("--directory", help="folder for the data during the run")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / f"search-{today}.jsonl")
    parser.add_argument("--report", type=Path, help="print the tables of an earlier run without measuring")
    options = parser.parse_args()
    if options.report is None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", encoding="utf-8") as file:
            for row in run(options):
                print(json.dumps(row), file=file, flush=True)
    print(report(options.report or options.out))


if __name__ == "__main__":
    main()
