"""Whole searches against a definition of their own, and what happens while documents are being deleted."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_fake import FakeQdrant
from qdrant_twin import Operator

from m3_connectors.backends.base import Backend, Schema, ScoredId, Storage
from m3_connectors.backends.elasticsearch import searching as ranking
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.backends.qdrant.edge.searching import at_once
from m3_connectors.backends.registry import backend_for
from m3_connectors.documents import Document
from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings, ModelInfo
from m3_connectors.errors import InvalidInput, Unsupported
from m3_connectors.filters import Filter, matches, parse_filter
from m3_connectors.index import AsyncIndex
from m3_connectors.methods import ALL, DENSE, METHODS, SPARSE, Method, Weights
from m3_connectors.search import Candidates, Lists
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.worlds import World, join, make_world

STORES = ("memory", "edge", "qdrant server", "milvus-lite")
WIDTH, VOCABULARY = 4, 12
FILTERS = [parse_filter(raw) for raw in (None, None, {"n": 0}, {"n": {"$gte": 1}}, {"n": 9})]


@pytest.fixture(scope="module")
def twin() -> Iterator[FakeQdrant]:
    with FakeQdrant(operator=Operator()) as started:
        yield started


def backend_of(store: str, directory: Path, twin: FakeQdrant, name: str) -> Backend:
    url, options = {
        "memory": ("memory:", {}),
        "edge": (f"qdrant:{directory}/edge", {}),
        "qdrant server": (twin.url, {"grpc_port": twin.grpc_port}),
        "milvus-lite": (f"milvus:{directory}/lite.db", {}),
    }[store]
    return backend_for(url, name, options)


@contextlib.asynccontextmanager
async def filled(backend: Backend, world: World) -> AsyncIterator[Backend]:
    await backend.create(world.schema)
    try:
        if world.documents:
            await backend.upsert(world.documents, world.embeddings)
        yield backend
    finally:
        await backend.drop()
        await backend.close()


# -- the definition


def world_of_ties(rng: np.random.Generator, components: tuple[Component, ...]) -> World:
    """Few values, all sums of powers of 2: many scores are equal, and every store computes them without error."""
    model = ModelInfo("worlds/ties", None, WIDTH, VOCABULARY, "ties")
    count = int(rng.choice([0, 1, 2, 5, 17, 40]))
    most = int(rng.choice([1, 2, 8]))

    def text() -> Any:
        tokens = rng.choice(VOCABULARY, size=rng.integers(0, 4), replace=False)
        weights = {int(token): float(rng.choice([0.25, 0.5, 1.0])) for token in tokens}
        rows = rng.integers(-2, 3, (int(rng.choice([1, 2])), WIDTH)) / 4
        return (rng.integers(-most, most + 1, WIDTH) / 8).astype(np.float32), weights, rows.astype(np.float32)

    documents = [Document(f"{rng.integers(10**6):06d}-{i}", str(i), {"n": i % 4}) for i in range(count)]
    queries = [join([text()], model, components) for _ in range(3)]
    embeddings = join([text() for _ in documents], model, components)
    storage = Storage("float16" if rng.random() < 0.5 else "float32")
    schema = Schema(model, dataclasses.replace(storage, components=components))
    return World(schema, documents, embeddings, queries, [])


def without(world: World, gone: Sequence[str]) -> World:
    kept = [i for i, document in enumerate(world.documents) if document.id not in gone]
    left = [world.embeddings[i] for i in kept] or [world.embeddings[:0]]
    return dataclasses.replace(
        world, documents=[world.documents[i] for i in kept], embeddings=M3Embeddings.concatenate(left)
    )


def truth(world: World, query: M3Embeddings) -> dict[str, list[float]]:
    """The paper's three scores of every document, with numpy alone."""
    stored = world.embeddings
    scores: dict[str, list[float]] = {"dense": (stored.dense @ query.dense[0]).tolist()}
    if "sparse" in stored.components:
        scores["sparse"] = (stored.sparse.toarray() @ query.sparse.toarray()[0]).tolist()
    if "multivector" in stored.components:
        rows = query.multivectors[0]
        scores["multivector"] = [
            float(np.mean((rows @ stored.multivectors[i].T).max(axis=1))) for i in range(len(stored))
        ]
    return scores


