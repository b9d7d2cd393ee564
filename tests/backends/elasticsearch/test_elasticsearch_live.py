"""The Elasticsearch adapter against a real Elasticsearch."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from live_elasticsearch import Live, request
from loop_time import wall_seconds

from m3_connectors.backends.base import Backend, Schema, Storage
from m3_connectors.backends.elasticsearch.backend import ElasticsearchBackend
from m3_connectors.backends.elasticsearch.connection import segment
from m3_connectors.backends.elasticsearch.layout import alias_of
from m3_connectors.backends.precision import precision_of
from m3_connectors.backends.registry import backend_for
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings, ModelInfo
from m3_connectors.errors import (
    AlreadyExists,
    Corrupt,
    InvalidInput,
    NotFound,
    PartialWrite,
    Rejected,
    StorageFull,
)
from m3_connectors.filters import matches, parse_filter
from m3_connectors.methods import ALL, DENSE, DENSE_SPARSE, METHODS, SPARSE
from m3_connectors.scoring import score
from m3_connectors.testing.agreement import compare_search, oracle_of
from m3_connectors.testing.conformance import BackendConformance, runs
from m3_connectors.testing.servers.start import Running
from m3_connectors.testing.worlds import join, make_world, unit_rows


@pytest.fixture
def live(elasticsearch_store: Running) -> Iterator[Live]:
    made = Live(elasticsearch_store.url)
    yield made
    anyio.run(made.clean)


class TestConformance(BackendConformance):
    worlds = 3

    @pytest.fixture(autouse=True)
    def _server(self, live: Live) -> None:
        self.live = live

    def make_backend(self, directory: Path, collection: str) -> Backend:
        return self.live.backend(collection)


@runs
async def test_the_server_says_what_it_is(live: Live) -> None:
    backend = live.backend()
    info = await backend.server()
    assert info.url == backend._connection.url
    assert info.version is not None
    assert info.version[0] in "89"
    assert info.details["licence"]
    assert not [remark for remark in info.remarks if remark.is_problem]
    await backend.close()


@runs
async def test_a_scan_left_in_its_middle_opens_nothing_after_close(live: Live) -> None:
    world = make_world(3)
    backend = await live.filled(world)
    async for _ in backend.scan_ids():
        break
    await backend.close()
    await asyncio.get_running_loop().shutdown_asyncgens()
    assert [node.session for node in backend._connection._client.transport.node_pool.all()] == [None]
    await backend.drop()
    await backend.close()


# -- exactness where the server itself is not exact


@runs
async def test_an_exact_dense_list_of_more_documents_than_one_search_can_scan(live: Live) -> None:
    world = _flat_world(documents=12_500)
    backend = await live.filled(world, refresh=True)
    query = world.queries[0]
    true = score("dense", query, world.embeddings)
    best = np.argsort(-true, kind="stable")
    for limit in (1, 300, 10_500):
        found = await backend.candidates("dense", query, limit, exact=True)
        assert len(set(found.ids)) == limit
        np.testing.assert_allclose(found.scores, true[best[:limit]], atol=1e-6)
    deep = await backend.candidates("dense", query, 12_500)
    assert set(deep.ids) == {document.id for document in world.documents}
    sparse = await backend.candidates("sparse", query, 11_000)
    true = score("sparse", query, world.embeddings)
    best = np.argsort(-true, kind="stable")[:11_000]
    assert np.count_nonzero(true) > 11_000
    np.testing.assert_allclose(sparse.scores, true[best], atol=1e-6)
    await backend.close()


@runs
async def test_a_sparse_list_is_true_where_the_server_sees_only_equal_weights(live: Live) -> None:
    # Elasticsearch keeps 9 bits of a weight: all of these are one value to it, and the best come last.
    count = 1500
    weights = np.float32(0.5) + np.arange(count, dtype=np.float32) * np.float32(1e-7)
    world = make_world(90, documents=count, most_rows=1)
    row = unit_rows(np.ones((1, 24)))
    texts = [(row[0], {7: float(weight)}, row) for weight in weights]
    backend = live.backend()
    await backend.create(world.schema)
    await backend.upsert(world.documents, join(texts, world.schema.model))
    query = join([(row[0], {7: 1.0}, row)], world.schema.model)
    found = await backend.candidates("sparse", query, 10)
    order = sorted(range(count), key=lambda i: (-weights[i], world.documents[i].id))
    assert list(found.ids) == [world.documents[i].id for i in order[:10]]
    assert list(found.scores) == [weights[i] for i in order[:10]]
    await backend.close()


@runs
async def test_equal_dense_scores_at_the_cut_are_ordered_by_id(live: Live) -> None:
    world = make_world(91, documents=400, most_rows=1)
    row = unit_rows(np.ones((1, 24)))
    same = join([(row[0], {5: 1.0}, row)] * 400, world.schema.model)
    backend = live.backend()
    await backend.create(world.schema)
    await backend.upsert(world.documents, same)
    found = await backend.candidates("dense", same[0], 7, exact=True)
    assert list(found.ids) == sorted(document.id for document in world.documents)[:7]
    await backend.close()


@runs
async def test_hits_come_whole_and_the_head_of_a_dense_list_in_one_request(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(40, documents=60)
    backend = await live.filled(world)
    asked: list[str] = []
    search = backend._connection.search

    async def counted(*arguments: Any, **options: Any) -> Any:
        asked.append("search")
        return await search(*arguments, **options)

    monkeypatch.setattr(backend._connection, "search", counted)
    for method, requests in ((DENSE, 1), (SPARSE, 2), (DENSE_SPARSE, 4), (ALL, 3)):
        asked.clear()
        hits = await backend.search(world.queries[0], method, 3)
        assert len(hits) == 3
        assert len(asked) <= requests
        assert [hit.document for hit in hits] == await backend.fetch([hit.id for hit in hits])
        assert all(None not in (hit.scores.dense, hit.scores.sparse, hit.scores.multivector) for hit in hits)
    await backend.close()


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@runs
async def test_a_document_of_8191_rows_of_the_full_width_is_exact(live: Live, dtype: Any) -> None:
    rng = np.random.default_rng(92)
    model = ModelInfo("full/width", None, 1024, 100, "vocabulary")
    rows = unit_rows(rng.standard_normal((8191, 1024), dtype=np.float32))
    document = join([(rows[0], {1: 0.5}, rows)], model)
    query = join([(rows[1], {1: 0.5}, rows[5:21])], model)
    backend = live.backend()
    await backend.create(Schema(model, storage=Storage(dtype)))
    await backend.upsert([Document("long", "text")], document)
    (got,) = await backend.score("multivector", query, ["long"])
    kept = precision_of(dtype).rounded(document)
    asked = precision_of(dtype).rounded_query(query)
    assert got == pytest.approx(score("multivector", asked, kept)[0], abs=1e-6)
    assert await backend.count() == 1
    assert [id async for id in backend.scan_ids()] == ["long"]
    stored = await backend.vectors(["long"])
    assert stored.multivectors is not None
    assert kept.multivectors is not None
    np.testing.assert_array_equal(stored.multivectors.rows, kept.multivectors.rows)
    # Its parts are replaced with it, and go with it.
    held = await _held(backend)
    assert held > 1
    await backend.upsert([Document("long", "text")], document)
    assert await _held(backend) == held
    assert await backend.delete(["long"]) == 1
    assert await _held(backend) == 0
    await backend.close()


async def _held(backend: ElasticsearchBackend) -> int:
    """How many documents the index itself holds, parts of long ones among them."""
    path = f"/{segment(alias_of(backend.collection))}"
    await request(backend, "POST", f"{path}/_refresh")
    answer = await request(backend, "GET", f"{path}/_count")
    return int(answer["count"])


@runs
async def test_long_documents_are_refused_where_the_collection_says_so(live: Live) -> None:
    rng = np.random.default_rng(106)
    model = ModelInfo("full/width", None, 1024, 100, "vocabulary")
    rows = unit_rows(rng.standard_normal((2049, 1024), dtype=np.float32))
    texts = [(rows[0], {1: 0.5}, rows[:2048]), (rows[0], {1: 0.5}, rows)]
    documents = [Document("fits", ""), Document("long", "")]
    backend = live.backend()
    await backend.create(Schema(model, storage=Storage(long_documents="error")))
    with pytest.raises(InvalidInput, match=r"documents\[1\].*2049 multi-vector rows.*2048"):
        await backend.upsert(documents, join(texts, model))
    assert await backend.count() == 0
    await backend.upsert(documents[:1], join(texts[:1], model))
    assert await backend.count() == 1
    await backend.close()


@runs
async def test_vectors_that_are_not_of_unit_length_keep_their_inner_products(live: Live) -> None:
    world = make_world(93)
    rng = np.random.default_rng(93)
    assert world.embeddings.dense is not None
    lengths = rng.uniform(0, 30, size=(len(world.documents), 1)).astype(np.float32)
    lengths[0] = 0
    scaled = world.embeddings.replace(dense=world.embeddings.dense * lengths)
    backend = live.backend()
    await backend.create(world.schema)
    await backend.upsert(world.documents, scaled)
    true = score("dense", world.queries[0], scaled)
    ids = [document.id for document in world.documents]
    np.testing.assert_allclose(await backend.score("dense", world.queries[0], ids), true, atol=1e-5)
    await backend.close()


# -- metadata


@runs
async def test_fields_of_any_name_and_mixed_types_are_stored_and_filtered(live: Live) -> None:
    world = make_world(94, documents=12)
    values: list[Any] = [
        1, "1", True, [1, "a", None, {"x": 1}], {"deeper": 5}, "2024-05-01", 2.5, -0.0, 2**53 + 1, "x" * 40_000,
        {"deeper": "text"}, "0001-01-01T00:00:00+14:00",
    ]  # fmt: skip
    names = ["field", "a/b", "ü *?%", "_id", "numbers", " ", "x.y"]
    documents = [
        dataclasses.replace(document, metadata=dict.fromkeys(names, value))
        for document, value in zip(world.documents, values, strict=True)
    ]
    backend = live.backend()
    await backend.create(world.schema)
    await backend.upsert(documents, world.embeddings)
    assert await backend.fetch([document.id for document in documents]) == documents
    conditions: list[Any] = [
        1, "1", True, 2.5, 0, "a", "x" * 40_000, "2024-05-01", {"$gte": 0}, {"$gt": 0}, {"$lte": 2**53 - 1},
        {"$gt": 2**53 - 1},
        {"$gt": "0001-01-01"}, {"$lt": "0001-01-01"}, {"$exists": True},
    ]  # fmt: skip
    some = 0
    for name in (*names, "field.deeper", "nowhere"):
        for condition in conditions:
            filter = parse_filter({name: condition})
            want = sum(matches(filter, document.metadata) for document in documents)
            assert await backend.count(filter) == want, (name, condition)
            some += want > 0
    assert some > 50
    await backend.close()


@runs
async def test_a_document_with_more_fields_than_the_index_takes_is_named_and_the_rest_written(
    live: Live,
) -> None:
    world = make_world(95, documents=3)
    documents = list(world.documents)
    documents[1] = dataclasses.replace(documents[1], metadata={f"field-{i}": i for i in range(1500)})
    backend = live.backend()
    await backend.create(world.schema)
    with pytest.raises(PartialWrite) as caught:
        await backend.upsert(documents, world.embeddings)
    assert set(caught.value.failed) == {documents[1].id}
    assert "fields" in caught.value.failed[documents[1].id]
    assert await backend.fetch([document.id for document in documents]) == [documents[0], None, documents[2]]
    await backend.close()


# -- what others do to the index


@runs
async def test_an_index_of_another_program_is_refused_and_left_alone(live: Live) -> None:
    backend = live.backend("foreign")
    path = f"/{segment(alias_of(backend.collection))}"
    await request(backend, "PUT", path, {"mappings": {"properties": {"dense": {"type": "keyword"}}}})
    with pytest.raises(Rejected, match="not created by"):
        await backend.open()
    with pytest.raises(AlreadyExists):
        await backend.create(make_world(1).schema)
    with pytest.raises(Rejected, match="not created by"):
        await backend.drop()
    assert await request(backend, "GET", path)
    await backend.close()


@runs
async def test_writing_to_a_collection_that_was_dropped_makes_no_index(live: Live) -> None:
    world = make_world(96, documents=4)
    backend, other = live.backend(), live.backend()
    await backend.create(world.schema)
    await other.drop()
    with pytest.raises(NotFound):
        await backend.upsert(world.documents, world.embeddings)
    with pytest.raises(NotFound):
        await backend.search(world.queries[0], ALL, 3)
    assert await request(backend, "GET", f"/{live.prefix}*") == {}
    await backend.close()
    await other.close()


@runs
async def test_a_field_that_was_changed_is_named(live: Live) -> None:
    world = make_world(97, documents=4)
    backend = live.backend()
    await backend.create(world.schema)
    (name,) = found = await request(backend, "GET", f"/{live.prefix}*")
    mappings = found[name]["mappings"]
    del mappings["properties"]["sparse_blob"]
    await request(backend, "DELETE", f"/{segment(name)}")
    body = {"mappings": mappings, "aliases": found[name]["aliases"], "settings": {"number_of_replicas": 0}}
    await request(backend, "PUT", f"/{segment(name)}", body)
    with pytest.raises(Corrupt, match="sparse_blob"):
        await backend.open()
    await backend.close()


@runs
async def test_a_closed_and_a_read_only_index_say_so_and_work_again(live: Live) -> None:
    world = make_world(98, documents=4)
    backend = await live.filled(world)
    path = f"/{segment(alias_of(backend.collection))}"

    await request(backend, "POST", f"{path}/_close")
    with pytest.raises(Rejected, match="closed"):
        await backend.search(world.queries[0], ALL, 3)
    with pytest.raises(Rejected, match="closed"):
        await backend.upsert(world.documents, world.embeddings)
    await request(backend, "POST", f"{path}/_open", wait_for_active_shards="1")

    for block, error in (("read_only", Rejected), ("read_only_allow_delete", StorageFull)):
        await request(backend, "PUT", f"{path}/_settings", {f"index.blocks.{block}": True})
        with pytest.raises(error):
            await backend.upsert(world.documents, world.embeddings)
        assert len(await backend.search(world.queries[0], ALL, 3)) == 3
        await request(backend, "PUT", f"{path}/_settings", {f"index.blocks.{block}": None})
    await backend.upsert(world.documents, world.embeddings)
    assert await backend.count() == 4
    await backend.close()


@runs
async def test_an_operator_can_put_another_index_behind_the_alias(live: Live) -> None:
    world = make_world(99)
    backend = live.backend("Moved")
    await backend.create(world.schema)
    (name,) = found = await request(backend, "GET", f"/{live.prefix}*")
    alias = alias_of(backend.collection)
    second = f"{alias}@2"
    await request(
        backend, "PUT", f"/{segment(second)}",
        {"mappings": found[name]["mappings"], "settings": {"number_of_replicas": 0, "number_of_shards": 3}},
    )  # fmt: skip
    actions = [{"remove_index": {"index": name}}, {"add": {"index": second, "alias": alias}}]
    await request(backend, "POST", "/_aliases", {"actions": actions})
    assert await backend.open() == world.schema
    await backend.upsert(world.documents, world.embeddings)
    oracle = await oracle_of(world)
    for query in world.queries:
        for method in METHODS.values():
            await compare_search(backend, oracle, query, method, 10)
    await backend.drop()
    assert await request(backend, "GET", f"/{live.prefix}*") == {}
    await backend.close()


@runs
async def test_names_that_differ_in_case_are_different_collections(live: Live) -> None:
    world = make_world(100, documents=3)
    names = ("notes", "Notes", "NOTES", "n-otes")
    backends = [live.backend(name) for name in names]
    for backend in backends:
        await backend.create(world.schema)
    await backends[1].upsert(world.documents, world.embeddings)
    assert [await backend.count() for backend in backends] == [0, 3, 0, 0]
    for backend in backends:
        await backend.drop()
        await backend.close()


@runs
async def test_a_collection_may_be_called_as_data_streams_are(live: Live) -> None:
    world = make_world(107, documents=3)
    claimed, backend = live.backend("x"), backend_for(live.url, f"logs-{live.prefix}-b", {"replicas": 0})
    assert isinstance(backend, ElasticsearchBackend)
    template = f"/_index_template/{live.prefix}"
    stream = {"index_patterns": ["logs-*-*", f"{live.prefix}-*"], "data_stream": {}, "priority": 900}
    await request(backend, "PUT", template, stream)
    try:
        await backend.create(world.schema)
        await backend.upsert(world.documents, world.embeddings)
        assert await backend.open() == world.schema
        assert await backend.count() == 3
        await backend.drop()
        # Names that only this server's own templates claim are refused with the reason.
        with pytest.raises(Rejected, match="creates data streams only"):
            await claimed.create(world.schema)
    finally:
        await claimed.close()
        await request(backend, "DELETE", template)
        await backend.close()


@runs
async def test_optimize_merges_and_changes_no_answer(live: Live) -> None:
    world = make_world(108, documents=60)
    backend = live.backend()
    await backend.create(world.schema)
    for i in range(0, 60, 10):
        await backend.upsert(world.documents[i : i + 10], world.embeddings[i : i + 10])
    await backend.delete([document.id for document in world.documents[:5]])
    before = [await backend.search(query, ALL, 10) for query in world.queries]
    path = f"/{segment(alias_of(backend.collection))}"

    async def segments() -> int:
        told = await request(backend, "GET", f"{path}/_stats/segments,docs")
        return int(told["_all"]["primaries"]["segments"]["count"])

    assert await segments() > 1
    await backend.optimize()
    assert await segments() == 1
    for query, hits in zip(world.queries, before, strict=True):
        again = await backend.search(query, ALL, 10)
        assert [hit.id for hit in again] == [hit.id for hit in hits]
        # The hits come in another order, in which the same products are rounded otherwise.
        assert [hit.score for hit in again] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    await request(backend, "PUT", f"{path}/_settings", {"index.blocks.read_only": True})
    with pytest.raises(Rejected, match="blocked"):
        await backend.optimize()
    await request(backend, "PUT", f"{path}/_settings", {"index.blocks.read_only": None})
    await backend.close()


# -- when writes can be read


@pytest.mark.parametrize("refresh", [True, "wait_for"])
@runs
async def test_what_was_written_can_be_searched_at_once(live: Live, refresh: Any) -> None:
    world = make_world(101, documents=6)
    backend = await live.filled(world, refresh=refresh)
    assert await backend.count() == 6
    assert await backend.delete([world.documents[0].id]) == 1
    assert await backend.count() == 5
    await backend.close()


@runs
async def test_without_refresh_a_write_is_stored_and_found_within_the_interval(live: Live) -> None:
    world = make_world(102, documents=6)
    backend = await live.filled(world, refresh=False)
    assert await backend.fetch([world.documents[2].id]) == [world.documents[2]]
    with anyio.fail_after(20):
        while await backend.count() < 6:
            await anyio.sleep(0.2)
    await backend.close()


# -- many at a time


@runs
async def test_100_searches_at_once_leave_the_event_loop_free(live: Live) -> None:
    world = make_world(103, documents=300, dimension=128, most_rows=60)
    backend = await live.filled(world)
    alone = await backend.search(world.queries[0], DENSE_SPARSE, 5)
    stalls: list[float] = []
    waits: list[float] = []

    async def watch() -> None:
        # The processor time of the loop's thread between two looks, for which a busy machine does not count, and the
        # time on the wall, which a sleep or a lock takes too.
        while True:
            before, started = time.thread_time(), wall_seconds()
            await anyio.sleep(0.005)
            stalls.append(time.thread_time() - before)
            waits.append(wall_seconds() - started)

    async def ask() -> None:
        found = await backend.search(world.queries[0], DENSE_SPARSE, 5)
        assert [hit.id for hit in found] == [hit.id for hit in alone]

    # A full collection of all that this test process has loaded would be the longest stall.
    gc.collect()
    gc.freeze()
    async with anyio.create_task_group() as watching:
        watching.start_soon(watch)
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(ask)
        watching.cancel_scope.cancel()
    gc.unfreeze()
    print(
        f"longest stall {max(stalls) * 1e3:.0f} ms, on the wall {max(waits) * 1e3:.0f} ms, {len(stalls)} looks"
    )
    assert len(stalls) > 20
    assert max(stalls) < 0.25
    assert max(waits) < 1
    await backend.close()


@runs
async def test_a_cancelled_search_leaves_the_backend_usable(live: Live) -> None:
    world = make_world(104)
    backend = await live.filled(world)
    for seconds in (0.0, 0.001, 0.005, 0.01, 0.02):
        with anyio.move_on_after(seconds):
            await backend.search(world.queries[0], ALL, 5)
    assert len(await backend.search(world.queries[0], ALL, 5)) == 5
    await backend.close()


@runs
async def test_searches_during_deletes_never_fail(live: Live) -> None:
    world = make_world(105, documents=60)
    backend = await live.filled(world)
    done = anyio.Event()

    async def ask() -> None:
        while not done.is_set():
            await backend.search(world.queries[0], ALL, 60)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        for document in world.documents[:30]:
            await backend.delete([document.id])
        done.set()
    assert len(await backend.search(world.queries[0], ALL, 60)) == 30
    await backend.close()


def _flat_world(documents: int) -> Any:
    """Many documents with vectors of 8 numbers and one token for all, quick to write."""
    rng = np.random.default_rng(documents)
    model = ModelInfo("flat", None, 8, 50, "vocabulary")
    texts = [
        (dense, {3: float(weight)}, dense[None])
        for dense, weight in zip(
            unit_rows(rng.standard_normal((documents + 1, 8))),
            rng.gamma(2.0, 0.1, documents + 1).astype(np.float32) + np.float32(1e-3),
            strict=True,
        )
    ]
    everything: M3Embeddings = join(texts, model, ("dense", "sparse"))
    world = make_world(1, documents=1, queries=1)
    return dataclasses.replace(
        world,
        schema=Schema(model, Storage(components=("dense", "sparse"))),
        documents=[Document(f"{i:05d}", "") for i in range(documents)],
        embeddings=everything[:documents],
        queries=[everything[documents]],
    )
