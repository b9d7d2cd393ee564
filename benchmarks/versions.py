"""Compare two checkouts of the package in one run: the same documents and queries, call by call, on the same server.

    git worktree add ../before 9eec61b
    python benchmarks/versions.py --before ../before                      # 2,000 documents on three stores
    python benchmarks/versions.py --before ../before --rows 300 --stores elasticsearch
    python benchmarks/versions.py --before ../before --precisions float16 int8 int4 int2 int1 --methods all
    python benchmarks/versions.py --report benchmarks/results/versions-2025-01-31.jsonl.gz

Each side is a process that imports the package of its checkout; this process only tells them whose turn it is. The
earlier side has one collection, in float16, and the later side one for each precision. They take turns for every call,
in the opposite order each second time, so that a disturbance of the machine affects all of them. Times are taken inside
the sides and include everything of ``Index.add`` and ``Index.search`` except the model, as in ``benchmarks/stores.py``,
whose documents these are.

Both sides import torch, as every process with an encoder has; ``--without-torch`` measures processes that have not.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gzip
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fixtures import BLOCK, PACKAGES, RESULTS, ROOT, Corpus, Fixed, place_of

from m3_connectors import connect
from m3_connectors.backends.base import Storage
from m3_connectors.bench.run import disk_bytes
from m3_connectors.blocking import Index
from m3_connectors.embeddings import COMPONENTS, M3Embeddings
from m3_connectors.environment import describe, environment
from m3_connectors.methods import METHODS

Row = dict[str, Any]

_SIDES = ("before", "after")
_WARM_UP = 3
_TRANSIENT = ("log", "second copy until merged")
"""Parts of a collection that do not grow with it, or only for a while."""


# -- one side: reads a call per line, answers with its time and hits


def serve(url: str, collection: str, directory: str, options: argparse.Namespace) -> None:
    """Answer calls on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints does not mix with the answers
    if not options.without_torch:
        importlib.import_module("torch")
    corpus = Corpus(options.documents, options.rows, options.dimension)
    queries = corpus.queries(options.queries + _WARM_UP, options.query_rows)
    encoder = Fixed(corpus.model, corpus.queries(32, options.query_rows))
    blocks = enumerate(corpus.blocks())
    written = -1
    with contextlib.ExitStack() as stack:
        indexes: dict[str, Index] = {}
        for precision in options.precisions:
            name, storage = f"{collection}_{precision}", Storage(multivector_dtype=precision)
            indexes[precision] = stack.enter_context(connect(url, name, encoder=encoder, storage=storage))
        print(json.dumps("ready"), file=answers)
        for line in sys.stdin:
            call = json.loads(line)
            index = indexes[call["precision"]]
            answer: Row = {}
            if call["kind"] == "search":
                query = queries[call["query"]]
                if call["scores"] == "its own":
                    query = _own(query, call["method"])
            elif call["kind"] == "write" and call["block"] > written:
                written, (documents, embeddings) = next(blocks)
            cpu, began = time.process_time(), time.perf_counter()
            match call["kind"]:
                case "write":
                    index.add(documents, embeddings=embeddings)
                case "search":
                    hits = index.search(query, method=call["method"], k=options.k)
                    answer["hits"] = [[hit.document.id, hit.score] for hit in hits]
                case "optimize":
                    index.optimize()
                case "disk":
                    answer["bytes"] = _disk(index, Path(directory) if directory else None)
            answer["seconds"] = round(time.perf_counter() - began, 6)
            answer["cpu_seconds"] = round(time.process_time() - cpu, 6)
            print(json.dumps(answer), file=answers)


