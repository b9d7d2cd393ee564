"""Filters in Qdrant's terms mean what ``filters.matches`` means: on the real engine and on the client's own."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import qdrant_edge as engine
from qdrant_client import QdrantClient, models

from m3_connectors.backends.qdrant.filters import edge_filter
from m3_connectors.backends.qdrant.payload import document_of, payload_of, point_id
from m3_connectors.backends.qdrant.server_filters import server_filter
from m3_connectors.documents import Document
from m3_connectors.filters import And, Filter, OneOf, Or, matches, parse_filter
from m3_connectors.testing.questions import random_filter, random_metadata


def filters() -> list[Filter]:
    rng = random.Random(11)
    parsed = [parse_filter(random_filter(rng)) for _ in range(400)]
    return [And(()), Or(()), OneOf("a", ()), *(found for found in parsed if found is not None)]


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    rng = random.Random(10)
    return [Document(f"d{i}", "text", random_metadata(rng)) for i in range(150)]


def expected(filter: Filter, documents: list[Document]) -> int:
    return sum(matches(filter, document.metadata) for document in documents)


def test_the_engine_agrees(tmp_path: Path, documents: list[Document]) -> None:
    shard = engine.EdgeShard.create(
        str(tmp_path), engine.EdgeConfig({"dense": engine.EdgeVectorParams(1, engine.Distance.Dot)})
    )
    points = [engine.Point(point_id(d.id), {"dense": [1.0]}, payload_of(d)) for d in documents]
    shard.update(engine.UpdateOperation.upsert_points(points))
    told_apart = 0
    for filter in filters():
        want = expected(filter, documents)
        told_apart += 0 < want < len(documents)
        assert shard.count(engine.CountRequest(exact=True, filter=edge_filter(filter))) == want, filter
    assert told_apart > 200
    shard.close()


def test_the_clients_engine_agrees(documents: list[Document]) -> None:
    client = QdrantClient(":memory:")
    client.create_collection("c", models.VectorParams(size=1, distance=models.Distance.DOT))
    points = [
        models.PointStruct(id=str(point_id(d.id)), vector=[1.0], payload=payload_of(d)) for d in documents
    ]
    client.upsert("c", points)
    for filter in filters():
        assert client.count("c", server_filter(filter)).count == expected(filter, documents), filter
    client.close()


def test_metadata_come_back_to_the_last_bit(tmp_path: Path) -> None:
    rng = random.Random(12)
    metadata = {
        "floats": [rng.random() * 10.0 ** rng.randint(-300, 300) for _ in range(500)],
        "n": 2**63 - 1,
        "": None,
    }
    document = Document("d", "text", metadata)
    shard = engine.EdgeShard.create(
        str(tmp_path), engine.EdgeConfig({"dense": engine.EdgeVectorParams(1, engine.Distance.Dot)})
    )
    shard.update(
        engine.UpdateOperation.upsert_points(
            [engine.Point(point_id("d"), {"dense": [1.0]}, payload_of(document))]
        )
    )
    (record,) = shard.retrieve([point_id("d")], True, False)
    assert record.payload is not None
    assert record.payload["metadata"] != metadata, "the engine keeps floats exactly now: one copy would do"
    assert document_of(record.payload) == document
    shard.close()