def defined(
    world: World, query: M3Embeddings, method: Method, k: int, filter: Filter | None
) -> tuple[list[tuple[str, float]], bool]:
    """The ids and scores that are right, and whether a list is cut through equal scores, where any may be listed."""
    scores, ids = truth(world, query), [document.id for document in world.documents]
    passing = [i for i, document in enumerate(world.documents) if matches(filter, document.metadata)]
    found: set[int] = set()
    is_open = False
    for component, depth in method.candidates.items():
        of_one, depth = scores[component], max(depth, k)
        those = [i for i in passing if component == "dense" or of_one[i] > 0]
        those.sort(key=lambda i: (-of_one[i], ids[i]))
        is_open |= len(those) > depth and of_one[those[depth - 1]] == of_one[those[depth]]
        found |= set(those[:depth])
    fused = {i: sum(method.weights.of(name) * scores[name][i] for name in method.scored) for i in found}
    return [(ids[i], fused[i]) for i in sorted(found, key=lambda i: (-fused[i], ids[i]))[:k]], is_open


def any_method(rng: np.random.Generator, components: Sequence[Component]) -> Method:
    proposing = [name for name in ("dense", "sparse") if name in components]
    chosen = [name for name in proposing if rng.random() < 0.6] or proposing[-1:]
    while True:
        weights = [float(rng.choice([0, 0, 1, 0.5, 0.25])) * (name in components) for name in COMPONENTS]
        if any(weights):
            depths = {name: int(rng.choice([1, 2, 3, 5, 8, 40, 1000])) for name in chosen}
            return Method("drawn", depths, Weights(*weights))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("store", "seeds"), [("memory", 40), ("edge", 12), ("qdrant server", 6), ("milvus-lite", 6)]
)
@runs
async def test_searches_are_as_defined_however_many_scores_are_equal(
    tmp_path: Path, twin: FakeQdrant, store: str, seeds: int
) -> None:
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        all_kinds: list[tuple[Component, ...]] = [
            COMPONENTS, COMPONENTS, ("dense",), ("dense", "sparse"), ("dense", "multivector"),
        ]  # fmt: skip
        components = all_kinds[int(rng.integers(len(all_kinds)))]
        world = world_of_ties(rng, components)
        async with filled(backend_of(store, tmp_path, twin, f"ties-{seed}"), world) as backend:
            gone = [document.id for document in world.documents if rng.random() < 0.2]
            await backend.delete(gone)
            world = without(world, gone)
            if rng.random() < 0.3:
                await backend.optimize()
            for query in world.queries:
                for _ in range(6):
                    method = any_method(rng, components)
                    k = int(rng.choice([1, 2, 3, 5, max(1, len(world.documents)), 50, 1001]))
                    filter = FILTERS[int(rng.integers(len(FILTERS)))]
                    hits = await backend.search(query, method, k, filter=filter, exact=bool(rng.integers(2)))
                    where = f"seed {seed}, {method}, k={k}, {filter}"
                    got = [(hit.id, hit.score) for hit in hits]
                    want, is_open = defined(world, query, method, k, filter)
                    if not is_open or backend.settles_ties:
                        assert got == want, where
                    else:
                        assert got == sorted(got, key=lambda hit: (-hit[1], hit[0])), where
                    scores = truth(world, query)
                    row = {document.id: i for i, document in enumerate(world.documents)}
                    for hit in hits:
                        for name, values in scores.items():
                            assert getattr(hit.scores, name) == values[row[hit.id]], where
                        assert hit.document in (None, world.documents[row[hit.id]]), where


