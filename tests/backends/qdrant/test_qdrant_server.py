"""The Qdrant server adapter: on a real server where one is, on the fake one and on what was really sent elsewhere."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import anyio
import grpc
import numpy as np
import pytest
import qdrant_twin
import trustme
from live_servers import RUN
from qdrant_client import grpc as pb
from qdrant_client import models
from qdrant_fake import FakeQdrant, Refusal
from qdrant_twin import QUANTISATIONS, Operator

from m3_connectors.backends.base import Backend, Storage
from m3_connectors.backends.capabilities import ServerInfo
from m3_connectors.backends.qdrant.layout import Layout
from m3_connectors.backends.qdrant.payload import keys_of, point_id
from m3_connectors.backends.qdrant.server import collection as server_collection
from m3_connectors.backends.qdrant.server.backend import QdrantBackend
from m3_connectors.backends.qdrant.server.errors import Locked
from m3_connectors.backends.qdrant.server.grpc import point_message, query_message
from m3_connectors.backends.qdrant.server.rows import points_of
from m3_connectors.backends.qdrant.server.wire import Ask
from m3_connectors.backends.registry import backend_for
from m3_connectors.documents import Document
from m3_connectors.errors import (
    AlreadyExists,
    BackendError,
    CollectionNotFound,
    Corrupt,
    InvalidInput,
    NotFound,
    PartialWrite,
    Rejected,
    StorageFull,
    Throttled,
    TimedOut,
    Unauthorised,
    Unavailable,
    Unsupported,
)
from m3_connectors.filters import Or, parse_filter
from m3_connectors.methods import ALL, DENSE, DENSE_SPARSE, METHODS
from m3_connectors.search import Candidates, Lists
from m3_connectors.testing.agreement import compare_scores, compare_search, oracle_of
from m3_connectors.testing.conformance import BackendConformance, runs
from m3_connectors.testing.conformance.approximate import ApproximateClauses
from m3_connectors.testing.servers.start import Running
from m3_connectors.testing.worlds import World, join, make_world, unit_rows

QUICK = {"attempts": 3, "total_seconds": 10.0}


@pytest.fixture
def fake() -> Iterator[FakeQdrant]:
    with FakeQdrant() as started:
        yield started


def backend_on(fake: FakeQdrant, collection: str = "notes", **options: Any) -> QdrantBackend:
    backend = backend_for(fake.url, collection, {"grpc_port": fake.grpc_port, **QUICK, **options})
    assert isinstance(backend, QdrantBackend)
    return backend


async def filled(fake: FakeQdrant, world: World, **options: Any) -> QdrantBackend:
    backend = backend_on(fake, **options)
    await backend.create(world.schema)
    await backend.upsert(world.documents, world.embeddings)
    return backend


# -- the contract


@pytest.fixture(scope="class")
def prefix(
    request: pytest.FixtureRequest, qdrant_store: Running, ran_on: Callable[[str, str], None]
) -> Iterator[str]:
    """Of the names of a class's collections on the real server, over the class's transport."""
    options = {**qdrant_store.options, "transport": request.cls.transport}
    try:
        info = anyio.run(server_of, qdrant_store.url, options)
    except Unavailable as reason:
        if "gRPC is not available" not in str(reason):
            raise
        pytest.skip(f"{qdrant_store.url}: {reason}")
    ran_on("qdrant", f"{info.version} at {info.url}, {info.details['transport']} ({qdrant_store.how})")
    prefix = f"m3-test-{uuid.uuid4().hex[:8]}-{RUN}-"
    yield prefix
    anyio.run(drop_leftovers, qdrant_store.url, options, prefix)


class TestRealServer(BackendConformance):
    """Against the server that ``M3_QDRANT_URL`` names, or a container; over gRPC here, and over REST below."""

    transport: ClassVar[str] = "grpc"

    @pytest.fixture(autouse=True)
    def _server(self, qdrant_store: Running, prefix: str) -> None:
        self.url = qdrant_store.url
        self.options = {**qdrant_store.options, "transport": self.transport}
        self.prefix = f"{prefix}{uuid.uuid4().hex[:8]}"

    def make_backend(self, directory: Path, collection: str) -> Backend:
        return backend_for(self.url, f"{self.prefix}-{collection}", self.options)

    @runs
    async def test_several_shards_answer_like_one(self, tmp_path: Path) -> None:
        world = make_world(31, documents=300)
        backend = backend_for(self.url, f"{self.prefix}-shards", {**self.options, "shards": 3})
        await backend.create(world.schema)
        try:
            await backend.upsert(world.documents, world.embeddings)
            await backend.optimize()
            oracle = await oracle_of(world)
            for query in world.queries:
                await compare_search(backend, oracle, query, ALL, 20)
                await compare_search(backend, oracle, query, DENSE_SPARSE, 20)
        finally:
            await backend.drop()
            await backend.close()

    @runs
    async def test_an_index_that_is_there_is_not_made_again(self, tmp_path: Path) -> None:
        options = {**self.options, "indexes": {"lang": "keyword", "x y": "number"}}
        backend = backend_for(self.url, f"{self.prefix}-indexes", options)
        assert isinstance(backend, QdrantBackend)
        await backend.create(make_world(32).schema)
        try:
            info = await backend._info("test")
            assert info is not None
            assert set(map(tuple, map(keys_of, info.payload_schema))) == {
                ("metadata", "lang"),
                ("metadata", "x y"),
                ("large", "x y"),
            }
        finally:
            await backend.drop()
            await backend.close()


class TestRealServerOverRest(TestRealServer):
    transport = "rest"


async def server_of(url: str, options: dict[str, Any]) -> ServerInfo:
    backend = backend_for(url, "m3-test", {**options, **QUICK})
    try:
        return await backend.server()
    finally:
        await backend.close()


async def drop_leftovers(url: str, options: dict[str, Any], prefix: str) -> None:
    """What tests that failed in their middle left; collections of others stay."""
    backend = backend_for(url, "m3-test", options)
    assert isinstance(backend, QdrantBackend)
    try:
        await backend._connection.connect()
        client = backend._connection.client
        for collection in (await client.get_collections()).collections:
            if collection.name.startswith(prefix):
                await client.delete_collection(collection.name)
    finally:
        await backend.close()


def test_only_the_runs_own_collections_are_dropped_at_its_end(fake: FakeQdrant) -> None:
    for name in ("m3-test-1-a", "m3-test-1-b", "m3-test-2-a", "notes"):
        fake.engine.create_collection(name, models.VectorParams(size=2, distance=models.Distance.DOT))
    anyio.run(drop_leftovers, fake.url, {"grpc_port": fake.grpc_port}, "m3-test-1-")
    left = {collection.name for collection in fake.engine.get_collections().collections}
    assert left == {"m3-test-2-a", "notes"}


class TestFakeOverGrpc(BackendConformance):
    worlds = 1
    long_dimension = 128
    approximate_documents = 120
    transport: ClassVar[str] = "grpc"

    @pytest.fixture(autouse=True)
    def _server(self, fake: FakeQdrant) -> None:
        self.fake = fake

    def make_backend(self, directory: Path, collection: str) -> Backend:
        return backend_on(self.fake, collection, transport=self.transport)


class TestFakeOverRest(TestFakeOverGrpc):
    """Another encoding of the same requests."""

    random_filters = 50
    approximate_documents = 60
    transport = "rest"


@pytest.mark.parametrize(
    ("quantisation", "strict"),
    [*((kind, False) for kind in QUANTISATIONS), ("product", True)],
)
class TestQuantisedOverGrpc(ApproximateClauses):
    """The operator's default quantises every collection; strict mode asks for scores in stages."""

    approximate_documents = 300  # product quantisation has 256 centroids: fewer points are exact by chance
    approximate_dimension = 24
    approximate_precisions = ("float16", "float32")  # the server scores no compact rows
    transport: ClassVar[str] = "grpc"

    @pytest.fixture(autouse=True)
    def _server(self, quantisation: str, strict: bool) -> Iterator[None]:
        with FakeQdrant(operator=Operator(quantisation)) as fake:
            fake.strict = {"search_allow_exact": False} if strict else {}
            self.fake = fake
            yield

    def make_backend(self, directory: Path, collection: str) -> Backend:
        return backend_on(self.fake, collection, transport=self.transport)


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
class TestLowFullScanThreshold(ApproximateClauses):
    """The server walks its graph even where few points pass or are named, and sees some of them only."""

    approximate_dimension = 32
    approximate_precisions = ("float16", "float32")

    @pytest.fixture(autouse=True)
    def _server(self, strict: bool) -> Iterator[None]:
        with FakeQdrant(operator=Operator(full_scan_threshold=1)) as fake:
            fake.strict = {"search_allow_exact": False} if strict else {}
            self.fake = fake
            yield

    def make_backend(self, directory: Path, collection: str) -> Backend:
        return backend_on(self.fake, collection)

    @runs
    async def test_stored_ids_are_always_scored_and_others_never(self, tmp_path: Path) -> None:
        world = self._world(175)
        async with self.stored(tmp_path, world) as backend:
            await backend.optimize()
            oracle = await oracle_of(world)
            ids = [document.id for document in world.documents]
            for start in range(0, len(ids), 10):
                for component in ("dense", "sparse", "multivector"):
                    query, some = world.queries[start % len(world.queries)], ids[start : start + 10]
                    got = await backend.score(component, query, some)
                    np.testing.assert_allclose(got, await oracle.score(component, query, some), atol=1e-5)
            with pytest.raises(NotFound, match="unknown"):
                await backend.score("dense", world.queries[0], [*ids[:3], "unknown"])

    @runs
    async def test_lists_are_full_whatever_the_filter_cuts(self, tmp_path: Path) -> None:
        world = make_world(176, documents=900, dimension=32, most_rows=1)
        async with self.stored(tmp_path, world) as backend:
            await backend.optimize()
            for raw in (None, *world.filters[::3]):
                for limit in (20, 1000):
                    got = await backend.candidates("dense", world.queries[0], limit, filter=parse_filter(raw))
                    assert len(got.ids) == min(limit, len(world.passing(raw))), raw


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@runs
async def test_over_rest_quantisation_is_ignored_too(strict: bool) -> None:
    world = make_world(173, documents=100)
    with FakeQdrant(operator=Operator("int8", full_scan_threshold=1)) as fake:
        fake.strict = {"search_allow_exact": False} if strict else {}
        backend = await filled(fake, world, transport="rest")
        await backend.optimize()
        oracle = await oracle_of(world)
        for method in METHODS.values():
            await compare_scores(backend, oracle, world.queries[0], method, 20)
        assert {request.protocol for request in fake.named("search")} == {"REST"}
        await backend.close()


