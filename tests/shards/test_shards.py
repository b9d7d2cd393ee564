"""Shards: what is written is read bit for bit, a file that is not complete is never read, and damage is named."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds_of_shards import as_held, assert_counts, assert_same, read_all, world_of

from m3_connectors import Document, InvalidInput, M3Embeddings, ModelMismatch, MultiVectors
from m3_connectors.backends.precision import PRECISIONS
from m3_connectors.backends.schema import Storage
from m3_connectors.readers import DeadLetter, read_documents
from m3_connectors.shards import EmbeddingsFolder, ShardWriter, is_embeddings_folder
from m3_connectors.shards import format as shard_format
from m3_connectors.testing.worlds import World

STORAGES = [
    Storage(),
    Storage("float32"),
    Storage("int8"),
    Storage("int4"),
    Storage("int2"),
    Storage("int1"),
    Storage("int2", "pool", 2, 4),
    Storage(components=("dense",)),
    Storage(components=("dense", "sparse")),
    Storage("int8", components=("dense", "multivector")),
]
in_folders = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25
)


def save(folder: Path, world: World, **options: Any) -> EmbeddingsFolder:
    with ShardWriter(folder, world.schema, **options) as writer:
        writer.write_encoded(world.documents, world.embeddings)
        writer.finish()
    return EmbeddingsFolder(folder)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_what_is_written_is_read_bit_for_bit(tmp_path: Path, storage: Storage) -> None:
    world = world_of(1, storage)
    folder = save(tmp_path / "kept", world)
    assert is_embeddings_folder(folder.path)
    assert folder.schema == world.schema
    assert folder.document_count() == len(world.documents)
    found, held = read_all(folder), as_held(world)
    for i, document in enumerate(world.documents):
        assert_same(found[document.id], document, held[i], storage.multivector_dtype)
        assert_counts(found[document.id][1], held[i])


@in_folders
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(list(PRECISIONS)),
    documents=st.integers(1, 12),
    rows=st.integers(1, 700),
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=12, max_size=12),
    size=st.integers(1, 20_000),
)
def test_any_documents_survive(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    dtype: Any,
    documents: int,
    rows: int,
    texts: list[str],
    size: int,
) -> None:
    world = world_of(seed, Storage(dtype), documents, rows)
    named = [dataclasses.replace(d, text=texts[i]) for i, d in enumerate(world.documents)]
    world = dataclasses.replace(world, documents=named)
    folder = tmp_path_factory.mktemp("any") / "kept"
    found, held = read_all(save(folder, world, shard_bytes=size)), as_held(world)
    assert len(found) == documents
    for i, document in enumerate(world.documents):
        assert_same(found[document.id], document, held[i], dtype)


def test_documents_of_a_store_have_no_counts(tmp_path: Path) -> None:
    world = world_of(1, Storage())
    without = world.embeddings.replace(truncated=None, token_counts=None, kept_token_counts=None)
    folder = save(tmp_path, dataclasses.replace(world, embeddings=without))
    table = pq.read_table(tmp_path / folder.shards[0].file)
    assert table.column("truncated").null_count == len(world.documents)
    assert all(vectors.token_counts is None for _, vectors in folder.parts())


def test_shards_and_parts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_format, "_GROUP_BYTES", 4096)
    world = world_of(1, Storage("float32"))
    with ShardWriter(tmp_path, world.schema, shard_bytes=40_000) as writer:
        for i in range(len(world.documents)):
            writer.write(world.documents[i : i + 1], world.embeddings[i : i + 1])
        writer.finish()
    folder = EmbeddingsFolder(tmp_path)
    assert len(folder.shards) > 1
    assert all(shard.bytes < 80_000 for shard in folder.shards)
    assert sum(len(documents) for documents, _ in folder.parts()) == len(world.documents)
    whole = tmp_path / "whole"
    parts = list(save(whole, world).parts())
    assert len(parts) > 3
    assert all(len(vectors.multivectors.rows) * 24 * 4 < 4096 for _, vectors in parts)


def test_the_last_version_of_an_id_counts_and_none_of_a_removed_one(tmp_path: Path) -> None:
    world = world_of(1, Storage("int8"))
    ids = [document.id for document in world.documents]
    newer = [dataclasses.replace(document, text="new") for document in world.documents[:3]]
    with ShardWriter(tmp_path, world.schema) as writer:
        writer.write(world.documents, world.embeddings)
        writer.remove(ids[5:8])
        writer.write(newer, world.embeddings[10:13])
        writer.remove(ids[2:3])
        writer.write(world.documents[7:8], world.embeddings[7])
        writer.finish()
    found = read_all(EmbeddingsFolder(tmp_path))
    assert set(found) == set(ids) - {ids[2], ids[5], ids[6]}
    assert EmbeddingsFolder(tmp_path).document_count() == len(found)
    held = as_held(world)
    for i in (0, 1):
        assert_same(found[ids[i]], newer[i], held[10 + i], "int8")
    assert_same(found[ids[7]], world.documents[7], held[7], "int8")


def test_a_new_export_replaces_the_old_one_only_when_it_is_complete(tmp_path: Path) -> None:
    world = world_of(1, Storage())
    save(tmp_path, world)
    with ShardWriter(tmp_path, world.schema, anew=True) as writer:
        writer.write(world.documents[:1], world.embeddings[:1])
        assert len(read_all(EmbeddingsFolder(tmp_path))) == len(world.documents)
    assert len(read_all(EmbeddingsFolder(tmp_path))) == len(world.documents)
    with ShardWriter(tmp_path, world.schema, anew=True) as writer:
        writer.write(world.documents[:2], world.embeddings[:2])
        writer.finish()
    assert list(read_all(EmbeddingsFolder(tmp_path))) == [d.id for d in world.documents[:2]]
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_a_run_that_did_not_end_is_incomplete_and_can_go_on(tmp_path: Path) -> None:
    world = world_of(1, Storage())
    with ShardWriter(tmp_path, world.schema) as writer:
        writer.write(world.documents[:7], world.embeddings[:7])
    folder = EmbeddingsFolder(tmp_path)
    assert len(read_all(folder)) == 7
    with pytest.raises(InvalidInput, match="is incomplete") as refused:
        folder.check_finished()
    assert "again" in str(refused.value)
    with ShardWriter(tmp_path, world.schema) as writer:
        writer.write(world.documents[7:], world.embeddings[7:])
        writer.finish()
    folder = EmbeddingsFolder(tmp_path)
    folder.check_finished()
    assert len(read_all(folder)) == len(world.documents)


_KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from m3_connectors.shards import writing
from worlds_of_shards import world_of
from m3_connectors.backends.schema import Storage
moments = iter(range(10**6))
def moment(of):
    def call(*given, **named):
        if next(moments) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return of(*given, **named)
    return call
writing.os.fsync = moment(os.fsync)
writing.os.replace = moment(os.replace)
writing.ShardFile.write = moment(writing.ShardFile.write)
writing.ShardFile.close = moment(writing.ShardFile.close)
world = world_of(1, Storage("int2"))
with writing.ShardWriter(Path(sys.argv[1]), world.schema, shard_bytes=2000) as writer:
    for i in range(len(world.documents)):
        writer.write(world.documents[i : i + 1], world.embeddings[i : i + 1])
    writer.finish()
"""


