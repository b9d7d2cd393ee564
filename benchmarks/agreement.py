"""Compare each store's answers with the oracle's: random worlds, every storage precision, and one long document.

    python benchmarks/agreement.py                     # every store that this machine can start
    python benchmarks/agreement.py elasticsearch milvus+http://127.0.0.1:19530 --worlds 20
    python benchmarks/agreement.py edge --precisions int4 int2 --worlds 3
    python benchmarks/agreement.py --report benchmarks/results/agreement-2025-01-31.jsonl

A world is a seeded collection of documents, vectors, metadata, queries and filters (``m3_connectors.testing.worlds``).
Every query is searched with every method and with two methods of random weights and depths, half of them with a filter.
Ids and order must be those of the oracle and each score within 1e-5; otherwise the run ends with the search that
disagrees. The long document has 8,191 rows of 1,024 dimensions; it is scored with queries of which some rows match its
first, middle and last row.

One row per store, precision and world is written to a JSON Lines file, after a record of the machine; the table is
generated from that file alone. Servers are found in the same way as in tests: named in the environment, a container, or
a process on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from fixtures import PACKAGES, ROOT

from m3_connectors.backends.base import Backend, Storage
from m3_connectors.backends.precision import PRECISIONS, PrecisionName
from m3_connectors.backends.registry import backend_for
from m3_connectors.environment import describe, environment
from m3_connectors.errors import M3Error
from m3_connectors.methods import ALL, Method, Weights
from m3_connectors.testing.agreement import (
    METHODS_TO_COMPARE,
    compare_search,
    compare_world,
    largest_of,
    oracle_of,
)
from m3_connectors.testing.servers import CannotStart
from m3_connectors.testing.servers.start import STORES, start
from m3_connectors.testing.worlds import World, join, make_world, unit_rows

Row = dict[str, Any]

COMPOSE = ROOT / "docker" / "compose.yaml"
COMPONENTS = ("dense", "sparse", "multivector", "fused")
EMBEDDED = {
    "edge": ("Qdrant Edge", "qdrant:{}/edge"),
    "lite": ("Milvus Lite, embedded", "milvus:{}/data.db"),
}
LONG_ROWS, LONG_DIMENSION = 8191, 1024


@dataclasses.dataclass(frozen=True)
class Store:
    """One store to compare: its name in the table, its URL and options."""

    name: str
    url: str
    options: dict[str, Any]

    def backend(self, collection: str) -> Backend:
        return backend_for(self.url, collection, self.options)


def started(names: Iterable[str]) -> Generator[Store, None, None]:
    """Yield stores one after the other, by URL or name; a named store is started here and removed afterwards."""
    for name in names:
        if name in EMBEDDED:
            with tempfile.TemporaryDirectory() as directory:
                yield Store(EMBEDDED[name][0], EMBEDDED[name][1].format(directory), {})
        elif name not in STORES:
            yield Store(name, name, {})
        else:
            try:
                running = start(name, compose=COMPOSE)  # type: ignore[arg-type]
            except CannotStart as reason:
                print(f"left out: {reason}", file=sys.stderr)
                continue
            lite = (name, running.how) == ("milvus", "process")
            try:
                yield Store(
                    "Milvus Lite, server" if lite else name.title(), running.url, dict(running.options)
                )
            finally:
                running.stop()


def run(stores: Iterable[Store], precisions: Sequence[PrecisionName], worlds: int) -> Iterator[Row]:
    """Yield a row for each store, precision and world, and one for each store's long document."""
    yield environment(*PACKAGES, worlds=worlds)
    for store in stores:
        for precision in precisions:
            yield anyio.run(_long, store, precision)
        for seed in range(worlds):
            for precision in precisions:
                yield anyio.run(_world, store, precision, seed)
        print(f"{store.name}: {worlds} worlds agree in each precision", file=sys.stderr)


async def _world(store: Store, precision: PrecisionName, seed: int) -> Row:
    rng = np.random.default_rng(seed)
    world = make_world(
        7000 + seed,
        documents=int(rng.integers(20, 200)),
        dimension=int(rng.choice([16, 24, 64, 256])),
        most_rows=int(rng.choice([1, 20, 60])),
        storage=Storage(precision),
    )
    weights = (Weights(*rng.gamma(1.0, 1.0, 3)), Weights(*rng.dirichlet((1, 1, 1))))
    dense, sparse = rng.integers(1, 60, size=2).tolist()
    random = Method("random", {"dense": dense, "sparse": sparse}, weights[1])
    methods = (*METHODS_TO_COMPARE, ALL.weighted(*weights[0]), random)
    async with _stored(store, world) as backend:
        started = time.perf_counter()
        parts = await compare_world(backend, world, methods=methods, shift=seed)
        seconds = time.perf_counter() - started
    row = {"kind": "world", "store": store.name, "precision": precision, "seed": 7000 + seed}
    return {**row, "searches": len(parts), "seconds": round(seconds, 3), "largest": largest_of(parts)}


