"""Filters in Qdrant's terms mean what ``filters.matches`` means: on the real engine and on the client's own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as engine
from qdrant_client import QdrantClient, models

from m3_connectors.backends.qdrant.filters import edge_filter
from m3_connectors.backends.qdrant.payload import document_of, payload_of, point_id
from m3_connectors.backends.qdrant.server_filters import server_filter
from m3_connectors.documents import Document
from m3_connectors.filters import And, Filter, OneOf, Or, matches, parse_filter

FIELDS = ("a", "a.b", "a.b.c", "x y", "日本", "0")
VALUES = (
    "", "en", "EN", "true", "1", "2024-05-31", "2024-05-31T12:00:00Z", "2024-05-31T14:00:00+02:00", "2024-5-31",
    "2024-06-30T23:59:60Z", "soon", 0, 1, 1.0, -1, 2.5, 0.1, 2**53 - 1, 1e-9, True, False,
)  # fmt: skip
BOUNDS = (0, 1, 1.5, -2, 0.1, "2024-05-31", "2024-05-31T12:00:00Z", "2025-01-01")


def any_metadata(rng: random.Random) -> dict[str, Any]:
    def value(depth: int) -> Any:
        kind = rng.random()
        if kind < 0.2 and depth < 2:
            return {key: value(depth + 1) for key in ("b", "c", "d") if rng.random() < 0.6}
        if kind < 0.4:
            return [rng.choice((*VALUES, None)) for _ in range(rng.randrange(3))]
        return rng.choice((*VALUES, None))

    return {key: value(0) for key in ("a", "x y", "日本", "0") if rng.random() < 0.7}


def any_filter(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kind = rng.random()
    if kind < 0.3 and depth < 3:
        parts = [any_filter(rng, depth + 1) for _ in range(rng.randint(1, 3))]
        return {rng.choice(("$and", "$or")): parts}
    if kind < 0.45 and depth < 3:
        return {"$not": any_filter(rng, depth + 1)}
    operator = rng.choice(("$eq", "$ne", "$in", "$nin", "$exists", "$gt", "$gte", "$lt", "$lte"))
    operand: Any = rng.choice(VALUES)
    if operator in ("$in", "$nin"):
        operand = [rng.choice(VALUES) for _ in range(rng.randint(1, 3))]
    elif operator == "$exists":
        operand = rng.random() < 0.5
    elif operator in ("$gt", "$gte", "$lt", "$lte"):
        operand = rng.choice(BOUNDS)
    return {rng.choice(FIELDS): {operator: operand}}


def filters() -> list[Filter]:
    rng = random.Random(11)
    parsed = [parse_filter(any_filter(rng)) for _ in range(400)]
    return [And(()), Or(()), OneOf("a", ()), *(found for found in parsed if found is not None)]


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    rng = random.Random(10)
    return [Document(f"d{i}", "text", any_metadata(rng)) for i in range(150)]


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
