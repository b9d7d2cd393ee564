"""Collections of milvus-lite, and another program on the same engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymilvus import MilvusClient

from m3_connectors.backends.milvus import lite
from m3_connectors.backends.milvus.backend import MilvusBackend
from m3_connectors.testing.worlds import World


def embedded(directory: Path, collection: str = "notes", **options: Any) -> MilvusBackend:
    return MilvusBackend.from_url(f"milvus:{directory}/data.db", collection, options)


async def filled(backend: MilvusBackend, world: World) -> MilvusBackend:
    """Create the collection and store the documents of a world."""
    await backend.create(world.schema)
    await backend.upsert(world.documents, world.embeddings)
    return backend


@pytest.fixture
def client(tmp_path: Path) -> Iterator[MilvusClient]:
    """Another program on the same engine."""
    engine = lite.acquire(tmp_path / "data.db")
    client = MilvusClient(engine.uri, dedicated=True)
    yield client
    client.close()
    lite.release(engine)
