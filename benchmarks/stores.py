"""Compare the write rate and search latency of each store with hand-written client code, in one run.

    python benchmarks/stores.py                                          # 10,000 documents, about a quarter of an hour
    python benchmarks/stores.py --documents 1000 --stores milvus         # a short run of one store
    python benchmarks/stores.py --report benchmarks/results/stores-2025-01-31.jsonl.gz

"Ours" is ``connect``, ``Index.add`` and ``Index.search`` with given embeddings: everything but the model. "By hand" are
direct calls of the vendor's client (``benchmarks/handwritten``). The two sides alternate, block by block in writing and
query by query in searching, and so does the side that begins. Every query is searched in two ways: with all three of
its representations, so that every hit has all three scores, and with only those that its method needs. Hits and scores
are compared each time.

The documents are random unit vectors around a common direction and topics, with token ids that follow Zipf's law, so
that their distribution is as dense as that of M3. One row per call is written to a compressed JSON Lines file, after a
record of the machine; the tables are generated from it.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import os
import resource
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from fixtures import PACKAGES, RESULTS, Corpus, Fixed, Place, place_of
from handwritten import Found, Handwritten

from m3_connectors import connect
from m3_connectors.blocking import Index
from m3_connectors.documents import Hit
from m3_connectors.embeddings import COMPONENTS, M3Embeddings
from m3_connectors.environment import describe, environment
from m3_connectors.methods import METHODS

Row = dict[str, Any]

STORES = ("qdrant-edge", "qdrant", "milvus", "milvus-embedded", "elasticsearch")
_WARM_UP = 3


def _by_hand(place: Place, index: Index, collection: str, dimension: int) -> Handwritten:
    """Return the hand-written client for the collection of an open index, on the same server."""
    address = place.url.partition("+")[2]
    match place.name:
        case "qdrant-edge":
            from handwritten.qdrant_edge import QdrantEdge

            assert place.directory is not None
            # The engine opens a shard only once per process, so both sides search with the same object.
            return QdrantEdge(index._index._backend._shard._shard, place.directory / "handwritten", dimension)
        case "qdrant":
            from handwritten.qdrant_server import QdrantServer

            parts = urlsplit(address)
            port = parts.port or 6333
            grpc_port = place.options.get("grpc_port") or os.environ.get("M3_QDRANT_GRPC_PORT") or port + 1
            url = f"{parts.scheme}://{parts.hostname}:{port}"
            return QdrantServer(
                url, int(grpc_port), collection, dimension, os.environ.get("M3_QDRANT_API_KEY")
            )
        case "elasticsearch":
            from handwritten.elasticsearch import Elasticsearch

            return Elasticsearch(address, collection, dimension)
        case _:
            from handwritten.milvus import Milvus

            # pymilvus would start a second engine, but the directory is locked.
            return Milvus(address or index._index._backend._connected._engine.uri, collection, dimension)


# -- measuring


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield all rows of a run."""
    settings = {name: getattr(options, name) for name in ("documents", "dimension", "rows", "query_rows")}
    yield environment(*PACKAGES, **settings, queries=options.queries, k=options.k)
    corpus = Corpus(options.documents, options.rows, options.dimension)
    queries = corpus.queries(options.queries + _WARM_UP, options.query_rows)
    for store in options.stores:
        collection = f"stores{uuid.uuid4().hex[:8]}"
        with (
            place_of(store, options.directory) as place,
            connect(place.url, collection, encoder=Fixed(corpus.model), **place.options) as index,
        ):
            handwritten = _by_hand(place, index, collection, corpus.model.dimension)
            for row in writes(index, handwritten, corpus):
                yield {"store": store, **row}
            for row in searches(index, handwritten, queries, options.k):
                yield {"store": store, **row}
            handwritten.close()
            index.drop()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        yield {"kind": "memory", "store": store, "client_peak_mib": peak // 1024}


def writes(index: Index, handwritten: Handwritten, corpus: Corpus) -> Iterator[Row]:
    """Yield a row for each block and side, and one for the rest at the end; the first block runs on a cold server."""
    for block, (documents, embeddings) in enumerate(corpus.blocks()):
        calls: dict[str, Callable[[], object]] = {
            "ours": lambda d=documents, e=embeddings: index.add(d, embeddings=e),
            "by hand": lambda d=documents, e=embeddings: handwritten.write(d, e),
        }
        for row in _taking_turns(calls, block):
            yield {"kind": "write", "block": block, "documents": len(documents), **row[0]}
    ((row, _),) = _taking_turns({"by hand": handwritten.finish}, 0)
    yield {"kind": "write", "block": -1, "documents": 0, **row}
    assert index.count() == corpus.count
    handwritten.drop()


def searches(index: Index, handwritten: Handwritten, queries: M3Embeddings, k: int) -> Iterator[Row]:
    """Yield a row for each query, method, set of scores and side."""
    for number, query in enumerate(queries):
        for name, method in METHODS.items():
            own = M3Embeddings(
                query.dense if "dense" in method.components else None,
                query.sparse if "sparse" in method.components else None,
                query.multivectors if "multivector" in method.components else None,
                model=query.model,
            )
            for scores, asked in (("all three", query), ("its own", own)):
                if scores == "its own" and method.components == COMPONENTS:
                    continue
                calls: dict[str, Callable[[], Any]] = {
                    "ours": lambda q=asked, m=name: index.search(q, method=m, k=k),
                    "by hand": lambda q=asked, m=name: handwritten.search(q, m, k),
                }
                rows, answers = zip(*_taking_turns(calls, number), strict=True)
                if number < _WARM_UP:
                    continue
                answer = {row["who"]: hits for row, hits in zip(rows, answers, strict=True)}
                same, difference = compared(answer["ours"], answer["by hand"])
                for row in rows:
                    yield {
                        "kind": "search",
                        "method": name,
                        "scores": scores,
                        "query": number - _WARM_UP,
                        **row,
                        "same_hits": same,
                        "largest_difference": difference,
                    }


def _taking_turns(calls: dict[str, Callable[[], Any]], turn: int) -> Iterator[tuple[Row, Any]]:
    order = list(calls.items())
    for first, (who, call) in enumerate(reversed(order) if turn % 2 else order):
        cpu, began = time.process_time(), time.perf_counter()
        answer = call()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        row = {
            "who": who,
            "first": not first,
            "seconds": round(seconds, 6),
            "cpu_seconds": round(cpu_seconds, 6),
        }
        yield row, answer


def compared(ours: list[Hit], theirs: list[Found]) -> tuple[bool, float]:
    """Return whether both have the same documents in the same order, and the largest difference of any score."""
    same = [(hit.document.id, hit.document.text, dict(hit.document.metadata)) for hit in ours] == [
        (found.id, found.text, found.metadata) for found in theirs
    ]
    if not same:
        return False, float("nan")
    differences = [0.0]
    for hit, found in zip(ours, theirs, strict=True):
        shown = {name: value for name in COMPONENTS if (value := getattr(hit.scores, name)) is not None}
        if set(shown) != set(found.scores):
            return False, float("nan")
        differences += [abs(hit.score - found.score)]
        differences += [abs(value - found.scores[name]) for name, value in shown.items()]
    return True, float(f"{max(differences):.1e}")


# -- the report


def report(path: Path) -> str:
    """Return the tables of one file of rows."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    machine = next(row for row in rows if row["kind"] == "environment")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    lines = [
        f"{machine['documents']:,} documents of {machine['rows']} rows of {machine['dimension']:,} in float16, queries "
        f"of {machine['query_rows']} rows, top {machine['k']}, {machine['queries']} queries; {describe(machine)}; "
        f"load {machine['load_average'][0]:.1f}; {versions}.",
        "",
        "| store | documents/s, ours | by hand | ratio (95 %) | client CPU ms a document, ours | by hand |",
        "|---|---|---|---|---|---|",
    ]
    written = [row for row in rows if row["kind"] == "write"]
    lines += [
        _write_line(store, [row for row in written if row["store"] == store])
        for store in dict.fromkeys(row["store"] for row in written)
    ]
    lines += [
        "",
        "| store | method | scores of a hit | p50 ms, ours | by hand | ratio (95 %) | p95 ms, ours | by hand "
        "| ratio (95 %) | client CPU ms, ours | by hand | same hits |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    searched = [row for row in rows if row["kind"] == "search"]
    for case in dict.fromkeys((row["store"], row["method"], row["scores"]) for row in searched):
        chosen = [row for row in searched if (row["store"], row["method"], row["scores"]) == case]
        lines.append(_search_line(case, chosen))
    return "\n".join(lines)


def _write_line(store: str, rows: list[Row]) -> str:
    first = min(1, max(row["block"] for row in rows))

    def column(who: str, key: str) -> np.ndarray[Any, Any]:
        return np.array([row[key] for row in rows if row["who"] == who and row["block"] >= first])

    counts = column("ours", "documents")
    ending = sum(row["seconds"] for row in rows if row["block"] < 0)
    ours, theirs = column("ours", "seconds"), column("by hand", "seconds") + ending * counts / counts.sum()
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(ours), size=(2000, len(ours)))
    low, high = np.percentile(theirs[drawn].sum(axis=1) / ours[drawn].sum(axis=1), [2.5, 97.5])
    cpu = [column(who, "cpu_seconds").sum() / counts.sum() * 1e3 for who in ("ours", "by hand")]
    cells = [
        store,
        f"{counts.sum() / ours.sum():,.0f}",
        f"{counts.sum() / theirs.sum():,.0f}",
        f"**{theirs.sum() / ours.sum():.2f}** ({low:.2f}–{high:.2f})",
        *(f"{value:.2f}" for value in cpu),
    ]
    return "| " + " | ".join(cells) + " |"


def _search_line(case: tuple[str, ...], rows: list[Row]) -> str:
    def column(who: str, key: str) -> np.ndarray[Any, Any]:
        return np.array([row[key] for row in rows if row["who"] == who]) * 1e3

    ours, theirs = column("ours", "seconds"), column("by hand", "seconds")
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(ours), size=(2000, len(ours)))
    cells = [*case]
    for percent in (50, 95):
        a, b = np.percentile(ours, percent), np.percentile(theirs, percent)
        # Pairs are drawn, so that a disturbance that affected both sides at one time counts once.
        ratios = np.percentile(ours[drawn], percent, axis=1) / np.percentile(theirs[drawn], percent, axis=1)
        low, high = np.percentile(ratios, [2.5, 97.5])
        bold = "**" if percent == 50 else ""
        cells += [f"{a:.1f}", f"{b:.1f}", f"{bold}{a / b:.2f}{bold} ({low:.2f}–{high:.2f})"]
    cells += [f"{np.median(column(who, 'cpu_seconds')):.1f}" for who in ("ours", "by hand")]
    same = [row["same_hits"] for row in rows if row["who"] == "ours"]
    differences = [row["largest_difference"] for row in rows if row["same_hits"]]
    cells.append(f"{sum(same)} of {len(same)}, ≤ {max(differences, default=0):.0e}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=64, help="multi-vector rows per document")
    parser.add_argument("--dimension", type=int, default=1024)
    parser.add_argument("--query-rows", type=int, default=32)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument(
        "--stores", nargs="+", choices=STORES, default=["qdrant-edge", "milvus", "elasticsearch"]
    )
    parser.add_argument("--directory", help="folder for the data during the run")
    parser.add_argument("--out", type=Path, default=RESULTS / f"stores-{today}.jsonl.gz")
    parser.add_argument("--report", type=Path, help="print the tables of an earlier run without measuring")
    options = parser.parse_args()
    if options.report is None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(options.out, "wt", encoding="utf-8") as file:
            for row in run(options):
                print(json.dumps(row), file=file)
    print(report(options.report or options.out))


if __name__ == "__main__":
    main()