async def _long(store: Store, precision: PrecisionName) -> Row:
    """Check a document of 8,191 rows among short ones: its scores, and searches that must find it."""
    rng = np.random.default_rng(8191)
    small = make_world(8191, documents=4, dimension=LONG_DIMENSION, storage=Storage(precision))
    rows = unit_rows(rng.normal(size=(LONG_ROWS, LONG_DIMENSION)))
    texts = [(rows[0], {2: 0.5}, rows), *((row, {2: 0.5}, row[None]) for row in rows[1:4])]
    ends = join([(rows[0], {2: 1.0}, rows[[0, LONG_ROWS // 2, -1]])], small.schema.model)
    world = dataclasses.replace(
        small, embeddings=join(texts, small.schema.model), queries=[*small.queries, ends]
    )
    ids = [document.id for document in world.documents]
    started = time.perf_counter()
    async with _stored(store, world) as backend:
        write_seconds = time.perf_counter() - started
        oracle = await oracle_of(world)
        parts = [await compare_search(backend, oracle, query, ALL, 4) for query in world.queries]
        for query in world.queries:
            got = await backend.score("multivector", query, ids)
            want = await oracle.score("multivector", query, ids)
            parts.append({"multivector": float(np.abs(got - want).max())})
        (found,) = await backend.score("multivector", ends, ids[:1])
    assert found > 0.999, f"{store.name} scores rows of the long document {found} against themselves"
    row = {"kind": "long", "store": store.name, "precision": precision, "rows": LONG_ROWS}
    row |= {"dimension": LONG_DIMENSION, "write_seconds": round(write_seconds, 3)}
    return {**row, "searches": len(world.queries), "largest": largest_of(parts)}


@contextlib.asynccontextmanager
async def _stored(store: Store, world: World) -> AsyncIterator[Backend]:
    """Create a collection that holds a world and drop it afterwards; an existing collection is never used."""
    backend = store.backend(f"agreement-{uuid.uuid4().hex[:12]}")
    try:
        await backend.create(world.schema)
        await backend.upsert(world.documents, world.embeddings)
        yield backend
    finally:
        await backend.drop()
        await backend.close()


def report(path: Path) -> str:
    """Return the table in Markdown."""
    machine, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["kind"] != "environment"]  # one more for each additional run
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    lines = [f"{describe(machine)}; {versions}.", ""]
    lines += [
        "| store | multi-vectors | worlds | searches | dense | sparse | multi-vector | fused | 8,191 × 1,024 |"
    ]
    lines.append("|---" * 9 + "|")
    for store in dict.fromkeys(row["store"] for row in rows):
        for precision in dict.fromkeys(row["precision"] for row in rows if row["store"] == store):
            ours = [row for row in rows if (row["store"], row["precision"]) == (store, precision)]
            worlds = [row for row in ours if row["kind"] == "world"]
            long = largest_of([row["largest"] for row in ours if row["kind"] == "long"])
            largest = largest_of([row["largest"] for row in worlds])
            cells = [store, precision, f"{len(worlds)}", f"{sum(row['searches'] for row in worlds):,}"]
            cells += [f"{largest[name]:.1e}" for name in COMPONENTS] + [f"{long['multivector']:.1e}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*EMBEDDED, *STORES]
    parser.add_argument(
        "stores", nargs="*", help=f"URLs, or any of {', '.join(known)}; default: all of these"
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--worlds", type=int, default=100, help="for each store and precision")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/agreement-DATE.jsonl")
    parser.add_argument("--report", type=Path, help="only print the table of this file")
    options = parser.parse_args()
    for name in options.stores:
        if name not in known:
            try:
                backend_for(name)
            except M3Error as error:
                parser.error(str(error))
    path = options.report
    if path is None:
        path = options.out or ROOT / "benchmarks" / "results" / f"agreement-{datetime.date.today()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen = contextlib.closing(started(options.stores or known))
        with path.open("w", encoding="utf-8") as file, chosen as stores:
            for row in run(stores, options.precisions, options.worlds):
                file.write(json.dumps(row) + "\n")
                file.flush()
    print(report(path))


if __name__ == "__main__":
    main()
