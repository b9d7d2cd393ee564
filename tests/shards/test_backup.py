"""Export and import: a collection that was restored gives the same searches, from the same bytes, without a model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from live_servers import own
from qdrant_fake import FakeQdrant
from worlds_of_shards import as_held, assert_same, read_all, world_of

from m3_connectors import Index, InvalidInput, ModelMismatch, Storage, aconnect, connect
from m3_connectors.methods import METHODS
from m3_connectors.shards import EmbeddingsFolder, ShardWriter
from m3_connectors.testing.servers.start import Running
from m3_connectors.testing.worlds import World

STORAGES = [
    Storage(),
    Storage("int8"),
    Storage("int2"),
    Storage("int2", "pool", 2, 1),
    Storage(components=("dense", "sparse")),
]
Open = Callable[[str, World], Index]


@pytest.fixture(params=["memory", "edge", "qdrant", "milvus", "elasticsearch"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Return a call that opens a new collection of a store; the collections are dropped at the end."""
    options: dict[str, Any] = {}
    with contextlib.ExitStack() as ended:
        if request.param in ("memory", "edge"):
            url = "memory:" if request.param == "memory" else f"qdrant:{tmp_path / 'data'}"
        elif request.param == "qdrant":
            fake = ended.enter_context(FakeQdrant())
            url, options = fake.url, {"grpc_port": fake.grpc_port}
        else:
            running: Running = request.getfixturevalue(f"{request.param}_store")
            url, options = running.url, dict(running.options)

        def open(name: str, world: World) -> Index:
            index = connect(url, own(name), model=world.schema.model, storage=world.schema.storage, **options)
            ended.callback(index.drop)
            return index

        yield open


def assert_equal_searches(one: Index, other: Index, world: World) -> None:
    """Every method finds the same documents with the same scores, to the last bit."""
    able = [method for method in METHODS.values() if set(method.components) <= set(world.schema.components)]
    for method in able:
        for query in world.queries:
            assert one.search(query, method=method, k=20, exact=True) == other.search(
                query, method=method, k=20, exact=True
            )


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_a_round_trip_gives_the_same_searches_from_the_same_bytes(
    opened: Open, storage: Storage, tmp_path: Path
) -> None:
    world = world_of(3, storage)
    one, other = opened("one", world), opened("other", world)
    one.add(world.documents, embeddings=world.embeddings)
    seen: list[int] = []
    report = one.export(tmp_path / "kept", progress=seen.append)
    assert (report.documents, report.files, seen[-1]) == (40, 1, 40)
    held = as_held(world)
    found = read_all(EmbeddingsFolder(tmp_path / "kept"))
    for i, document in enumerate(world.documents):
        assert_same(found[document.id], document, held[i], storage.multivector_dtype)
    restored = other.import_(tmp_path / "kept")
    assert (restored.documents, restored.changes) == (40, ())
    assert_equal_searches(one, other, world)
    # Of the second collection, whose vectors were written from the files.
    other.export(tmp_path / "again")
    again = read_all(EmbeddingsFolder(tmp_path / "again"))
    for i, document in enumerate(world.documents):
        assert_same(again[document.id], document, held[i], storage.multivector_dtype)
    # Repeated, both change nothing.
    assert other.import_(tmp_path / "kept").documents == 40
    assert (other.count(), one.export(tmp_path / "kept").documents) == (40, 40)
    assert_equal_searches(one, other, world)


def memory(world: World, **storage: Any) -> Index:
    return connect(
        "memory:", model=world.schema.model, storage=dataclasses.replace(world.schema.storage, **storage)
    )


def saved(world: World, folder: Path) -> Path:
    with ShardWriter(folder, world.schema) as writer:
        writer.write_encoded(world.documents, world.embeddings)
        writer.finish()
    return folder


