"""Filters in Qdrant's terms mean what ``filters.matches`` means: on the real engine and on the client's own."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as engine
from qdrant_client import QdrantClient, models

from m3_connectors.backends.qdrant.edge.filters import edge_filter
from m3_connectors.backends.qdrant.payload import document_of, payload_of, point_id
from m3_connectors.backends.qdrant.server.filters import server_filter
from m3_connectors.dates import parse_date
from m3_connectors.documents import Document
from m3_connectors.filters import And, Filter, OneOf, Or, matches, numbers_of, parse_filter
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


def earlier_payload(document: Document) -> dict[str, Any]:
    """The payload as format 1 has it: the metadata as they came, and flags and dates in the same nesting."""

    def select(tree: dict[str, Any], form: Callable[[Any], str | None]) -> dict[str, Any]:
        chosen: dict[str, Any] = {}
        for key, value in tree.items():
            if isinstance(value, dict):
                chosen[key] = select(value, form)
            elif isinstance(value, list):
                chosen[key] = [found for item in value if (found := form(item)) is not None]
            else:
                chosen[key] = form(value)
        return {key: value for key, value in chosen.items() if value not in (None, {}, [])}

    def date(value: object) -> str | None:
        found = parse_date(value)
        return None if found is None else found.isoformat(timespec="microseconds")

    metadata = dict(document.metadata)
    return {
        "id": document.id,
        "text": document.text,
        "json": json.dumps(metadata),
        "metadata": metadata,
        "flags": select(metadata, lambda value: str(value).lower() if isinstance(value, bool) else None),
        "dates": select(metadata, date),
    }


def test_documents_of_an_earlier_format_answer_what_they_did(tmp_path: Path) -> None:
    rng = random.Random(13)
    values = ["en", "", "2024-05-31", "2024-05-31T14:00:00+02:00", 0, 1, 1.0, 2.5, -7, True, False, None]

    def value(depth: int) -> Any:
        if depth < 3 and rng.random() < 0.3:
            return {key: value(depth + 1) for key in ("a", "b") if rng.random() < 0.7}
        if rng.random() < 0.3:
            return [rng.choice(values) for _ in range(rng.randrange(3))]
        return rng.choice(values)

    documents = [
        Document(f"d{i}", "text", {key: value(0) for key in ("a", "b", "c") if rng.random() < 0.8})
        for i in range(150)
    ]
    shard = engine.EdgeShard.create(
        str(tmp_path), engine.EdgeConfig({"dense": engine.EdgeVectorParams(1, engine.Distance.Dot)})
    )
    points = [engine.Point(point_id(d.id), {"dense": [1.0]}, earlier_payload(d)) for d in documents]
    shard.update(engine.UpdateOperation.upsert_points(points))
    parsed = [parse_filter(random_filter(rng)) for _ in range(1000)]
    asked = [each for each in parsed if each and all(abs(number) < 2**53 for number in numbers_of(each))]
    assert sum(0 < expected(filter, documents) < len(documents) for filter in asked) > 50
    for filter in asked:
        assert shard.count(engine.CountRequest(exact=True, filter=edge_filter(filter))) == expected(
            filter, documents
        ), filter
    shard.close()