def test_kill_9_leaves_whole_shards_only_and_the_repeat_doubles_nothing(tmp_path: Path) -> None:
    rng, world = random.Random(0), world_of(1, Storage("int2"))
    held, ids = as_held(world), [document.id for document in world.documents]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    kills = 0
    for moment in [0, 1, 2, 3, *(rng.randint(4, 60) for _ in range(8)), 10**6]:
        command = [sys.executable, "-c", _KILLED, str(tmp_path / "kept"), str(moment)]
        ended = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
        )
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        kills += ended.returncode != 0
        if moment < 2:  # not even the list of the folder is complete
            assert not is_embeddings_folder(tmp_path / "kept")
            continue
        folder = EmbeddingsFolder(tmp_path / "kept")
        found = read_all(folder)
        assert folder.document_count() == len(found)
        for id, (document, vectors) in found.items():
            i = ids.index(id)
            assert_same((document, vectors), world.documents[i], held[i], "int2")
    assert kills == 12
    assert set(found) == set(ids)
    folder.check_finished()
    listed = {shard.file for shard in folder.shards}
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {*listed, "embeddings.json"}


class TestDamage:
    @pytest.fixture
    def kept(self, tmp_path: Path) -> EmbeddingsFolder:
        return save(tmp_path / "kept", world_of(1, Storage("int8"), 12))

    def test_a_truncated_or_missing_file_is_named(self, kept: EmbeddingsFolder) -> None:
        path = kept.path / kept.shards[0].file
        whole = path.read_bytes()
        path.write_bytes(whole[:-100])
        with pytest.raises(InvalidInput, match="is damaged: it has") as refused:
            EmbeddingsFolder(kept.path)
        assert str(path) in str(refused.value)
        # Of the same size, as a crash of the machine leaves it.
        path.write_bytes(whole[:-1000] + bytes(1000))
        with pytest.raises(InvalidInput, match="is damaged"):
            read_all(EmbeddingsFolder(kept.path))
        path.unlink()
        with pytest.raises(InvalidInput, match="is missing"):
            EmbeddingsFolder(kept.path)

    def test_a_flipped_bit_is_found_or_changes_nothing(self, kept: EmbeddingsFolder) -> None:
        path, rng = kept.path / kept.shards[0].file, random.Random(0)
        before, whole = read_all(kept), path.read_bytes()
        unharmed = 0
        for at in [*rng.sample(range(len(whole)), 400), *range(len(whole) - 200, len(whole))]:
            broken = bytearray(whole)
            broken[at] ^= 1 << rng.randrange(8)
            path.write_bytes(broken)
            try:
                after = read_all(EmbeddingsFolder(kept.path))
            except InvalidInput as error:
                assert str(path) in str(error)  # noqa: PT017 (either an error or the same content)
                continue
            unharmed += 1
            assert after.keys() == before.keys(), at
            for id, (document, vectors) in after.items():
                assert_same((document, vectors), *before[id], "int8")
                assert_counts(vectors, before[id][1])
        assert unharmed < 200  # in the footer, where most numbers are not needed to read the file

    def test_other_versions_and_models_are_named(self, kept: EmbeddingsFolder, tmp_path: Path) -> None:
        listed = kept.path / "embeddings.json"
        record = json.loads(listed.read_text())
        listed.write_text(json.dumps({**record, "format": "m3-embeddings/7"}))
        with pytest.raises(InvalidInput, match="m3-embeddings/7"):
            EmbeddingsFolder(kept.path)
        listed.write_text(json.dumps(record))
        other = world_of(1, Storage("int4"), 12)
        name = kept.shards[0].file
        entry = save(tmp_path / "other", other).shards[0]
        (kept.path / name).write_bytes((tmp_path / "other" / entry.file).read_bytes())
        record["shards"][0]["bytes"] = entry.bytes
        listed.write_text(json.dumps(record))
        with pytest.raises(InvalidInput, match="another collection") as refused:
            read_all(EmbeddingsFolder(kept.path))
        assert name in str(refused.value)
        assert "int4" in str(refused.value)

    @pytest.mark.parametrize(
        "change", [{"collection": 5}, {"shards": 5}, {"shards": [{"file": 5, "documents": 1, "bytes": 1}]}]
    )
    def test_a_list_with_values_of_other_types_is_damaged(
        self, kept: EmbeddingsFolder, change: dict[str, Any]
    ) -> None:
        listed = kept.path / "embeddings.json"
        listed.write_text(json.dumps({**json.loads(listed.read_text()), **change}))
        with pytest.raises(InvalidInput, match=r"embeddings\.json is damaged"):
            EmbeddingsFolder(kept.path)

    def test_a_folder_without_a_list_is_no_folder_of_embeddings(self, tmp_path: Path) -> None:
        assert not is_embeddings_folder(tmp_path)
        with pytest.raises(InvalidInput, match="no folder of embeddings"):
            EmbeddingsFolder(tmp_path)
        (tmp_path / "embeddings.json").write_text("{")
        with pytest.raises(InvalidInput, match="is damaged"):
            EmbeddingsFolder(tmp_path)


