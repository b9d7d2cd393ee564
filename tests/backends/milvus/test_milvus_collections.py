"""What the Milvus adapter owns: its collections beside others of the same names, half made ones, and their upkeep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from embedded_milvus import client as client
from embedded_milvus import embedded, filled
from pymilvus import DataType, MilvusClient

from m3_connectors.backends.milvus import layout as layouts
from m3_connectors.backends.milvus.layout import Layout
from m3_connectors.backends.milvus.naming import PARTS, stored_name
from m3_connectors.errors import Corrupt, Rejected
from m3_connectors.methods import METHODS
from m3_connectors.testing.agreement import compare_search, oracle_of
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.worlds import make_world

WORLD = make_world(71, documents=30)


def test_no_name_of_a_user_is_one_that_is_made_here() -> None:
    names = ["foo", "foo" + PARTS, "a-b", stored_name("a-b"), stored_name("a-b") + PARTS, "m3_notes"]
    stored = [stored_name(name) for name in names]
    made = [*stored, *(layouts.parts_name(name) for name in stored)]
    assert len(set(made)) == 2 * len(names)
    assert stored_name("m3_notes") == "m3_notes"


@runs
async def test_a_collection_that_is_called_as_parts_are_outlives_the_other(tmp_path: Path) -> None:
    mine = await filled(embedded(tmp_path, f"foo{PARTS}"), WORLD)
    other = await filled(embedded(tmp_path, "foo"), WORLD)
    await other.drop()
    assert await mine.count() == len(WORLD.documents)
    await mine.drop()
    await mine.close()
    await other.close()


@runs
async def test_another_programs_collection_is_not_taken_as_parts(
    tmp_path: Path, client: MilvusClient
) -> None:
    def make_another() -> None:
        fields = MilvusClient.create_schema(auto_id=False)
        fields.add_field("key", DataType.VARCHAR, max_length=64, is_primary=True)
        fields.add_field("dense", DataType.FLOAT_VECTOR, dim=2)
        client.create_collection(f"notes{PARTS}", schema=fields)

    make_another()
    backend = embedded(tmp_path)
    with pytest.raises(
        Rejected, match=f'need the name "notes{PARTS}", which is already used by another collection'
    ):
        await backend.create(WORLD.schema)
    await backend.drop()
    assert client.list_collections() == [f"notes{PARTS}"]

    client.drop_collection(f"notes{PARTS}")
    await backend.create(WORLD.schema)
    client.drop_collection(f"notes{PARTS}")
    with pytest.raises(
        Corrupt, match=f'"notes{PARTS}", which holds the parts of long documents of "notes", is missing'
    ):
        await backend.open()
    make_another()
    with pytest.raises(Corrupt, match="or belongs to another collection"):
        await backend.open()
    await backend.drop()
    assert client.list_collections() == [f"notes{PARTS}"]
    await backend.close()


@runs
async def test_parts_that_a_drop_left_are_taken_by_the_next_creation(
    tmp_path: Path, client: MilvusClient
) -> None:
    backend = await filled(embedded(tmp_path), WORLD)
    client.drop_collection("notes")
    await filled(backend, WORLD)
    assert await backend.count() == len(WORLD.documents)
    await backend.drop()
    assert client.list_collections() == []
    await backend.close()


@pytest.mark.parametrize("made", [1, 2])
@runs
async def test_a_creation_that_is_killed_between_two_indexes_is_mended_by_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: MilvusClient, made: int
) -> None:
    backend = embedded(tmp_path)
    real, calls = MilvusClient.create_index, []

    def killed(self: MilvusClient, name: str, **options: Any) -> None:
        if len(calls) == made:
            raise KeyboardInterrupt
        calls.append(name)
        real(self, name, **options)

    with monkeypatch.context() as patched:
        patched.setattr(MilvusClient, "create_index", killed)
        with pytest.raises(KeyboardInterrupt):
            await backend.create(WORLD.schema)
    assert client.list_indexes("notes") == ["dense", "sparse"][:made]
    assert await backend.open() == WORLD.schema
    assert client.list_indexes("notes") == ["dense", "sparse"]
    assert client.list_indexes(f"notes{PARTS}") == ["idle"]
    await backend.upsert(WORLD.documents, WORLD.embeddings)
    await compare_search(backend, await oracle_of(WORLD), WORLD.queries[0], METHODS["dense_sparse"], 20)
    await backend.close()


@pytest.mark.parametrize("on_server", [True, False])
def test_servers_map_the_bulk_of_a_document_instead_of_loading_it(on_server: bool) -> None:
    layout = Layout(WORLD.schema, "notes", on_server, "HNSW")
    fields = [
        *layouts.document_fields(layout, "notes").fields,
        *layouts.part_fields("notes", on_server=on_server).fields,
    ]
    mapped = [field.name for field in fields if field.params.get("mmap_enabled")]
    assert mapped == (["multivector", "text", "metadata", "multivector"] if on_server else [])
