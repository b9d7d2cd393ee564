"""Rows of 8 bits and fewer: in a file beside Edge's shard, in vectors of a server, and scored in this process."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import grpc as pb
from qdrant_client import models
from qdrant_fake import FakeQdrant

from m3_connectors.backends.base import Backend, Storage
from m3_connectors.backends.blobs import pack_multivector
from m3_connectors.backends.precision import INT8, PRECISIONS
from m3_connectors.backends.qdrant.carried import WIDTH, carried, carry, most_bytes, vectors_for
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.backends.qdrant.edge.row_file import NAME, RowFile
from m3_connectors.backends.qdrant.payload import point_id
from m3_connectors.backends.qdrant.server import row_reading
from m3_connectors.backends.qdrant.server.grpc import _fill, _read
from m3_connectors.backends.registry import backend_for
from m3_connectors.errors import Corrupt, DocumentNotFound
from m3_connectors.methods import ALL
from m3_connectors.testing.agreement import compare_search, compare_world, oracle_of
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.worlds import World, join, make_world, unit_rows

COMPACT = [name for name, precision in PRECISIONS.items() if precision.engine_dtype is None]


ROWS_OF_INT8 = unit_rows(np.eye(2, 24))


@pytest.fixture
def fake() -> Iterator[FakeQdrant]:
    with FakeQdrant() as started:
        yield started


def on_server(fake: FakeQdrant, transport: str = "grpc") -> Backend:
    return backend_for(
        fake.url, "notes", {"grpc_port": fake.grpc_port, "transport": transport, "attempts": 1}
    )


async def fill(backend: Backend, world: World) -> None:
    await backend.create(world.schema)
    await backend.upsert(world.documents, world.embeddings)


def long_world(precision: Any, counts: tuple[int, ...], dimension: int) -> World:
    """Documents of these numbers of rows."""
    rng = np.random.default_rng(22)
    small = make_world(22, documents=len(counts), dimension=dimension, storage=Storage(precision))
    texts = [
        (unit_rows(rng.normal(size=dimension)), {2: 0.5}, unit_rows(rng.normal(size=(rows, dimension))))
        for rows in counts
    ]
    return dataclasses.replace(small, embeddings=join(texts, small.schema.model))


# -- Edge


@pytest.mark.parametrize("precision", COMPACT)
@runs
async def test_edge_answers_like_the_reference(tmp_path: Path, precision: Any) -> None:
    world = make_world(91, documents=80, storage=Storage(precision))
    backend = EdgeBackend(tmp_path, "c")
    await fill(backend, world)
    for _ in range(2):
        await compare_world(backend, world)
        got = await backend.vectors([document.id for document in world.documents])
        want = world.schema.precision.rounded(world.embeddings)
        np.testing.assert_array_equal(got.multivectors.rows, want.multivectors.rows)
        await backend.close()
        assert await backend.open() == world.schema
    await backend.close()


@pytest.mark.parametrize("precision", ["int8", "int1"])
@runs
async def test_edge_scores_a_document_of_8191_rows_exactly(tmp_path: Path, precision: Any) -> None:
    world = long_world(precision, (8191, 1, 4096), 64)
    backend = EdgeBackend(tmp_path, "c")
    await fill(backend, world)
    oracle = await oracle_of(world)
    for query in world.queries:
        await compare_search(backend, oracle, query, ALL, 3)
    await backend.close()


@runs
async def test_a_collection_takes_the_bytes_of_its_rows_and_no_more(tmp_path: Path) -> None:
    """The payload has the place of the rows only, so no filter and no scroll reads them."""
    world = make_world(92, documents=50, most_rows=40, dimension=128, storage=Storage("int2"))
    backend = EdgeBackend(tmp_path, "c")
    await fill(backend, world)
    # A header, the centre, and two bits a value; centre and rows have a scale.
    sizes = 16 + (128 + 4) + world.embeddings.multivectors.counts * (128 // 4 + 4)
    assert (tmp_path / "c" / "shard" / NAME).stat().st_size == sum(sizes)
    record = await backend._run(
        "test", lambda edge: edge.retrieve([point_id(world.documents[0].id)], True, True)[0]
    )
    assert set(record.vector) <= {"dense", "sparse"}
    assert record.payload is not None
    assert record.payload["rows"] == [0, sizes[0]]
    assert await backend.fetch([world.documents[0].id]) == [world.documents[0]]
    await backend.close()


def _another_version(blob: bytearray) -> None:
    blob[2] += 1


def _another_number_of_rows(blob: bytearray) -> None:
    blob[8] += 1


def _another_precision(blob: bytearray) -> None:
    rows = np.ones((1, 24), dtype=np.float32)
    blob[:16] = pack_multivector(rows, PRECISIONS["int8"])[:16]


def _nothing(blob: bytearray) -> None:
    blob.clear()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_another_version, "not a vector blob"),
        (_another_number_of_rows, "not its full length"),
        (_another_precision, "not its full length|int8"),
        (_nothing, "bytes, none from"),
    ],
)
@runs
async def test_damaged_rows_on_edge_name_the_document_and_harm_no_other(
    tmp_path: Path, damage: Any, reason: str
) -> None:
    world = make_world(93, documents=12, storage=Storage("int2"))
    backend = EdgeBackend(tmp_path, "c")
    await fill(backend, world)
    await backend.close()
    file = tmp_path / "c" / "shard" / NAME
    counts = world.embeddings.multivectors.counts
    last = 16 + world.schema.precision.encoded_bytes(int(counts[-1]), 24)
    content = bytearray(file.read_bytes())
    blob = content[-last:]
    damage(blob)
    file.write_bytes(content[:-last] + blob)
    await backend.open()
    ids = [document.id for document in world.documents]
    for call in (
        lambda: backend.score("multivector", world.queries[0], ids),
        lambda: backend.vectors(ids),
        lambda: backend.search(world.queries[0], ALL, 12),
    ):
        with pytest.raises(Corrupt, match=reason) as caught:
            await call()
        assert repr(ids[-1]) in str(caught.value)
        assert "Index the document again" in str(caught.value)
    assert len(await backend.score("multivector", world.queries[0], ids[:-1])) == 11
    assert len(await backend.score("dense", world.queries[0], ids)) == 12
    await backend.upsert(world.documents[-1:], world.embeddings[11:])
    await compare_world(backend, world)
    await backend.close()


def test_a_view_of_the_file_stays_valid_when_it_grows(tmp_path: Path) -> None:
    file = RowFile(tmp_path)
    assert file.append([]) == []
    assert file.size_bytes == 0
    with pytest.raises(ValueError, match="has 0 bytes, none from 0 to 3"):
        file.read([0, 3])
    first = file.append([b"abc", b"", b"de"])
    view = file.read(first[0])
    second = file.append([b"fgh"])
    assert [bytes(file.read(place)) for place in (*first, *second)] == [b"abc", b"", b"de", b"fgh"]
    assert bytes(view) == b"abc"
    for place in ([-1, 2], [6, 3], [2, -1]):
        with pytest.raises(ValueError, match="none from"):
            file.read(place)
    file.close()
    assert bytes(view) == b"abc"
    assert bytes(RowFile(tmp_path).read(second[0])) == b"fgh"


@pytest.mark.skipif(os.name != "posix", reason="other systems cannot sync directories")
def test_the_name_of_a_new_file_is_on_the_disk_before_a_point_can_name_a_place_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    file = RowFile(tmp_path)
    inodes = [(tmp_path / NAME).stat().st_ino] if file.append([b"abc"]) else []
    assert synced == [*inodes, tmp_path.stat().st_ino]


# -- a server


@given(st.integers(0, 600), st.randoms(use_true_random=False))
def test_floats_carry_any_bytes_over_both_protocols(size: int, random: Any) -> None:
    encoded = random.choice([random.randbytes(size), b"\xff" * size, bytes(size), b"\1" * size])
    vectors = carry(encoded)
    assert vectors.shape == (vectors_for(size), WIDTH)
    assert most_bytes(len(vectors) - 1) < size <= most_bytes(len(vectors))
    assert carried(vectors) == encoded
    as_json = np.array(json.loads(json.dumps(vectors.tolist())), dtype=np.float32).reshape(vectors.shape)
    assert carried(as_json) == encoded
    message = pb.Vector()
    _fill(message, vectors)
    assert carried(_read(message)) == encoded
    with pytest.raises(ValueError, match="end is missing"):
        carried(np.zeros_like(vectors))


@pytest.mark.parametrize("transport", ["grpc", "rest"])
@pytest.mark.parametrize("precision", COMPACT)
@runs
async def test_a_server_answers_like_the_reference(fake: FakeQdrant, precision: Any, transport: str) -> None:
    world = make_world(94, documents=40, storage=Storage(precision))
    backend = on_server(fake, transport)
    await fill(backend, world)
    await compare_world(backend, world)
    got = await backend.vectors([document.id for document in world.documents])
    want = world.schema.precision.rounded(world.embeddings)
    np.testing.assert_array_equal(got.multivectors.rows, want.multivectors.rows)
    with pytest.raises(DocumentNotFound, match="unknown"):
        await backend.score("multivector", world.queries[0], [world.documents[0].id, "unknown"])
    # Only the scores read rows; no search is by a multi-vector, whose scores would mean nothing.
    asked = [request.body for request in fake.named("search")]
    if transport == "grpc":
        assert {query.using for body in asked for query in body.query_points} == {"dense", "sparse"}
    await backend.close()


@runs
async def test_a_long_document_is_split_on_a_server_and_scored_whole(fake: FakeQdrant) -> None:
    world = long_world("int8", (8191, 3), 1024)
    backend = on_server(fake)
    await fill(backend, world)
    parts = {
        name: len(vector.multi_dense.vectors)
        for request in fake.named("upsert")
        for point in request.body.points
        for name, vector in point.vectors.vectors.vectors.items()
        if name.startswith("multi_") and name != "multi_0"
    }
    # A header, 16 centres and 8,191 rows of 1,028 bytes each; one multi-vector holds 16,383 vectors of 192 bytes.
    assert sum(parts.values()) == (16 + 1028 * (16 + 8191)) // 192 + 1 - 16_383
    oracle = await oracle_of(world)
    await compare_search(backend, oracle, world.queries[0], ALL, 2)
    await backend.close()


@pytest.mark.parametrize("size", [20, 3000])
@runs
async def test_rows_are_read_in_responses_of_a_bounded_size(
    fake: FakeQdrant, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    world = make_world(95, documents=60, storage=Storage("int4"))
    monkeypatch.setattr(row_reading, "_ANSWER_BYTES", size)
    backend = on_server(fake)
    await fill(backend, world)
    ids = [document.id for document in world.documents]
    fake.requests.clear()
    got = await backend.score("multivector", world.queries[0], ids)
    want = await (await oracle_of(world)).score("multivector", world.queries[0], ids)
    np.testing.assert_allclose(got, want, atol=1e-5)
    sizes = [len(request.body.ids) for request in fake.named("retrieve")]
    assert sizes[0] == 16  # shows how large the others are
    assert sum(sizes) == 60
    assert max(sizes[1:]) == 1 if size == 20 else 1 < max(sizes[1:]) < 44
    await backend.close()


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        ({"multi_0": [[0.5] * 64]}, "the number 0.5, which is not three bytes"),
        ({"multi_0": [[2.0**24] * 64]}, "the number 16777216.0, which is not three bytes"),
        ({"multi_0": [[0.0] * 64]}, "their end is missing"),
        ({"multi_0": carry(b"m3").tolist()}, "a vector blob of 2 bytes is shorter than its header"),
        ({"multi_0": carry(pack_multivector(ROWS_OF_INT8, INT8)).tolist()}, "holds int8 rows, not int2"),
        ({}, "there are none"),
    ],
)
@runs
async def test_damaged_rows_on_a_server_name_the_document(
    fake: FakeQdrant, vectors: dict[str, Any], reason: str
) -> None:
    world = make_world(96, documents=5, storage=Storage("int2"))
    backend = on_server(fake)
    await fill(backend, world)
    point = models.PointStruct(
        id=str(point_id("broken")),
        vector={"dense": [1.0] + [0.0] * 23, **vectors},
        payload={"id": "broken", "text": "", "json": "{}"},
    )
    fake.engine.upsert("notes", [point])
    for call in (
        lambda: backend.score("multivector", world.queries[0], ["broken"]),
        lambda: backend.vectors(["broken"]),
        lambda: backend.search(world.queries[0], ALL, 6),
    ):
        with pytest.raises(Corrupt, match=reason) as caught:
            await call()
        assert "'broken'" in str(caught.value)
        assert "Index the document again" in str(caught.value)
    await backend.delete(["broken"])
    await compare_world(backend, world)
    await backend.close()


@runs
async def test_rows_of_another_size_are_found_when_a_collection_is_opened(fake: FakeQdrant) -> None:
    world = make_world(97, documents=1, storage=Storage("int2"))
    backend = on_server(fake)
    await fill(backend, world)
    await backend.close()
    raw = fake.engine.get_collection("notes").config.metadata
    assert raw is not None
    schema = json.loads(raw["m3_connectors"])
    schema["storage"]["multivector_dtype"] = "float16"
    fake.engine.update_collection("notes", metadata={**raw, "m3_connectors": json.dumps(schema)})
    again = on_server(fake)
    with pytest.raises(Corrupt, match="has 64 dimensions, but the model has 24"):
        await again.open()
    await again.close()