@pytest.mark.parametrize("quantisation", ["int8", "product", "turbo"])
@runs
async def test_the_stand_in_quantises_what_is_not_told_to_ignore_it(
    monkeypatch: pytest.MonkeyPatch, quantisation: str
) -> None:
    world = make_world(174, documents=300, dimension=24, most_rows=3)
    told = qdrant_twin.params_of
    monkeypatch.setattr(
        qdrant_twin, "params_of", lambda asked: told(asked.model_copy(update={"quantization": None}))
    )
    with FakeQdrant(operator=Operator(quantisation)) as fake:
        backend = await filled(fake, world)
        await backend.optimize()
        with pytest.raises(AssertionError, match=r"dense of .* by search; the true score is"):
            await compare_scores(backend, await oracle_of(world), world.queries[0], METHODS["dense"], 20)
        await backend.close()


# -- what is sent


def floats(data: Any) -> np.ndarray[Any, Any]:
    return np.array(data, dtype=np.float32)


def test_a_hand_made_point_is_the_one_that_the_public_classes_make() -> None:
    world = make_world(40, documents=3)
    layout = dataclasses.replace(
        Layout.of(world.schema), rows_per_vector=2, multivectors=("multi_0", "multi_1", "multi_2")
    )
    rng = np.random.default_rng(4)
    texts = [(unit_rows(rng.normal(size=24)), {7: 0.5, 3: 0.25}, unit_rows(rng.normal(size=(5, 24))))] * 3
    embeddings = join(texts, world.schema.model)
    document = Document(
        "a/ü", "text", {"n": 1, "f": 0.1, "t": True, "when": "2024-05-31", "nested": {"x": [None]}}
    )
    point = next(points_of(layout, [document], embeddings))
    dense, _, rows = texts[0]
    wanted = pb.PointStruct(
        id=pb.PointId(uuid=str(point_id("a/ü"))),
        vectors=pb.Vectors(
            vectors=pb.NamedVectors(
                vectors={
                    "dense": pb.Vector(dense=pb.DenseVector(data=dense.tolist())),
                    "sparse": pb.Vector(sparse=pb.SparseVector(indices=[3, 7], values=[0.25, 0.5])),
                    **{
                        f"multi_{i}": pb.Vector(
                            multi_dense=pb.MultiDenseVector(
                                vectors=[pb.DenseVector(data=row.tolist()) for row in rows[2 * i : 2 * i + 2]]
                            )
                        )
                        for i in range(3)
                    },
                }
            )
        ),
    )
    made = point_message(point)
    assert made.vectors == wanted.vectors
    assert made.id == wanted.id
    assert made.payload["text"].string_value == "text"
    assert made.payload["metadata"].struct_value.fields["f"].double_value == 0.1
    assert made.payload["dates"].struct_value.fields["when"].string_value.startswith("2024-05-31T00:00:00")
    assert json.loads(made.payload["json"].string_value) == document.metadata


