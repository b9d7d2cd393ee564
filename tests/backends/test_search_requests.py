"""How many requests a search and an add send to each store: what the round trips of every user depend on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_fake import FakeQdrant

from m3_connectors.backends.base import Storage
from m3_connectors.backends.registry import backend_for
from m3_connectors.bench.trips import counting, observed
from m3_connectors.methods import METHODS
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.servers.start import Running
from m3_connectors.testing.worlds import make_world


async def requests_of(
    url: str, options: dict[str, Any], seen: list[Any] | None = None, precision: Any = "float16"
) -> dict[str, int]:
    """Requests by name of the method and k; ``seen`` is a stand-in's own list of requests."""
    world = make_world(77, documents=300, most_rows=6, storage=Storage(precision))
    backend = backend_for(url, "requests", options)
    counts: dict[str, int] = {}
    with observed(type(backend)):
        await backend.create(world.schema)
        try:
            with counting() as trips:
                before = len(seen or ())
                await backend.upsert(world.documents, world.embeddings)
            counts["add 300"] = trips.count if seen is None else len(seen) - before
            await backend.search(world.queries[0], METHODS["all"], 5)  # hints of sizes are there from now on
            for name, method in METHODS.items():
                for k in (5, 50):
                    before = len(seen or ())
                    with counting() as trips:
                        assert len(await backend.search(world.queries[0], method, k)) == k
                    counts[f"{name} {k}"] = trips.count if seen is None else len(seen) - before
        finally:
            await backend.drop()
            await backend.close()
    return counts


def table(
    dense: str, sparse: str, multi_vec: str, dense_sparse: str, all: str, *, add: int
) -> dict[str, int]:
    """Requests of each method for k = 5 and k = 50."""
    rows = {
        "dense": dense,
        "sparse": sparse,
        "multi_vec": multi_vec,
        "dense_sparse": dense_sparse,
        "all": all,
    }
    counts = {
        f"{name} {k}": int(n) for name, row in rows.items() for k, n in zip((5, 50), row.split(), strict=True)
    }
    return {"add 300": add, **counts}


@pytest.mark.parametrize("precision", ["float16", "int2"])
@runs
async def test_edge(tmp_path: Path, precision: str) -> None:
    """Calls of the engine, which are made in one turn of its worker; lists bring the places of rows in the file."""
    want = table(dense="4 4", sparse="4 4", multi_vec="5 5", dense_sparse="5 5", all="4 4", add=1)
    if precision == "int2":
        want = table(dense="4 4", sparse="4 4", multi_vec="4 4", dense_sparse="5 5", all="4 4", add=1)
    assert await requests_of(f"qdrant:{tmp_path}", {}, precision=precision) == want


@pytest.fixture
def fake() -> Iterator[FakeQdrant]:
    with FakeQdrant() as started:
        yield started


@pytest.mark.parametrize("precision", ["float16", "int2"])
@runs
async def test_qdrant_server(fake: FakeQdrant, precision: str) -> None:
    """Lists, then what they lack, then the scores that hits show and their documents at the same time.

    The first list that is longer than the collection is asked for twice; from then on its size is known.
    """
    want = table(dense="3 3", sparse="3 3", multi_vec="4 4", dense_sparse="6 5", all="3 3", add=1)
    assert await requests_of(fake.url, {"grpc_port": fake.grpc_port}, fake.requests, precision) == want


@pytest.mark.live
@runs
async def test_milvus(milvus_store: Running) -> None:
    """The documents of 50 hits are read by the index, for all queries at once."""
    want = table(dense="1 2", sparse="1 2", multi_vec="3 3", dense_sparse="3 3", all="3 2", add=2)
    assert await requests_of(milvus_store.url, dict(milvus_store.options)) == want


@pytest.mark.live
@runs
async def test_elasticsearch(elasticsearch_store: Running) -> None:
    """The documents of 50 hits are read by the index, for all queries at once."""
    want = table(dense="1 2", sparse="2 3", multi_vec="3 3", dense_sparse="4 4", all="3 2", add=3)
    assert await requests_of(elasticsearch_store.url, dict(elasticsearch_store.options)) == want