# -- deleted in the middle


def deleting(backend: Backend, ids: Sequence[str]) -> None:
    """Delete documents once, just after the next lists were answered."""
    lists: Callable[[Lists], Awaitable[Candidates]] = backend.lists

    async def then_delete(ask: Lists) -> Candidates:
        found = await lists(ask)
        backend.lists = lists  # type: ignore[method-assign]
        await backend.delete(ids)
        return found

    backend.lists = then_delete  # type: ignore[method-assign]


@pytest.mark.parametrize("store", STORES)
@runs
async def test_documents_that_are_deleted_in_the_middle_are_no_answers(
    tmp_path: Path, twin: FakeQdrant, store: str
) -> None:
    for components in (COMPONENTS, ("dense", "sparse"), ("dense",)):
        world = make_world(70, documents=12, components=components)  # type: ignore[arg-type]
        query = world.queries[1]
        by_sparse = Method("by sparse", {"dense": 12}, Weights(0, 1, 0))
        methods = [
            method for method in (*METHODS.values(), by_sparse) if set(method.components) <= set(components)
        ]
        ids = [document.id for document in world.documents]
        async with filled(backend_of(store, tmp_path, twin, "middle"), world) as backend:
            for method in methods:
                for gone in (ids[:1], ids[:6], ids):
                    await backend.upsert(world.documents, world.embeddings)
                    said = {name: await backend.score(name, query, ids) for name in components}  # type: ignore[arg-type]
                    deleting(backend, gone)
                    hits = await backend.search(query, method, 12)
                    # Edge searches in one turn, as if before the deletion; where all was brought at once, likewise.
                    for hit in hits:
                        i = ids.index(hit.id)
                        for name in components:
                            assert getattr(hit.scores, name) == pytest.approx(said[name][i], abs=1e-5)
                    if "dense" in method.candidates:
                        assert {hit.id for hit in hits} >= set(ids) - set(gone)


@pytest.mark.parametrize("store", STORES)
@runs
async def test_a_list_is_asked_again_where_its_documents_are_deleted_before_they_are_named(
    tmp_path: Path, twin: FakeQdrant, store: str
) -> None:
    world = make_world(71, documents=12)
    ids = [document.id for document in world.documents]
    async with filled(backend_of(store, tmp_path, twin, "named"), world) as backend:
        deleting(backend, ids[:3])
        found = await backend.candidates("dense", world.queries[0], 12)
        assert set(found.ids) >= set(ids[3:])


# -- more than there is


@pytest.mark.parametrize("store", STORES)
@runs
async def test_any_number_of_hits_can_be_asked_for(tmp_path: Path, twin: FakeQdrant, store: str) -> None:
    world = make_world(72, documents=30)
    query = world.queries[0]
    sharing = int((truth(world, query)["sparse"] > np.float64(0)).sum())
    async with filled(backend_of(store, tmp_path, twin, "many"), world) as backend:
        for k in (16_385, 2**31, 2**64, 10**30):
            assert len(await backend.search(query, DENSE, k)) == 30
            assert len(await backend.search(query, SPARSE, k)) == sharing
            assert len(await backend.search(query, ALL, k)) == 30
            assert len((await backend.candidates("dense", query, k)).ids) == 30
        deep = Method("deep", {"dense": 10**30, "sparse": 2**40}, Weights(1, 1, 1))
        assert len(await backend.search(query, deep, 3)) == 3