@pytest.mark.parametrize("staged", [False, True])
def test_a_hand_made_query_is_the_one_that_the_public_classes_make(staged: bool) -> None:
    rows = unit_rows(np.random.default_rng(5).normal(size=(3, 8)))
    ids = [str(uuid.UUID(int=i)) for i in range(3)]
    made = query_message("notes", Ask("multi_0", rows, 3, ids=ids, staged=staged, exact=not staged))
    by_id = pb.Filter(
        must=[pb.Condition(has_id=pb.HasIdCondition(has_id=[pb.PointId(uuid=id) for id in ids]))]
    )
    vector = pb.MultiDenseVector(vectors=[pb.DenseVector(data=row.tolist()) for row in rows])
    ignored = pb.QuantizationSearchParams(ignore=True)
    common = {
        "collection_name": "notes",
        "using": "multi_0",
        "limit": 3,
        "query": pb.Query(nearest=pb.VectorInput(multi_dense=vector)),
        "with_payload": pb.WithPayloadSelector(enable=False),
    }
    if staged:
        params = pb.SearchParams(quantization=ignored)
        wanted = pb.QueryPoints(**common, prefetch=[pb.PrefetchQuery(filter=by_id, limit=3)], params=params)
    else:
        params = pb.SearchParams(exact=True, quantization=ignored)
        wanted = pb.QueryPoints(**common, filter=by_id, params=params)
    assert made == wanted


@runs
async def test_a_collection_is_made_for_inner_products_and_nothing_else(fake: FakeQdrant) -> None:
    world = make_world(41)
    backend = backend_on(fake, shards=2)
    await backend.create(world.schema)
    (sent,) = fake.named("create")
    body = json.loads(sent.body)
    assert body["vectors"]["dense"] == {"size": 24, "distance": "Dot"}
    assert body["vectors"]["multi_0"] == {
        "size": 24,
        "distance": "Dot",
        "hnsw_config": {"m": 0},
        "on_disk": True,
        "datatype": "float16",
        "multivector_config": {"comparator": "max_sim"},
    }
    assert body["sparse_vectors"] == {"sparse": {}}
    assert body["shard_number"] == 2
    assert set(body["metadata"]) == {"m3_connectors", "m3_connectors_creation"}
    assert json.loads(body["metadata"]["m3_connectors"]) == json.loads(json.dumps(world.schema.to_json()))
    await backend.close()


def test_parts_stay_below_the_servers_limit() -> None:
    for width, rows in ((1024, 1023), (256, 4095), (768, 1365)):
        world = make_world(42, dimension=width, documents=1)
        layout = Layout.of(world.schema)
        assert layout.rows_per_vector == rows
        assert rows * width < 2**20 <= (rows + 1) * width
        assert rows * len(layout.multivectors) >= 8192


@runs
async def test_a_search_takes_two_round_trips_and_asks_by_id_exactly(fake: FakeQdrant) -> None:
    world = make_world(43)
    backend = await filled(fake, world)
    await backend.search(world.queries[0], ALL, 5)  # learns that the collection is smaller than a list
    for method, requests in ((ALL, 2), (DENSE_SPARSE, 4)):
        fake.requests.clear()
        await backend.search(world.queries[0], method, 5)
        # Dense+Sparse: two lists at the same time, what they lack, and the multi-vector scores of the five hits; beside
        # the last, the hits' documents.
        assert sorted(request.name for request in fake.requests) == ["retrieve", *["search"] * requests]
        assert {request.protocol for request in fake.requests} == {"gRPC"}
        for request in fake.named("search")[2 if method is DENSE_SPARSE else 1 :]:
            for query in request.body.query_points:
                assert query.params.exact
                assert query.limit == len(query.filter.must[0].has_id.has_id) > 0
    first = fake.requests[0].body.query_points[0]
    assert {q.body.query_points[0].using for q in fake.requests[:2]} == {"dense", "sparse"}
    assert first.limit == 1000
    assert first.with_payload.include.fields == ["id"]
    await backend.close()


@runs
async def test_a_query_beyond_the_limit_is_asked_in_parts(fake: FakeQdrant) -> None:
    world = make_world(44, dimension=1024, documents=3, storage=Storage("float32"))
    rows = unit_rows(np.random.default_rng(6).normal(size=(1500, 1024)))
    assert world.queries[0].dense is not None
    query = join([(world.queries[0].dense[0], {1: 1.0}, rows)], world.schema.model)
    backend = await filled(fake, world)
    ids = [document.id for document in world.documents]
    got = await backend.score("multivector", query, ids)
    want = await (await oracle_of(world)).score("multivector", query, ids)
    np.testing.assert_allclose(got, want, atol=1e-5)
    asked = [
        len(q.query.nearest.multi_dense.vectors) for r in fake.named("search") for q in r.body.query_points
    ]
    assert sorted(asked) == [1, 477, 1023]  # the one row asks who is split
    await backend.close()


