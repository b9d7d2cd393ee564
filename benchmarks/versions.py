"""Compare two checkouts of the package in one run: the same documents and queries, call by call, on the same server.

    git worktree add ../before 9eec61b
    python benchmarks/versions.py --before ../before                      # 2,000 documents on three stores
    python benchmarks/versions.py --before ../before --rows 300 --stores elasticsearch
    python benchmarks/versions.py --report benchmarks/results/versions-2025-01-31.jsonl.gz

Each side is a process of its own that imports the package of its checkout and has its own collection; this process
only tells them whose turn it is. The sides alternate for every call, and so does the side that begins, so that a
disturbance of the machine affects both. Times are taken inside the sides and include everything of ``Index.add`` and
``Index.search`` except the model, as in ``benchmarks/stores.py``, whose documents these are.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from stores import BLOCK, STORES, Corpus, Fixed

from m3_connectors import connect
from m3_connectors.embeddings import COMPONENTS, M3Embeddings
from m3_connectors.environment import describe, environment
from m3_connectors.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]

_SIDES = ("before", "after")
_WARM_UP = 3
_PACKAGES = ("qdrant-edge-py", "pymilvus", "milvus-lite", "elasticsearch", "numpy", "scipy", "anyio")


# -- one side: reads a call per line, answers with its time and hits


def serve(url: str, collection: str, options: argparse.Namespace) -> None:
    """Answer calls on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints does not mix with the answers
    corpus = Corpus(options.documents, options.rows, options.dimension)
    queries = corpus.queries(options.queries + _WARM_UP, options.query_rows)
    blocks = corpus.blocks()
    with connect(url, collection, encoder=Fixed(corpus.model)) as index:
        print(json.dumps("ready"), file=answers)
        for line in sys.stdin:
            call = json.loads(line)
            hits: list[Any] = []
            if call["kind"] == "write":
                documents, embeddings = next(blocks)
                cpu, began = time.process_time(), time.perf_counter()
                index.add(documents, embeddings=embeddings)
            else:
                query = queries[call["query"]]
                if call["scores"] == "its own":
                    query = _own(query, call["method"])
                cpu, began = time.process_time(), time.perf_counter()
                hits = index.search(query, method=call["method"], k=options.k)
            seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
            answer = {
                "seconds": round(seconds, 6),
                "cpu_seconds": round(cpu_seconds, 6),
                "hits": [[hit.document.id, hit.score] for hit in hits],
            }
            print(json.dumps(answer), file=answers)


def _own(query: M3Embeddings, method: str) -> M3Embeddings:
    components = METHODS[method].components
    return M3Embeddings(
        query.dense if "dense" in components else None,
        query.sparse if "sparse" in components else None,
        query.multivectors if "multivector" in components else None,
        model=query.model,
    )