@pytest.mark.parametrize(
    ("storage", "other", "said"),
    [
        (Storage("int8"), {"multivector_dtype": "float16"}, "no more exact than int8"),
        (Storage(), {"multivector_dtype": "int2"}, "read from float16 and stored as int2"),
        (Storage("float32"), {"multivector_dtype": "int2"}, None),
        (Storage(), {"components": ("dense", "multivector")}, "sparse is left out"),
        (
            Storage("int8", "pool", 2, 4),
            {"long_documents": "split", "pool_factor": 2, "pool_from_rows": 1024},
            "stay pooled",
        ),
        (Storage(), {"long_documents": "pool", "pool_from_rows": 4}, None),
    ],
)
def test_what_is_different_in_the_collection_is_named(
    tmp_path: Path, storage: Storage, other: dict[str, Any], said: str | None
) -> None:
    world = world_of(3, storage)
    folder = saved(world, tmp_path)
    with memory(world, **other) as index:
        report = index.import_(folder)
        assert index.count() == report.documents == 40
        assert any(said in change for change in report.changes) if said else not report.changes
        index.search(world.queries[0], method="dense", k=3)


def test_float32_files_give_what_the_encoder_would_have_given(tmp_path: Path) -> None:
    world = world_of(3, Storage("float32"))
    folder = saved(world, tmp_path)
    with memory(world, multivector_dtype="int2") as one, memory(world, multivector_dtype="int2") as other:
        one.import_(folder)
        other.add(world.documents, embeddings=world.embeddings)
        for query in world.queries:
            assert one.search(query, method="multi_vec") == other.search(query, method="multi_vec")


def test_truncated_texts_are_counted(tmp_path: Path) -> None:
    world = world_of(3, Storage())
    with memory(world) as index:
        report = index.import_(saved(world, tmp_path))
    kept = world.embeddings
    assert kept.token_counts is not None
    assert kept.kept_token_counts is not None
    assert report.truncated == kept.truncated_count > 0
    assert report.lost_tokens == (kept.token_counts - kept.kept_token_counts).sum()


def test_what_cannot_be_stored_is_refused_before_anything_is(tmp_path: Path) -> None:
    world = world_of(3, Storage(components=("dense", "sparse")))
    folder = saved(world, tmp_path / "small")
    with (
        memory(world, components=("dense", "sparse", "multivector")) as index,
        pytest.raises(InvalidInput, match="multivector is missing"),
    ):
        index.import_(folder)
    other = dataclasses.replace(world.schema.model, name="other")
    with (
        connect("memory:", model=other, storage=world.schema.storage) as index,
        pytest.raises(ModelMismatch, match="small are from worlds/random"),
    ):
        index.import_(folder)
    pooled = world_of(3, Storage("int8", "pool", 2, 4))
    folder = saved(pooled, tmp_path / "pooled")
    with (
        memory(pooled, pool_factor=3) as index,
        pytest.raises(InvalidInput, match=r"pooled .* would pool them again"),
    ):
        index.import_(folder)
    with ShardWriter(tmp_path / "half", world.schema) as writer:
        writer.write(world.documents, world.embeddings)
    with memory(world) as index, pytest.raises(InvalidInput, match="is incomplete"):
        index.import_(tmp_path / "half")


def test_the_async_index_does_the_same(tmp_path: Path) -> None:
    world = world_of(3, Storage("int8"))

    async def copy() -> tuple[int, int]:
        async with aconnect("memory:", model=world.schema.model, storage=world.schema.storage) as one:
            await one.add(world.documents, embeddings=world.embeddings)
            written = await one.export(tmp_path)
        async with aconnect("memory:", model=world.schema.model, storage=world.schema.storage) as other:
            stored = await other.import_(tmp_path)
            return written.documents, stored.documents

    assert anyio.run(copy) == (40, 40)


def test_a_collection_without_an_encoder_can_be_created_for_a_model() -> None:
    world = world_of(3, Storage())
    with connect("memory:", model=world.schema.model) as index:
        assert index.schema.model == world.schema.model
        with pytest.raises(InvalidInput, match="no encoder"):
            index.add(world.documents)


def test_an_export_of_a_failing_store_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(3, Storage("int8"))
    with memory(world) as index:
        index.add(world.documents, embeddings=world.embeddings)
        index.export(tmp_path)
        monkeypatch.setattr(ShardWriter, "finish", _fail)
        with pytest.raises(OSError, match="full"):
            index.export(tmp_path)
        monkeypatch.undo()
        assert len(read_all(EmbeddingsFolder(tmp_path))) == 40
        index.export(tmp_path)
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def _fail(self: ShardWriter) -> None:
    raise OSError("the disk is full")