@runs
async def test_a_split_document_is_scored_over_all_its_parts(fake: FakeQdrant) -> None:
    small = make_world(45, dimension=1024, documents=3)
    rng = np.random.default_rng(45)
    texts = [
        (unit_rows(rng.normal(size=1024)), {2: 0.5}, unit_rows(rng.normal(size=(rows, 1024))))
        for rows in (2500, 3, 1023)
    ]
    world = dataclasses.replace(small, embeddings=join(texts, small.schema.model))
    backend = await filled(fake, world)
    ends = np.stack([texts[0][2][0], texts[0][2][1500], texts[0][2][-1]])
    query = join([(texts[0][0], {2: 1.0}, ends)], small.schema.model)
    hits = await backend.search(query, ALL, 3)
    by_id = {hit.id: hit for hit in hits}
    assert by_id[world.documents[0].id].scores.multivector == pytest.approx(1.0, abs=1e-3)
    await compare_search(backend, await oracle_of(world), query, ALL, 3)
    sent = [point for request in fake.named("upsert") for point in request.body.points]
    shapes = {
        len(point.vectors.vectors.vectors): [
            len(point.vectors.vectors.vectors[f"multi_{i}"].multi_dense.vectors) for i in range(3)
        ]
        for point in sent
        if "multi_1" in point.vectors.vectors.vectors
    }
    assert shapes == {5: [1023, 1023, 454]}
    await backend.close()


@runs
async def test_writes_are_cut_by_bytes_and_applied_when_they_return(fake: FakeQdrant) -> None:
    small = make_world(46, dimension=1024, documents=12)
    rows = unit_rows(np.random.default_rng(46).normal(size=(900, 1024)))
    assert small.embeddings.dense is not None
    texts = [(dense, {1: 1.0}, rows) for dense in small.embeddings.dense]
    world = dataclasses.replace(small, embeddings=join(texts, small.schema.model))
    backend = await filled(fake, world)
    sent = fake.named("upsert")
    assert len(sent) == 4
    assert all(request.body.wait and request.bytes < 12 * 2**20 for request in sent)
    assert sum(len(request.body.points) for request in sent) == 12
    await backend.close()


@runs
async def test_vectors_are_read_one_long_document_at_a_time(fake: FakeQdrant) -> None:
    world = make_world(51, documents=9)
    backend = await filled(fake, world)
    fake.requests.clear()
    ids = [document.id for document in world.documents]
    back = await backend.vectors([*ids, ids[0]])
    assert len(back) == 10
    assert [len(request.body.ids) for request in fake.named("retrieve")] == [1] * 9
    await backend.close()


@runs
async def test_a_candidate_deleted_in_between_is_no_answer(fake: FakeQdrant) -> None:
    world = make_world(52)
    backend = await filled(fake, world)
    lists = backend.lists
    gone: list[str] = []

    async def lists_then_deletion(ask: Lists) -> Candidates:
        found = await lists(ask)
        if not gone:
            gone.append((await backend.ids(found))[0])
            await backend.delete(gone)
        return found

    backend.lists = lists_then_deletion  # type: ignore[method-assign]
    hits = await backend.search(world.queries[0], ALL, len(world.documents))
    assert len(hits) == len(world.documents) - 1
    assert gone[0] not in {hit.id for hit in hits}
    assert all(np.isfinite(hit.score) for hit in hits)
    await backend.close()


@runs
async def test_a_search_in_a_collection_that_is_gone_is_asked_once(fake: FakeQdrant) -> None:
    world = make_world(53)
    backend = await filled(fake, world)
    other = backend_on(fake)
    await other.drop()
    await other.close()
    fake.requests.clear()
    with pytest.raises(CollectionNotFound):
        await backend.search(world.queries[0], ALL, 5)
    assert [request.name for request in fake.requests] == ["search"]
    await backend.close()


@runs
async def test_what_is_too_large_is_halved(fake: FakeQdrant) -> None:
    world = make_world(47, documents=8)
    backend = backend_on(fake)
    await backend.create(world.schema)
    too_large = Refusal(413, grpc.StatusCode.RESOURCE_EXHAUSTED, "message larger than max (9 vs. 4)")
    fake.failures += [("upsert", too_large), ("upsert", too_large)]
    await backend.upsert(world.documents, world.embeddings)
    assert [len(request.body.points) for request in fake.named("upsert")] == [8, 4, 2, 2, 4]
    assert await backend.count() == 8
    await backend.close()


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@pytest.mark.parametrize("known", [True, False], ids=["set before", "set after opening"])
@runs
async def test_rate_limits_below_one_request_are_kept_to(
    fake: FakeQdrant, protocol: str, known: bool
) -> None:
    world = make_world(63, documents=30)
    limits = {"write_rate_limit": 7, "read_rate_limit": 5}
    fake.strict = limits if known else {}
    backend = backend_on(fake, transport=protocol)
    await backend.create(world.schema)
    fake.strict = limits
    await backend.upsert(world.documents, world.embeddings)
    ids = [document.id for document in world.documents]
    if known:
        assert len(fake.named("upsert")) == 5  # none was refused
    assert await backend.fetch(ids) == world.documents
    oracle = await oracle_of(world)
    await compare_search(backend, oracle, world.queries[0], ALL, 20)
    for component in ("dense", "sparse", "multivector"):
        got = await backend.score(component, world.queries[0], ids)
        want = await oracle.score(component, world.queries[0], ids)
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert await backend.delete(ids[:10]) == 10
    everything = parse_filter({"no such": {"$exists": False}})
    assert everything is not None
    assert await backend.delete_where(everything) == 20
    assert await backend.count() == 0
    fake.strict = {"write_rate_limit": 0}
    fake.requests.clear()
    with pytest.raises(Rejected, match=r"Raise write_rate_limit") as caught:
        await backend.upsert(world.documents[:1], world.embeddings[:1])
    assert not caught.value.retryable
    assert len(fake.named("upsert")) == 1
    await backend.close()


@runs
async def test_batch_limits_that_are_lowered_while_the_collection_is_open_are_kept_to(
    fake: FakeQdrant,
) -> None:
    world = make_world(64, documents=30)
    backend = backend_on(fake)
    await backend.create(world.schema)
    fake.strict = {"upsert_max_batchsize": 4, "search_max_batchsize": 1}
    await backend.upsert(world.documents, world.embeddings)
    await compare_search(backend, await oracle_of(world), world.queries[0], ALL, 20)
    await backend.close()