class Side:
    """The process of one checkout."""

    def __init__(self, checkout: Path, url: str, collection: str, options: argparse.Namespace) -> None:
        settings = [
            f"--{name.replace('_', '-')}={getattr(options, name)}"
            for name in ("documents", "rows", "dimension", "query_rows", "queries", "k")
        ]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", url, collection, *settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": str(checkout.resolve())},
        )
        self._answer()

    def __call__(self, **call: Any) -> Row:
        """Make the side do one call, and return its times and hits."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(call) + "\n")
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with status {self._process.wait()}; its error is printed above")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextlib.contextmanager
def _sides(store: str, options: argparse.Namespace) -> Iterator[dict[str, Side]]:
    with tempfile.TemporaryDirectory(dir=options.directory) as directory, contextlib.ExitStack() as stack:
        if store == "qdrant-edge":
            places = {side: (f"qdrant:{directory}/{side}", "documents") for side in _SIDES}
        else:
            url = stack.enter_context(_server(store))
            places = {side: (url, f"documents_{side}") for side in _SIDES}
        sides = {}
        for side, (url, collection) in places.items():
            sides[side] = Side(getattr(options, side), url, collection, options)
            stack.callback(sides[side].close)
        yield sides


@contextlib.contextmanager
def _server(store: str) -> Iterator[str]:
    if store == "milvus":
        from m3_connectors.testing.servers.milvus import milvus_server

        with milvus_server() as milvus:
            yield f"milvus+{milvus.url}"
    else:
        from m3_connectors.testing.servers.elasticsearch import elasticsearch_server

        with elasticsearch_server() as elasticsearch:
            yield f"elasticsearch+{elasticsearch.url}"


# -- measuring


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield all rows of a run."""
    settings = {name: getattr(options, name) for name in ("documents", "dimension", "rows", "query_rows")}
    commits = {side: _commit(getattr(options, side)) for side in _SIDES}
    yield environment(*_PACKAGES, **settings, queries=options.queries, k=options.k, commits=commits)
    for store in options.stores:
        with _sides(store, options) as sides:
            for block in range(-(-options.documents // BLOCK)):
                for row in _turns(sides, block, kind="write"):
                    yield {"store": store, "kind": "write", "block": block, **row}
            for query in range(options.queries + _WARM_UP):
                for method, scores in _cases(options.methods):
                    rows = list(
                        _turns(sides, query, kind="search", query=query, method=method, scores=scores)
                    )
                    first, second = (row.pop("hits") for row in rows)
                    same = [hit[0] for hit in first] == [hit[0] for hit in second]
                    if query >= _WARM_UP:
                        for row in rows:
                            case = {
                                "kind": "search",
                                "method": method,
                                "scores": scores,
                                "query": query - _WARM_UP,
                            }
                            yield {"store": store, **case, **row, "same_hits": same}


def _cases(methods: list[str]) -> Iterator[tuple[str, str]]:
    for method in methods:
        yield method, "all three"
        if METHODS[method].components != COMPONENTS:
            yield method, "its own"


def _turns(sides: dict[str, Side], turn: int, **call: Any) -> Iterator[Row]:
    for place, side in enumerate(reversed(_SIDES) if turn % 2 else _SIDES):
        row = sides[side](**call)
        if call["kind"] == "write":
            del row["hits"]
        yield {"side": side, "first": not place, **row}


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# -- the report


def report(path: Path) -> str:
    """Return the table of one file of rows."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    machine = next(row for row in rows if row["kind"] == "environment")
    lines = [
        f"{machine['documents']:,} documents of {machine['rows']} rows of {machine['dimension']:,}, queries of "
        f"{machine['query_rows']} rows, top {machine['k']}, {machine['queries']} queries; before "
        f"{machine['commits']['before']}, after {machine['commits']['after']}; {describe(machine)}; load "
        f"{machine['load_average'][0]:.1f}.",
        "",
        "| store | call | scores of a hit | before, p50 ms | after, p50 ms | after / before (95 %) | same hits |",
        "|---|---|---|---|---|---|---|",
    ]
    cases = dict.fromkeys((r["store"], r["kind"], r.get("method", ""), r.get("scores", "")) for r in rows[1:])
    for store, kind, method, scores in cases:
        chosen = [
            r
            for r in rows[1:]
            if (r["store"], r["kind"], r.get("method", ""), r.get("scores", ""))
            == (store, kind, method, scores)
        ]
        before, after = (
            np.array([r["seconds"] for r in chosen if r["side"] == side]) * 1e3 for side in _SIDES
        )
        if kind == "write":
            before, after = before[1:], after[1:]  # the first block runs on a cold server
        drawn = np.random.default_rng(0).integers(len(before), size=(2000, len(before)))
        ratios = np.median(after[drawn], axis=1) / np.median(before[drawn], axis=1)
        low, high = np.percentile(ratios, [2.5, 97.5])
        ratio = np.median(after) / np.median(before)
        same = [r["same_hits"] for r in chosen if r["side"] == "after"] if kind == "search" else []
        cells = [
            store,
            method or "add",
            scores,
            f"{np.median(before):.1f}",
            f"{np.median(after):.1f}",
            f"**{ratio:.3f}** ({low:.3f}–{high:.3f})",
            f"{sum(same)} of {len(same)}" if same else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--before", type=Path, help="folder of the earlier checkout")
    parser.add_argument("--after", type=Path, default=ROOT, help="folder of the later checkout (this one)")
    parser.add_argument("--documents", type=int, default=2_000)
    parser.add_argument("--rows", type=int, default=64, help="multi-vector rows per document")
    parser.add_argument("--dimension", type=int, default=1024)
    parser.add_argument("--query-rows", type=int, default=32)
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    stores = [store for store in STORES if store in ("qdrant-edge", "milvus", "elasticsearch")]
    parser.add_argument("--stores", nargs="+", choices=stores, default=stores)
    parser.add_argument("--directory", help="folder for the data during the run")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / f"versions-{today}.jsonl.gz"
    )
    parser.add_argument("--report", type=Path, help="print the table of an earlier run without measuring")
    parser.add_argument("--serve", nargs=2, metavar=("URL", "COLLECTION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve, options)
        return
    if not options.report:
        if not options.before:
            parser.error("--before is required: give the folder of the earlier checkout")
        with gzip.open(options.out, "wt", encoding="utf-8") as file:
            for row in run(options):
                file.write(json.dumps(row) + "\n")
    print(report(options.report or options.out))


if __name__ == "__main__":
    main()