def test_saved_embeddings_below_a_folder_of_texts_are_not_read_as_tables(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    save(tmp_path / "saved", world_of(1, Storage(), 4))
    letters: list[DeadLetter] = []
    documents = read_documents([tmp_path], on_dead_letter=lambda _, letter: letters.append(letter))
    assert [document.id for document in documents] == ["a.txt"]
    assert [letter.file for letter in letters] == [str(tmp_path / "saved")]
    assert "saved embeddings" in letters[0].reason


class TestRefusals:
    def test_other_files_another_collection_and_another_writer(self, tmp_path: Path) -> None:
        world = world_of(1, Storage())
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine.txt").write_text("mine")
        with pytest.raises(InvalidInput, match=r"has files, such as 'mine.txt', and no embeddings\.json"):
            ShardWriter(tmp_path / "full", world.schema)
        save(tmp_path / "lost", world)
        (tmp_path / "lost" / "embeddings.json").unlink()
        with pytest.raises(InvalidInput, match=r"and no embeddings\.json"):
            ShardWriter(tmp_path / "lost", world.schema)
        assert list((tmp_path / "lost").glob("*.parquet"))
        with pytest.raises(InvalidInput, match="is a file"):
            ShardWriter(tmp_path / "full" / "mine.txt", world.schema)
        save(tmp_path / "kept", world)
        with pytest.raises(InvalidInput, match=r"another collection .*float16.*int8"):
            ShardWriter(tmp_path / "kept", world_of(1, Storage("int8")).schema)
        with (
            ShardWriter(tmp_path / "kept", world.schema),
            pytest.raises(InvalidInput, match="another process"),
        ):
            ShardWriter(tmp_path / "kept", world.schema)

    def test_missing_components_and_other_models(self, tmp_path: Path) -> None:
        world = world_of(1, Storage())
        other = dataclasses.replace(world.schema.model, weights_fingerprint="a" * 64, name="other")
        with ShardWriter(tmp_path, world.schema) as writer:
            with pytest.raises(InvalidInput, match="do not have sparse"):
                writer.write(world.documents, world.embeddings.replace(sparse=None))
            with pytest.raises(ModelMismatch, match="other"):
                writer.write(world.documents, world.embeddings.replace(model=other))
            with pytest.raises(InvalidInput, match="documents and"):
                writer.write(world.documents[:1], world.embeddings)


def test_rows_that_were_read_keep_their_bytes() -> None:
    world = world_of(1, Storage("int2"))
    held = as_held(world).multivectors
    assert held.encoded is not None
    int2 = PRECISIONS["int2"]
    assert list(int2.encode_documents(held)) == [int2.encode(rows) for rows in world.embeddings.multivectors]
    # A second encoding loses again; that is why they are kept.
    assert [int2.encode(rows) for rows in held] != list(held.encoded.texts)
    assert int2.round_documents(held).rows.tobytes() == held.rows.tobytes()
    parts = MultiVectors.concatenate([held[3:7], held[:2]])
    assert parts.encoded is not None
    assert parts.encoded.texts == (*held.encoded.texts[3:7], *held.encoded.texts[:2])
    assert held[::2].encoded is not None
    assert held[::2].encoded.texts == held.encoded.texts[::2]
    assert MultiVectors.concatenate([held, world.embeddings.multivectors]).encoded is None
    with pytest.raises(ValueError, match="read-only"):
        held.rows[0] = 0
    with pytest.raises(InvalidInput, match="1 texts"):
        MultiVectors(
            np.zeros((0, 4), np.float32), np.zeros(1, np.int64), dataclasses.replace(held[:1].encoded)
        )
    assert M3Embeddings(multivectors=held).multivectors is held


def test_documents_are_checked(tmp_path: Path) -> None:
    world = world_of(1, Storage(), 1)
    with ShardWriter(tmp_path, world.schema) as writer, pytest.raises(InvalidInput, match="surrogate"):
        writer.write([Document("a", "\ud800")], world.embeddings)