@pytest.mark.parametrize(
    ("operator", "strict", "what", "is_problem"),
    [
        (Operator("int8"), {}, "quantised (scalar of all vectors), which searches do not use", False),
        (Operator("turbo"), {}, "quantised (turbo of all vectors)", False),
        (Operator(m=0), {}, "no graph (hnsw_config.m is 0), so each search scans", False),
        (Operator(m=0), {"search_allow_exact": False}, "strict mode refuses every dense search", True),
        (Operator(full_scan_threshold=1), {"search_allow_exact": False}, "covers only 10 documents", False),
        (
            Operator(),
            {"write_rate_limit": 100},
            "writes of documents to 100 a minute (write_rate_limit)",
            False,
        ),
        (Operator(), {"read_rate_limit": 1000}, "reads to 1,000 a minute (read_rate_limit)", False),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@runs
async def test_a_server_says_what_its_operator_chose(
    operator: Operator, strict: dict[str, Any], what: str, is_problem: bool
) -> None:
    with FakeQdrant(operator=operator) as fake:
        backend = backend_on(fake)
        await backend.create(make_world(65, documents=1).schema)
        fake.strict = strict
        (remark,) = [remark for remark in (await backend.server()).remarks if what in remark.what]
        assert remark.is_problem == is_problem
        await backend.close()


@runs
async def test_multi_vectors_that_could_not_be_scored_exactly_are_refused(
    fake: FakeQdrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_on(fake)
    await backend.create(make_world(66, documents=1).schema)
    info = fake.info

    def with_a_graph(name: str) -> Any:
        said = info(name)
        said["config"]["params"]["vectors"]["multi_0"]["hnsw_config"] = {"m": 16}
        return said

    monkeypatch.setattr(fake, "info", with_a_graph)
    await backend.open()
    fake.strict = {"search_allow_exact": False}
    with pytest.raises(Unsupported, match=r"multi_0.*graph"):
        await backend.open()
    await backend.close()


@runs
async def test_over_rest_float16_rows_are_short_and_still_the_same(fake: FakeQdrant) -> None:
    world = make_world(48, documents=5)
    backend = await filled(fake, world, transport="rest")
    (sent,) = fake.named("upsert")
    rows = json.loads(sent.body)["points"][0]["vector"]["multi_0"]
    assert max(len(repr(value)) for row in rows for value in row) <= 11
    assert world.embeddings.multivectors is not None
    np.testing.assert_array_equal(
        np.array(rows, dtype=np.float32).astype(np.float16),
        world.embeddings.multivectors[0].astype(np.float16),
    )
    await backend.close()


@runs
async def test_over_rest_a_document_beyond_the_limit_is_refused_before_it_is_sent(fake: FakeQdrant) -> None:
    small = make_world(49, dimension=1024, documents=1, storage=Storage("float32"))
    assert small.embeddings.dense is not None
    rows = unit_rows(np.random.default_rng(49).normal(size=(2500, 1024)))
    world = dataclasses.replace(
        small, embeddings=join([(small.embeddings.dense[0], {1: 1.0}, rows)], small.schema.model)
    )
    backend = backend_on(fake, transport="rest")
    await backend.create(world.schema)
    with pytest.raises(Unsupported, match="gRPC port"):
        await backend.upsert(world.documents, world.embeddings)
    assert fake.named("upsert") == []
    await backend.close()


# -- which protocol, which server


@runs
async def test_without_grpc_rest_is_used_and_said(caplog: pytest.LogCaptureFixture) -> None:
    world = make_world(50, documents=4)
    with FakeQdrant(grpc_open=False) as fake, caplog.at_level(logging.WARNING):
        backend = backend_on(fake, grpc_port=fake.port)  # something answers there, but not in gRPC
        await backend.create(world.schema)
        await backend.upsert(world.documents, world.embeddings)
        assert {request.protocol for request in fake.requests} == {"REST"}
        assert "using REST" in caplog.text
        demanding = backend_on(fake, grpc_port=fake.port, transport="grpc")
        with pytest.raises(Unavailable, match="gRPC is not available"):
            await demanding.open()
        await backend.close()
        await demanding.close()


@runs
async def test_an_old_server_is_refused_by_version() -> None:
    with FakeQdrant(version="1.15.5") as fake:
        backend = backend_on(fake)
        with pytest.raises(Unsupported, match=r"1\.15\.5.*1\.16"):
            await backend.open()
        await backend.close()


@runs
async def test_a_collection_that_forbids_exact_search_is_scored_in_stages(fake: FakeQdrant) -> None:
    fake.strict = {"search_allow_exact": False, "max_query_limit": 250}
    world = make_world(51)
    backend = await filled(fake, world)
    got = await backend.search(world.queries[0], ALL, 10)
    want = await (await oracle_of(world)).search(world.queries[0], ALL, 10)
    assert [hit.id for hit in got] == [hit.id for hit in want]
    np.testing.assert_allclose([hit.score for hit in got], [hit.score for hit in want], atol=1e-5)
    staged = [q for r in fake.named("search") for q in r.body.query_points if len(q.prefetch)]
    assert staged
    assert not any(q.params.exact for r in fake.named("search") for q in r.body.query_points)
    with pytest.raises(Unsupported, match="exact=False"):
        await backend.search(world.queries[0], ALL, 5, exact=True)
    await backend.close()


@runs
async def test_strict_mode_is_kept_to_in_counts_lists_and_ids(fake: FakeQdrant) -> None:
    world = make_world(51)
    fake.strict = {"search_allow_exact": False, "max_query_limit": 7, "condition_max_size": 5}
    backend = await filled(fake, world)
    assert await backend.count() == len(world.documents)
    filter = parse_filter(world.filters[0])
    assert await backend.count(filter) == len(world.passing(world.filters[0]))
    assert not fake.named("count")
    ids = [document.id for document in world.documents[:12]]
    for component in ("dense", "sparse", "multivector"):
        got = await backend.score(component, world.queries[0], ids)
        want = await (await oracle_of(world)).score(component, world.queries[0], ids)
        np.testing.assert_allclose(got, want, atol=1e-5)
    with pytest.raises(Unsupported, match=r"200 candidates.* allows 7 .*max_query_limit"):
        await backend.search(world.queries[0], ALL, 5)
    (remark,) = [r for r in (await backend.server()).remarks if "at most" in r.what]
    assert remark.is_problem
    assert "all" in remark.what
    await backend.close()


@runs
async def test_optimize_waits_until_the_server_is_done(
    fake: FakeQdrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_collection, "_LOOK_EVERY_SECONDS", 0.01)
    backend = await filled(fake, make_world(56, documents=3))
    fake.requests.clear()
    fake.states = ["grey", "green", "yellow", "grey", "green", "green"]
    await backend.optimize()
    assert fake.states == []
    (woken,) = fake.named("update")
    assert json.loads(woken.body)["optimizers_config"] == {}
    for state, kind in (("red", Rejected), ("No space left on device", StorageFull)):
        fake.states = [state]
        with pytest.raises(kind, match="optimiser"):
            await backend.optimize()
    monkeypatch.setattr(server_collection, "_OPTIMIZE_SECONDS", 0.0)
    fake.states = ["yellow"]
    with pytest.raises(TimedOut, match="is not optimised"):
        await backend.optimize()
    await backend.close()


@runs
async def test_writes_that_are_only_noted_are_tried_again(fake: FakeQdrant) -> None:
    world = make_world(57, documents=6)
    backend = await filled(fake, world)
    for name, call in (
        ("delete", lambda: backend.delete([world.documents[0].id])),
        ("delete", lambda: backend.delete_where(parse_filter({"no such": {"$exists": False}}))),
    ):
        fake.requests.clear()
        fake.statuses = ["wait_timeout", "acknowledged"]
        await call()
        assert len(fake.named(name)) == 3
    again = backend_on(fake, indexes={"lang": "keyword"})
    fake.statuses = ["wait_timeout"]
    await again.open()
    assert len(fake.named("index")) == 2
    await again.close()
    await backend.close()


@runs
async def test_an_index_that_is_there_is_left_to_a_key_that_may_only_read(fake: FakeQdrant) -> None:
    indexes = {"lang": "keyword", "a.x y": "number", "日本": "date", "x-y": "bool"}
    backend = backend_on(fake, indexes=indexes)
    await backend.create(make_world(54).schema)
    assert set(fake.info("notes")["payload_schema"]) == {
        "metadata.lang",
        'metadata.a."x y"',
        'metadata."a.x y"',
        'large.a."x y"',
        'large."a.x y"',
        "dates.日本",
        "metadata.日本",
        "flags.x-y",
        "metadata.x-y",
    }
    fake.requests.clear()
    fake.failures.append(("index", Refusal(403, grpc.StatusCode.PERMISSION_DENIED, "Forbidden: read only")))
    again = backend_on(fake, indexes=indexes)
    await again.open()
    assert not fake.named("index")
    await again.close()
    await backend.close()


@runs
async def test_a_server_says_what_it_is_before_there_is_a_collection(fake: FakeQdrant) -> None:
    backend = backend_on(fake)
    info = await backend.server()
    assert (info.version, info.details, info.remarks) == (
        "1.18.3",
        {"transport": "gRPC, not encrypted"},
        (),
    )
    await backend.create(make_world(52).schema)
    assert (await backend.server()).details["state"].startswith("green")
    await backend.close()
    fallen_back = backend_on(fake, grpc_port=fake.port)
    (remark,) = (await fallen_back.server()).remarks
    assert "gRPC is not available at port" in remark.what
    assert "6334" in remark.remedy
    assert not remark.is_problem
    await fallen_back.close()


@runs
async def test_a_server_that_forgets_metadata_at_creation_is_told_again(
    fake: FakeQdrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = make_world(52).schema
    create = fake.create
    monkeypatch.setattr(fake, "create", lambda name, raw: create(name, {**raw, "metadata": None}))
    backend = backend_on(fake)
    await backend.create(schema)
    assert await backend.open() == schema
    await backend.close()


# -- the collection


@runs
async def test_a_creation_whose_answer_was_lost_is_done(fake: FakeQdrant) -> None:
    world = make_world(55)
    lost = [Refusal(502, grpc.StatusCode.UNAVAILABLE, "the answer was lost")]

    def lose(name: str) -> None:
        if name == "create" and lost:
            raise lost.pop()

    fake.after = lose
    backend = backend_on(fake)
    await backend.create(world.schema)
    assert len(fake.named("create")) == 2
    assert await backend.open() == world.schema
    other = backend_on(fake)
    with pytest.raises(AlreadyExists):
        await other.create(world.schema)
    await other.close()
    await backend.close()


@runs
async def test_another_programs_collection_is_neither_opened_nor_dropped(fake: FakeQdrant) -> None:
    fake.engine.create_collection(
        "notes", vectors_config=models.VectorParams(size=4, distance=models.Distance.DOT)
    )
    backend = backend_on(fake)
    with pytest.raises(Rejected, match="it was not created by m3-connectors"):
        await backend.open()
    with pytest.raises(AlreadyExists):
        await backend.create(make_world(52).schema)
    with pytest.raises(Rejected):
        await backend.drop()
    assert fake.engine.collection_exists("notes")
    await backend.close()


@runs
async def test_an_alias_is_used_but_neither_dropped_nor_created(fake: FakeQdrant) -> None:
    world = make_world(59, documents=6)
    backend = await filled(fake, world)
    alias = models.CreateAlias(collection_name="notes", alias_name="current")
    fake.engine.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
    by_alias = backend_on(fake, "current")
    assert await by_alias.open() == world.schema
    assert await by_alias.count() == 6
    with pytest.raises(AlreadyExists, match='"current" is an alias of collection "notes"'):
        await by_alias.create(world.schema)
    with pytest.raises(Rejected, match='"current" is an alias of collection "notes"'):
        await by_alias.drop()
    assert await by_alias.count() == 6  # it is still open
    assert await backend.count() == 6
    await backend.drop()
    with pytest.raises(NotFound):
        await by_alias.open()
    await by_alias.drop()
    await by_alias.close()
    await backend.close()


@pytest.mark.parametrize(
    "change",
    [
        "dropped",
        "narrower",
        "cosine",
        "sparse dropped",
        "idf",
        "dense in uint8",
        "dense in float16",
        "rows in float32",
        "sparse in float16",
    ],
)
@runs
async def test_a_changed_collection_is_refused_by_what_changed(fake: FakeQdrant, change: str) -> None:
    world = make_world(53)
    backend = backend_on(fake)
    await backend.create(world.schema)
    config = fake.engine.get_collection("notes").config
    vectors, sparse = config.params.vectors, config.params.sparse_vectors
    assert isinstance(vectors, dict)
    assert sparse is not None
    if change == "dropped":
        del vectors["multi_0"]
    elif change == "narrower":
        vectors["dense"].size = 8
    elif change == "cosine":
        vectors["dense"].distance = models.Distance.COSINE
    elif change == "sparse dropped":
        sparse.clear()
    elif change.startswith("dense in"):
        vectors["dense"].datatype = models.Datatype(change.rpartition(" ")[2])
    elif change == "rows in float32":
        vectors["multi_0"].datatype = None
    elif change == "sparse in float16":
        sparse["sparse"].index = models.SparseIndexParams(datatype=models.Datatype.FLOAT16)
    else:
        sparse["sparse"].modifier = models.Modifier.IDF
    fake.engine.delete_collection("notes")
    fake.engine.create_collection("notes", vectors, sparse_vectors_config=sparse, metadata=config.metadata)
    again = backend_on(fake)
    with pytest.raises(Corrupt, match="was changed"):
        await again.open()
    await again.drop()
    with pytest.raises(NotFound):
        await again.open()
    await backend.close()
    await again.close()


@runs
async def test_declared_fields_get_an_index_that_sees_every_value(fake: FakeQdrant) -> None:
    indexes = {"lang": "keyword", "year": "number", "when": "date", "open": "bool"}
    backend = backend_on(fake, indexes=indexes)
    await backend.create(make_world(54).schema)
    sent = {json.loads(r.body)["field_name"]: json.loads(r.body)["field_schema"] for r in fake.named("index")}
    assert sent == {
        'metadata."lang"': "keyword",
        'metadata."year"': "float",
        'large."year"': "keyword",
        'dates."when"': "datetime",
        'metadata."when"': "keyword",
        'flags."open"': "keyword",
        'metadata."open"': "keyword",
    }
    await backend.close()
    with pytest.raises(InvalidInput, match="indexes"):
        backend_on(fake, indexes={"year": "integer"})


@runs
async def test_strict_mode_takes_what_is_asked_of_declared_fields_and_says_how_to_declare_others(
    fake: FakeQdrant,
) -> None:
    fields = {"lang": "keyword", "author.name": "keyword", "year": "number", "when": "date", "open": "bool"}
    world = make_world(54, documents=40)
    undeclared = backend_on(fake)
    await undeclared.create(world.schema)
    await undeclared.upsert(world.documents, world.embeddings)
    fake.strict = {"unindexed_filtering_retrieve": False, "unindexed_filtering_update": False}
    declared = backend_on(fake, indexes=fields)
    await declared.open()
    asked = {
        "lang": [{"$in": ["en", "de"]}, {"$exists": True}, None, {"$ne": "en"}],
        "author.name": ["Ada", {"$exists": False}],
        "year": [2021, {"$gt": 2020}, {"$exists": True}, 2**60, {"$gte": 2**60}],
        "when": ["2024-01-31", {"$lt": "2024-01-31"}, {"$exists": True}, {"$nin": ["soon"]}],
        "open": [True, {"$ne": False}, {"$exists": True}, {"$exists": False}],
    }
    for field, operands in asked.items():
        for operand in operands:
            raw = {field: operand}
            filter = parse_filter(raw)
            assert filter is not None
            assert await declared.count(filter) == len(world.passing(raw))
            hits = await declared.search(world.queries[0], DENSE, 40, filter=filter)
            assert {hit.id for hit in hits} == set(world.passing(raw))
    assert await declared.delete_where(Or(())) == 0
    filter = parse_filter({"when": "2024-01-31"})
    assert filter is not None
    assert await declared.delete_where(filter) == len(world.passing({"when": "2024-01-31"}))
    await declared.close()
    await undeclared.close()


@runs
async def test_the_refusal_of_a_field_without_index_names_the_declaration_that_helps(
    fake: FakeQdrant,
) -> None:
    world = make_world(54, documents=40)
    undeclared = backend_on(fake)
    await undeclared.create(world.schema)
    await undeclared.upsert(world.documents, world.embeddings)
    fake.strict = {"unindexed_filtering_retrieve": False}
    for field, operand, kind in (
        ("lang", "en", "keyword"),
        ("author.name", {"$exists": True}, "keyword"),
        ("a key-with_odd:sïgns $", {"$in": [0, 3]}, "number"),
        ("large", {"$gt": 2**60}, "number"),
        ("when", {"$lt": "2024-01-31"}, "date"),
        ("open", True, "bool"),
    ):
        filter = parse_filter({field: operand})
        with pytest.raises(Rejected) as refused:
            await undeclared.count(filter)
        assert f'\n  Declare the field when you connect: indexes={{"{field}": "{kind}"}}' in str(
            refused.value
        )
        declared = backend_on(fake, indexes={field: kind})
        await declared.open()
        assert await declared.count(filter) == len(world.passing({field: operand}))
        await declared.close()
    await undeclared.close()


# -- errors


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@pytest.mark.parametrize(
    ("refusal", "kind", "tries"),
    [
        (Refusal(401, grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT"), Unauthorised, 1),
        (
            Refusal(403, grpc.StatusCode.PERMISSION_DENIED, "Global manage access is required"),
            Unauthorised,
            1,
        ),
        (
            Refusal(
                403, grpc.StatusCode.FAILED_PRECONDITION, "Storage locked: Write operations are forbidden"
            ),
            Locked,
            1,
        ),
        (
            Refusal(500, grpc.StatusCode.FAILED_PRECONDITION, "Pre-condition failure: no replica"),
            Unavailable,
            3,
        ),
        (Refusal(422, grpc.StatusCode.INVALID_ARGUMENT, "no"), Rejected, 1),
        (Refusal(507, grpc.StatusCode.RESOURCE_EXHAUSTED, "Out of disk"), StorageFull, 1),
        (Refusal(500, grpc.StatusCode.INTERNAL, "No space left on device: WAL buffer"), StorageFull, 1),
        (Refusal(500, grpc.StatusCode.INTERNAL, "task panicked"), Unavailable, 3),
        (Refusal(503, grpc.StatusCode.UNAVAILABLE, "shard is not ready"), Unavailable, 3),
        (Refusal(408, grpc.StatusCode.DEADLINE_EXCEEDED, "timed out"), TimedOut, 3),
        (Refusal(429, grpc.StatusCode.RESOURCE_EXHAUSTED, "Rate limit exceeded"), Throttled, 3),
    ],
    ids=lambda value: value.message if isinstance(value, Refusal) else None,
)
@runs
async def test_answers_become_typed_errors_and_only_some_are_tried_again(
    fake: FakeQdrant, protocol: str, refusal: Refusal, kind: type[BackendError], tries: int
) -> None:
    world = make_world(60, documents=3)
    backend = backend_on(fake, transport=protocol)
    await backend.create(world.schema)
    fake.failures += [("upsert", refusal)] * tries
    with pytest.raises(kind) as caught:
        await backend.upsert(world.documents, world.embeddings)
    assert type(caught.value) is kind
    assert refusal.message in str(caught.value)
    assert ("key" in str(caught.value)) == (kind is Unauthorised)
    assert caught.value.retryable == (tries > 1)
    assert len(fake.named("upsert")) == tries
    assert await backend.count() == 0
    await backend.upsert(world.documents, world.embeddings)
    assert await backend.count() == 3
    await backend.close()


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@runs
async def test_a_pause_that_the_server_asks_for_is_made(fake: FakeQdrant, protocol: str) -> None:
    world = make_world(61, documents=2)
    backend = await filled(fake, world, transport=protocol)
    busy = Refusal(429, grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down", {"Retry-After": "1"})
    fake.failures.append(("search", busy))
    started = anyio.current_time()
    assert len(await backend.search(world.queries[0], ALL, 2)) == 2
    assert anyio.current_time() - started >= 1.0
    await backend.close()


@runs
async def test_what_was_not_written_is_named_and_the_rest_is_there(fake: FakeQdrant) -> None:
    fake.strict = {"upsert_max_batchsize": 2}
    world = make_world(62, documents=6)
    backend = backend_on(fake)
    await backend.create(world.schema)
    fake.failures.append(("upsert", Refusal(422, grpc.StatusCode.INVALID_ARGUMENT, "not these two")))
    with pytest.raises(PartialWrite) as caught:
        await backend.upsert(world.documents, world.embeddings)
    assert len(caught.value.failed) == 2
    assert all("not these two" in reason for reason in caught.value.failed.values())
    there = [id async for id in backend.scan_ids()]
    assert sorted([*there, *caught.value.failed]) == sorted(document.id for document in world.documents)
    await backend.upsert(world.documents, world.embeddings)
    assert await backend.count() == 6
    await backend.close()


@runs
async def test_something_else_than_qdrant_is_no_qdrant(fake: FakeQdrant) -> None:
    fake.version = "not a version"
    backend = backend_on(fake)
    with pytest.raises(Rejected, match="which is not a version of Qdrant"):
        await backend.open()
    await backend.close()


# -- keys and certificates


@runs
async def test_a_key_that_expires_is_said_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(70, documents=3)
    with FakeQdrant(api_key="s3cret-one") as fake:
        monkeypatch.setenv("M3_QDRANT_API_KEY", "s3cret-one")
        backend = backend_on(fake)
        await backend.create(world.schema)
        await backend.upsert(world.documents, world.embeddings)
        fake.api_key = "s3cret-two"
        for call in (backend.count(), backend.search(world.queries[0], ALL, 2)):
            with pytest.raises(Unauthorised, match="api_key") as caught:
                await call
            assert not caught.value.retryable
            assert "s3cret" not in f"{caught.value}{caught.value!r}{vars(backend)}{backend._connection!r}"
        fake.api_key = "s3cret-one"
        assert await backend.count() == 3
        await backend.close()


@runs
async def test_certificates_are_checked_on_both_ports(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    chain = b"".join(part.bytes() for part in leaf.cert_chain_pems)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    stranger.cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    world = make_world(71, documents=3)
    with FakeQdrant(
        api_key="k", certificate=(leaf.private_key_pem.bytes(), chain), ssl_context=context
    ) as fake:
        trusting = backend_on(fake, ca_certs=str(tmp_path / "authority.pem"), api_key="k")
        await trusting.create(world.schema)
        await trusting.upsert(world.documents, world.embeddings)
        assert {request.protocol for request in fake.named("upsert")} == {"gRPC"}
        for options in ({"ca_certs": str(tmp_path / "stranger.pem")}, {}):
            doubting = backend_on(fake, api_key="k", **options)
            with pytest.raises(Unauthorised, match="ca_certs"):
                await doubting.open()
            await doubting.close()
        careless = backend_on(fake, api_key="k", verify=False)
        await careless.open()
        assert await careless.count() == 3
        await careless.close()
        await trusting.close()
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        await backend_on(fake, ca_certs=str(tmp_path / "nothing.pem"), api_key="k").open()


@pytest.mark.parametrize(
    "options",
    [
        {"transport": "carrier pigeon"},
        {"grpc_port": 0.5},
        {"colour": "blue"},
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        backend_for("qdrant+http://localhost", "notes", options)


# -- concurrency


@runs
async def test_a_hundred_searches_do_not_block_the_loop_and_one_may_be_cancelled() -> None:
    world = make_world(80)
    stalls, work, done = [], [], anyio.Event()
    # What the tests before left in memory takes the garbage collector a second, in whichever thread runs just then.
    gc.collect()
    gc.freeze()

    async def watch() -> None:
        while not done.is_set():
            started, worked = anyio.current_time(), time.thread_time()
            await anyio.sleep(0.001)
            stalls.append(anyio.current_time() - started)
            work.append(time.thread_time() - worked)

    command = [sys.executable, str(Path(__file__).parents[2] / "qdrant_fake.py"), "0.25"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port, grpc_port = process.stdout.readline().split()
        try:
            backend = backend_for(f"qdrant+http://localhost:{port}", "notes", {"grpc_port": int(grpc_port)})
            await backend.create(world.schema)
            await backend.upsert(world.documents, world.embeddings)
            async with anyio.create_task_group() as watching:
                watching.start_soon(watch)
                with anyio.move_on_after(0.02) as cancelled:
                    await backend.search(world.queries[1], ALL, 5)
                async with anyio.create_task_group() as tasks:
                    for _ in range(100):
                        tasks.start_soon(backend.search, world.queries[0], ALL, 5)
                done.set()
            assert cancelled.cancelled_caught
            assert len(await backend.search(world.queries[0], ALL, 5)) == 5
            await backend.close()
        finally:
            gc.unfreeze()
            process.kill()
    print(
        f"100 concurrent searches: the loop was away for {1000 * max(stalls):.0f} ms at most, "
        f"of which it worked {1000 * max(work):.0f} ms"
    )
    # The first is also time that a busy machine gave to others; a call that waits in the loop would take seconds,
    # for each search of this server takes a quarter of one.
    assert max(work) < 0.5
    assert max(stalls) < 10.0
