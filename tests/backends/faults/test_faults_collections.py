"""Collections that are not what they should be: another program's, another model's, changed behind our back, gone."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import urllib.request
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from fault_stores import STORES, Case, Target, target_of
from pymilvus import DataType, MilvusClient
from qdrant_client import models

from m3_connectors.backends.milvus.naming import stored_name
from m3_connectors.embeddings import M3Embeddings, ModelInfo
from m3_connectors.errors import AlreadyExists, CollectionNotFound, Corrupt, ModelMismatch, Rejected
from m3_connectors.methods import ALL
from m3_connectors.opening import aconnect
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.worlds import make_world

pytestmark = pytest.mark.live

bare = pytest.fixture(params=STORES)(target_of)


@pytest.fixture
def target(bare: Target) -> Iterator[Target]:
    with bare.proxied():
        yield bare


@dataclasses.dataclass
class OtherModel:
    """An encoder, as far as opening a collection looks at it."""

    info: ModelInfo
    recommended_weights: Any = dataclasses.field(default_factory=dict)

    def encode(self, texts: Any, **_: Any) -> M3Embeddings:
        raise AssertionError("nothing may be encoded for a collection of another model")

    token_strings = id_to_token = encode


@pytest.mark.parametrize("name", ["other dimensions", "another model"])
@runs
async def test_another_models_vectors_are_refused_and_none_is_stored(target: Target, name: str) -> None:
    world = make_world(11)
    if name == "other dimensions":
        other = make_world(12, dimension=16)
    else:
        tuned = dataclasses.replace(world.schema.model, name="worlds/tuned")
        other = dataclasses.replace(
            world,
            embeddings=world.embeddings.replace(model=tuned),
            queries=[query.replace(model=tuned) for query in world.queries],
        )
    case = Case(target.name, f"{name}, of the caller's vectors")
    stored = world.documents[: len(world.documents) // 2]
    async with target.stored(world) as backend:
        with case.call("upsert", ModelMismatch, match="worlds/random"):
            await backend.upsert(other.documents, other.embeddings)
        with case.call("search", ModelMismatch, match="worlds/random"):
            await backend.search(other.queries[0], ALL, 5)
        encoder, url, options = OtherModel(other.embeddings[0].model or world.schema.model), *where(target)
        with case.call("connect", ModelMismatch, match="worlds/random"):
            await aconnect(url, target.collection, encoder=encoder, **options)
        assert sorted([id async for id in backend.scan_ids()]) == sorted(document.id for document in stored)
        await case.account(backend, world, stored)


@pytest.mark.parametrize("change", ["width", "dropped"])
@runs
async def test_a_changed_collection_is_named_and_a_whole_one_opens_again(
    target: Target, change: Literal["width", "dropped"]
) -> None:
    world = make_world(13)
    case = Case(
        target.name, {"width": "other dimensions, of the store's field", "dropped": "dropped field"}[change]
    )
    async with target.stored(world) as backend:
        await asyncio.to_thread(spoil, target, change)
        other = target.backend()
        with case.call("open", Corrupt):
            await other.open()
        await backend.drop()
        await backend.create(world.schema)
        with case.call("open, made again"):
            await other.open()
        await other.close()
        await case.account(backend, world, [])


@runs
async def test_another_programs_collection_is_refused_and_left_alone(target: Target) -> None:
    case = Case(target.name, "another program's collection of the name")
    await asyncio.to_thread(make_foreign, target)
    backend = target.backend()
    with case.call("open", Rejected, match="m3-connectors"):
        await backend.open()
    with case.call("create", AlreadyExists):
        await backend.create(make_world(14).schema)
    with case.call("drop", Rejected, match="m3-connectors"):
        await backend.drop()
    assert await asyncio.to_thread(remove_foreign, target)
    world = make_world(14)
    with case.call("create, name free again"):
        await backend.create(world.schema)
    await case.account(backend, world, [])
    await backend.drop()
    await backend.close()


@runs
async def test_a_collection_dropped_by_another_is_not_found_until_it_is_made_again(target: Target) -> None:
    world = make_world(15)
    case = Case(target.name, "collection dropped by another program")
    async with target.stored(world) as backend:
        other = target.direct()
        await other.drop()
        with case.call("upsert", CollectionNotFound):
            await backend.upsert(world.documents, world.embeddings)
        with case.call("search", CollectionNotFound):
            await backend.search(world.queries[0], ALL, 5)
        await other.create(world.schema)
        await other.close()
        await case.account(backend, world, [])


def where(target: Target) -> tuple[str, dict[str, Any]]:
    """URL and options, as ``connect`` takes them."""
    more = {"grpc_port": target.ports[1]} if target.ports[1:] else {}
    return target.url, {**target.options, **more}


# -- what other programs do, each with its store's own means


def make_foreign(target: Target) -> None:
    name = target.collection
    if target.fake is not None:
        target.fake.engine.create_collection(name, models.VectorParams(size=4, distance=models.Distance.DOT))
    elif target.store == "milvus":
        with_milvus(target).create_collection(stored_as(target), dimension=8)
    else:
        ask(target, "PUT", f"/{name}", {"mappings": {"properties": {"dense": {"type": "keyword"}}}})


def remove_foreign(target: Target) -> bool:
    """Take it away; whether it was still there."""
    if target.fake is not None:
        return target.fake.engine.delete_collection(target.collection)
    if target.store == "milvus":
        client, name = with_milvus(target), stored_as(target)
        there = client.describe_collection(name)["fields"][1]["name"] == "vector"
        client.drop_collection(name)
        return there
    there = "keyword" in json.dumps(ask(target, "GET", f"/{target.collection}"))
    ask(target, "DELETE", f"/{target.collection}")
    return there


def spoil(target: Target, change: Literal["width", "dropped"]) -> None:
    """Put another collection in the place of ours, with its record, but a field that is gone or of another width."""
    name = target.collection
    if target.fake is not None:
        engine = target.fake.engine
        config = engine.get_collection(name).config
        vectors = config.params.vectors
        assert isinstance(vectors, dict)
        if change == "width":
            vectors["dense"].size = 8
        else:
            del vectors["multi_0"]
        engine.delete_collection(name)
        engine.create_collection(name, vectors, config.params.sparse_vectors, metadata=config.metadata)
    elif target.store == "milvus":
        client, name = with_milvus(target), stored_as(target)
        described = client.describe_collection(name)
        schema = MilvusClient.create_schema(
            auto_id=False, enable_dynamic_field=True, description=described["description"]
        )
        for field in described["fields"]:
            params = dict(field.get("params", {}))
            if field["name"] == "dense" and change == "width":
                params["dim"] = 8
            if field["name"] == "multivector" and change == "dropped":
                continue
            if field["type"] == DataType.ARRAY:
                params["element_type"] = field["element_type"]
            schema.add_field(
                field["name"], field["type"], is_primary=field.get("is_primary", False), **params
            )
        client.drop_collection(name)
        client.create_collection(name, schema=schema, properties=described["properties"])
        assert client.describe_collection(name)["properties"] == described["properties"]
    else:
        ((index, found),) = ask(target, "GET", f"/{name}").items()
        fields = found["mappings"]["properties"]
        if change == "width":
            fields["dense"]["dims"] = 8
        else:
            del fields["multivector_blob"]
        ask(target, "DELETE", f"/{index}")
        settings = {"number_of_replicas": 0}
        body = {"mappings": found["mappings"], "aliases": found["aliases"], "settings": settings}
        ask(target, "PUT", f"/{index}", body)


def with_milvus(target: Target) -> MilvusClient:
    return MilvusClient(f"http://{target.host}:{target.ports[0]}", dedicated=True)


def stored_as(target: Target) -> str:
    return stored_name(target.collection)


def ask(target: Target, method: str, path: str, body: Any = None) -> Any:
    """A request to Elasticsearch."""
    request = urllib.request.Request(
        f"http://{target.host}:{target.ports[0]}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