def _disk(index: Index, directory: Path | None) -> dict[str, int] | None:
    return index._loop.run(lambda: disk_bytes(index._index._backend, directory))


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

    def __init__(self, checkout: Path, arguments: list[str], options: argparse.Namespace) -> None:
        settings = [
            f"--{name.replace('_', '-')}={getattr(options, name)}"
            for name in ("documents", "rows", "dimension", "query_rows", "queries", "k")
        ]
        settings += ["--without-torch"] * options.without_torch
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", *arguments, *settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": str(checkout.resolve())},
        )
        self._answer()

    def __call__(self, **call: Any) -> Row:
        """Make the side do one call, and return its times and what it found."""
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
    with place_of(store, options.directory) as place, contextlib.ExitStack() as stack:
        sides = {}
        for side in _SIDES:
            precisions = options.precisions if side == "after" else ["float16"]
            arguments = [place.url, f"documents_{side}", str(place.directory or "")]
            arguments += ["--precisions", *precisions]
            sides[side] = Side(getattr(options, side), arguments, options)
            stack.callback(sides[side].close)
        yield sides


# -- measuring


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield all rows of a run."""
    names = ("documents", "dimension", "rows", "query_rows", "queries", "k", "without_torch")
    commits = {side: _commit(getattr(options, side)) for side in _SIDES}
    yield environment(*PACKAGES, **{name: getattr(options, name) for name in names}, commits=commits)
    collections = [("before", "float16"), *(("after", precision) for precision in options.precisions)]
    for store in options.stores:
        with _sides(store, options) as sides:
            for block in range(-(-options.documents // BLOCK)):
                count = min(BLOCK, options.documents - block * BLOCK)
                for row in _turns(sides, collections, block, kind="write", block=block):
                    yield {"store": store, "documents": count, **row}
            # Milvus keeps a part in its log until then. Edge would build a graph, and Elasticsearch merge for minutes.
            for kind in ("optimize", "disk") if store == "milvus" else ("disk",):
                for row in _turns(sides, collections, 0, kind=kind):
                    yield {"store": store, **row}
            for query in range(options.queries + _WARM_UP):
                for method, scores in _cases(options.methods):
                    call = {"kind": "search", "query": query, "method": method, "scores": scores}
                    rows = list(_turns(sides, collections, query, **call))
                    found = {
                        (row["side"], row["precision"]): [id for id, _ in row.pop("hits")] for row in rows
                    }
                    for row in rows if query >= _WARM_UP else ():
                        same = found["before", "float16"] == found[row["side"], row["precision"]]
                        yield {"store": store, **row, "same_hits": same}
        print(f"{store}: measured", file=sys.stderr)


def _cases(methods: list[str]) -> Iterator[tuple[str, str]]:
    for method in methods:
        yield method, "all three"
        if METHODS[method].components != COMPONENTS:
            yield method, "its own"


def _turns(
    sides: dict[str, Side], collections: list[tuple[str, str]], turn: int, **call: Any
) -> Iterator[Row]:
    for side, precision in reversed(collections) if turn % 2 else collections:
        yield {"side": side, "precision": precision, **call, **sides[side](precision=precision, **call)}


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# -- the report


def report(paths: list[Path]) -> str:
    """Return the tables of files of rows, such as one for each store, all measured with the same options."""
    rows: list[Row] = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            machine, *some = [json.loads(line) for line in file]
        rows += some
    torch = "without torch" if machine["without_torch"] else "torch imported, as in a process with an encoder"
    lines = [
        f"{machine['documents']:,} documents of {machine['rows']} rows of {machine['dimension']:,}, queries of "
        f"{machine['query_rows']} rows, top {machine['k']}, {machine['queries']} queries; before "
        f"{machine['commits']['before']}, after {machine['commits']['after']}; {torch}; {describe(machine)}; load "
        f"{machine['load_average'][0]:.1f}.",
        "",
        "| store | collection | documents/s | bytes a document | of them multi-vectors | bytes, before / this |",
        "|---" * 6 + "|",
    ]
    stores = dict.fromkeys(row["store"] for row in rows)
    collections = dict.fromkeys((row["side"], row["precision"]) for row in rows if row["side"] == "before")
    collections |= dict.fromkeys((row["side"], row["precision"]) for row in rows)
    for store in stores:
        lines += _sizes([row for row in rows if row["store"] == store], store, list(collections), machine)
    lines += [
        "",
        "| store | method | scores of a hit | collection | p50 ms | p95 ms | client CPU ms | before / this, p50 (95 %) "
        "| same hits |",
        "|---" * 9 + "|",
    ]
    searched = [row for row in rows if row["kind"] == "search"]
    for case in dict.fromkeys((row["store"], row["method"], row["scores"]) for row in searched):
        chosen = [row for row in searched if (row["store"], row["method"], row["scores"]) == case]
        lines += _searches(chosen, case, list(collections))
    return "\n".join(lines)


def _sizes(rows: list[Row], store: str, collections: list[tuple[str, str]], machine: Row) -> Iterator[str]:
    """Yield a line for each collection of a store; the first block, on a cold server, does not count."""
    first = min(1, max(row["block"] for row in rows if row["kind"] == "write"))
    for own in ([row for row in rows if (row["side"], row["precision"]) == one] for one in collections):
        written = [row for row in own if row["kind"] == "write" and row["block"] >= first]
        rate = sum(row["documents"] for row in written) / sum(row["seconds"] for row in written)
        parts = next(row["bytes"] for row in own if row["kind"] == "disk")
        sizes = ["not reported"] * 3
        if parts is not None:
            total = sum(size for part, size in parts.items() if part not in _TRANSIENT) / machine["documents"]
            if own[0]["side"] == "before":
                reference = total
            vectors = parts.get("multivector", 0) / machine["documents"]
            sizes = [f"{total:,.0f}", f"{vectors:,.0f}", f"{reference / total:.2f}"]
        cells = [store, _name(own[0]), f"{rate:,.0f}", *sizes]
        yield "| " + " | ".join(cells) + " |"


def _searches(
    rows: list[Row], case: tuple[str, str, str], collections: list[tuple[str, str]]
) -> Iterator[str]:
    """Yield a line for each collection; ratios have intervals by drawing queries, each with both of its times."""
    seconds = {
        one: np.array([row["seconds"] for row in rows if (row["side"], row["precision"]) == one]) * 1e3
        for one in collections
    }
    before = seconds["before", "float16"]
    drawn = np.random.default_rng(0).integers(len(before), size=(2000, len(before)))
    for one, times in seconds.items():
        own = [row for row in rows if (row["side"], row["precision"]) == one]
        ratios = np.median(before[drawn], axis=1) / np.median(times[drawn], axis=1)
        low, high = np.percentile(ratios, [2.5, 97.5])
        ratio = f"**{np.median(before) / np.median(times):.2f}** ({low:.2f}–{high:.2f})"
        compared = one == ("after", "float16")
        cells = [
            *case,
            _name(own[0]),
            *(f"{value:.1f}" for value in np.percentile(times, [50, 95])),
            f"{1e3 * np.median([row['cpu_seconds'] for row in own]):.1f}",
            "" if one[0] == "before" else ratio,
            f"{sum(row['same_hits'] for row in own)} of {len(own)}" if compared else "",
        ]
        yield "| " + " | ".join(cells) + " |"


def _name(row: Row) -> str:
    return f"{row['side']}, {row['precision']}"


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
    stores = ["qdrant-edge", "milvus", "elasticsearch"]
    parser.add_argument("--precisions", nargs="+", default=["float16"], help="of the later side")
    parser.add_argument("--without-torch", action="store_true", help="do not import torch")
    parser.add_argument("--stores", nargs="+", choices=stores, default=stores)
    parser.add_argument("--directory", help="folder for the data during the run")
    parser.add_argument("--out", type=Path, default=RESULTS / f"versions-{today}.jsonl.gz")
    parser.add_argument(
        "--report", type=Path, nargs="+", help="print the tables of earlier runs without measuring"
    )
    parser.add_argument(
        "--serve", nargs=3, metavar=("URL", "COLLECTION", "DIRECTORY"), help=argparse.SUPPRESS
    )
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
    print(report(options.report or [options.out]))


if __name__ == "__main__":
    main()