@runs
async def test_values_whose_scores_would_overflow_are_refused() -> None:
    """Two infinities of other signs add up to NaN: Qdrant then left the document out of every list."""
    world = make_world(73, documents=4, storage=Storage("float32"))
    good = world.embeddings
    sparse = good.sparse.copy()
    sparse.data = sparse.data * np.float32(1e30)
    rows = dataclasses.replace(good.multivectors, rows=good.multivectors.rows * np.float32(1e30))
    bad = {
        "dense": good.replace(dense=good.dense * np.float32(1e30)),
        "sparse": good.replace(sparse=sparse),
        "multivectors": good.replace(multivectors=rows),
    }
    async with filled(MemoryBackend(), dataclasses.replace(world, documents=[])) as backend:
        for name, embeddings in bad.items():
            with pytest.raises(InvalidInput, match=rf"embeddings\.{name} has .*overflow.*\n  Scale"):
                await backend.upsert(world.documents, embeddings)
            with pytest.raises(InvalidInput, match=rf"query\.{name} has .*overflow"):
                await backend.search(embeddings[0], ALL, 3)


# -- requests


@runs
async def test_a_list_that_strict_mode_forbids_is_refused_whatever_the_scores(twin: FakeQdrant) -> None:
    """The head of a list is short, but equal scores may need the rest of it: no search depends on that."""
    world = make_world(74, documents=12)
    twin.strict = {"max_query_limit": 10}
    try:
        backend = backend_for(twin.url, "strict", {"grpc_port": twin.grpc_port})
        async with filled(backend, world):
            with pytest.raises(Unsupported, match=r"a list of 1,000 candidates; .* strict mode allows 10 "):
                await backend.search(world.queries[0], DENSE, 3)
            shallow = Method("shallow", {"dense": 10}, Weights(1, 0, 0))
            assert len(await backend.search(world.queries[0], shallow, 10)) == 10
    finally:
        twin.strict = {}


class BringsSome(MemoryBackend):
    """Answers of every other search come with their documents; fetches are counted."""

    fetched: int = 0
    searched: int = 0

    async def _search(self, *asked: Any) -> list[ScoredId]:
        found = await super()._search(*asked)
        self.searched += 1
        if self.searched % 2 == 0:
            return found
        return [dataclasses.replace(one, document=self._documents[one.id]) for one in found]

    async def _fetch(self, ids: Sequence[str]) -> list[Document | None]:
        self.fetched += len(ids)
        return await super()._fetch(ids)


@runs
async def test_a_document_that_one_query_brought_is_not_read_for_another() -> None:
    world = make_world(75, documents=12)
    async with filled(BringsSome(), world) as backend:
        assert isinstance(backend, BringsSome)
        answers = await AsyncIndex(backend, None).search_many([world.queries[0]] * 4, k=5)
        assert [len(hits) for hits in answers] == [5] * 4
        assert backend.fetched == 0


class EqualHits:
    """An Elasticsearch in which all documents score the same and come in the order of their numbers, highest first."""

    def __init__(self, documents: int) -> None:
        self.documents = documents
        self.asked: list[Mapping[str, Any]] = []

    async def search(self, operation: str, alias: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        self.asked.append(body)
        return [
            {"_id": f"{self.documents - i:05d}", "_score": 1.5}
            for i in range(min(self.documents, body["size"]))
        ]


@pytest.mark.parametrize(("documents", "requests"), [(500, 2), (1500, 3)])
@runs
async def test_equal_scores_in_elasticsearch_are_all_looked_at(documents: int, requests: int) -> None:
    server: Any = EqualHits(documents)
    query = np.ones(4, dtype=np.float32)
    hits, scores = await ranking.dense_list(server, "notes", query, 7, None, False, [], width=3000)
    assert [hit["_id"] for hit in hits] == [f"{i + 1:05d}" for i in range(7)]
    assert scores.tolist() == [0.5] * 7
    assert len(server.asked) == requests
    assert all(body["knn"]["num_candidates"] >= 3000 for body in server.asked)


def test_a_search_of_the_engine_in_this_process_never_waits() -> None:
    async def answers() -> int:
        return 7

    assert at_once(answers()) == 7
    with pytest.raises(RuntimeError, match="waits"):
        at_once(asyncio.sleep(0))
