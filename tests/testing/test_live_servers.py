"""What tests leave on a server is seen at the end of the run."""

from __future__ import annotations

import dataclasses
import functools
import uuid

import anyio
import pytest
from live_servers import RUN, collections_of, drop, left_behind, own

from m3_connectors.backends.registry import backend_for
from m3_connectors.testing.servers.start import Running
from m3_connectors.testing.worlds import make_world

OTHER = f"somebody-elses-{uuid.uuid4().hex[:12]}"


@pytest.mark.parametrize("store", ["qdrant", "milvus", "elasticsearch"])
def test_a_collection_that_a_test_left_behind_is_named(store: str, request: pytest.FixtureRequest) -> None:
    running: Running = request.getfixturevalue(f"{store}_store")
    before = collections_of(running)
    for collection in (own("left"), OTHER):
        anyio.run(_make, running, collection)
    try:
        named = left_behind(dataclasses.replace(running, how="environment"), before)
        started = left_behind(dataclasses.replace(running, how="process"), before)
    finally:
        for collection in (own("left"), OTHER):
            anyio.run(functools.partial(drop, running.url, collection, **running.options))
    assert named
    assert all(RUN in name for name in named)
    assert any("somebody" in name for name in started - named)
    assert left_behind(dataclasses.replace(running, how="process"), before) == set()


async def _make(running: Running, collection: str) -> None:
    backend = backend_for(running.url, collection, running.options)
    await backend.create(make_world(1).schema)
    await backend.close()
