"""The backend contract as tests: subclass ``BackendConformance`` and run pytest.

::

    from m3_connectors.testing import BackendConformance

    class TestMyStore(BackendConformance):
        def make_backend(self, directory, collection):
            return MyStore(url=..., collection=collection)

Each test carries the number of its clause in ``m3_connectors.backends.base``. Answers are compared with the
memory backend's, ids and scores, on seeded random collections (``worlds``).
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import anyio
import numpy as np
import pytest
import scipy.sparse as sp

from m3_connectors.backends.base import Backend, Storage
from m3_connectors.documents import Document
from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings, MultiVectors
from m3_connectors.errors import AlreadyExists, InvalidInput, ModelMismatch, NotFound
from m3_connectors.filters import parse_filter
from m3_connectors.methods import ALL, DENSE, METHODS, SPARSE, Method, Weights
from m3_connectors.scoring import as_float16, score
from m3_connectors.testing.agreement import compare_search, largest_of, oracle_of
from m3_connectors.testing.worlds import NASTY_IDS, World, join, make_world, unit_rows

FLOAT32, FLOAT16 = Storage("float32"), Storage("float16")

METHODS_TO_COMPARE = (
    *METHODS.values(),
    ALL.weighted(0.15, 0.5, 0.35),
    Method("shallow", {"dense": 5, "sparse": 4}, Weights(0.3, 2.0, 0.7)),
    Method("by the other list", {"sparse": 6}, Weights(1.0, 0.0, 0.5)),
    Method("scored by one", {"dense": 8}, Weights(0.0, 1.0, 0.0)),
)


def runs(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a coroutine test to its end on an event loop of its own."""

    @functools.wraps(test)
    def blocking(*args: Any, **kwargs: Any) -> None:
        anyio.run(functools.partial(test, *args, **kwargs))

    return blocking


class BackendConformance(abc.ABC):
    """Every clause of the contract, for one adapter."""

    persistent: ClassVar[bool] = True
    """Whether a collection outlives the backend object that wrote it."""

    worlds: ClassVar[int] = 5
    """Random collections on which search is compared with the oracle, for each storage dtype."""

    long_dimension: ClassVar[int] = 256
    """Width of the document of 8,191 rows."""

    @abc.abstractmethod
    def make_backend(self, directory: Path, collection: str) -> Backend:
        """An adapter for the collection of this name, not yet open.

        Args:
            directory: An empty directory of this test's own, the same for all calls of one test.
            collection: Name of the collection.
        """

    @contextlib.asynccontextmanager
    async def stored(self, directory: Path, world: World) -> AsyncIterator[Backend]:
        """A new collection that holds a world."""
        backend = self.make_backend(directory, "conformance")
        await backend.create(world.schema)
        try:
            if world.documents:
                await backend.upsert(world.documents, world.embeddings)
            yield backend
        finally:
            await backend.drop()
            await backend.close()

    # -- collection

    @runs
    async def test_b01_create_records_the_schema_and_refuses_a_second(self, tmp_path: Path) -> None:
        world = make_world(1, documents=3)
        async with self.stored(tmp_path, world) as backend:
            assert backend.schema == world.schema
            with pytest.raises(AlreadyExists):
                await backend.create(world.schema)
            assert await backend.count() == 3

    @runs
    async def test_b02_open_reads_the_schema_or_says_there_is_none(self, tmp_path: Path) -> None:
        nowhere = self.make_backend(tmp_path, "nowhere")
        with pytest.raises(NotFound):
            await nowhere.open()
        await nowhere.close()
        schemas = [
            make_world(2, storage=FLOAT32).schema,
            make_world(2, components=("dense", "sparse")).schema,
            make_world(2, components=("dense",), storage=Storage(long_documents="error")).schema,
        ]
        for i, schema in enumerate(schemas):
            backend = self.make_backend(tmp_path, f"schema-{i}")
            await backend.create(schema)
            if self.persistent:
                await backend.close()
                backend = self.make_backend(tmp_path, f"schema-{i}")
            assert await backend.open() == schema == backend.schema
            await backend.drop()
            await backend.close()

    @runs
    async def test_b03_drop_removes_everything(self, tmp_path: Path) -> None:
        world = make_world(3, documents=5)
        async with self.stored(tmp_path, world) as backend:
            await backend.drop()
            with pytest.raises(NotFound):
                await backend.open()
            await backend.drop()
            await backend.create(world.schema)
            assert await backend.count() == 0
            assert await backend.fetch([world.documents[0].id]) == [None]

    @runs
    async def test_b04_what_was_acknowledged_outlives_close(self, tmp_path: Path) -> None:
        world = make_world(4)
        async with self.stored(tmp_path, world) as backend:
            before = await backend.search(world.queries[0], ALL, 10)
            await backend.close()
            await backend.close()
            again = self.make_backend(tmp_path, "conformance")
            if not self.persistent:
                with pytest.raises(NotFound):
                    await again.open()
                return
            await again.open()
            assert await again.count() == len(world.documents)
            assert await again.search(world.queries[0], ALL, 10) == before
            await again.close()

    @runs
    async def test_b05_concurrent_calls_answer_as_if_alone(self, tmp_path: Path) -> None:
        world = make_world(5, queries=6)
        half = len(world.documents) // 2
        first = dataclasses.replace(
            world, documents=world.documents[:half], embeddings=world.embeddings[:half]
        )
        async with self.stored(tmp_path, first) as backend:
            alone = [await backend.search(query, ALL, 5) for query in world.queries]
            together: dict[int, Any] = {}

            async def ask(i: int) -> None:
                together[i] = await backend.search(world.queries[i % len(alone)], ALL, 5)

            async with anyio.create_task_group() as tasks:
                for i in range(3 * len(alone)):
                    tasks.start_soon(ask, i)
            assert all(together[i] == alone[i % len(alone)] for i in together)

            async with anyio.create_task_group() as tasks:
                for i in range(half, len(world.documents), 4):
                    tasks.start_soon(backend.upsert, world.documents[i : i + 4], world.embeddings[i : i + 4])
                    tasks.start_soon(ask, i)
            assert await backend.count() == len(world.documents)

    @runs
    async def test_b05_concurrent_writes_of_one_document_leave_one_of_them_whole(
        self, tmp_path: Path
    ) -> None:
        world = make_world(51, documents=24)
        kept, gone = world.documents[:12], world.documents[12:]
        versions = [Document("one", f"version {i}") for i in range(8)]
        async with self.stored(tmp_path, world) as backend:
            deleted: list[int] = []

            async def delete(ids: list[str]) -> None:
                deleted.append(await backend.delete(ids))

            async with anyio.create_task_group() as tasks:
                for i, version in enumerate(versions):
                    tasks.start_soon(backend.upsert, [version], world.embeddings[i])
                    tasks.start_soon(backend.search, world.queries[0], ALL, 5)
                for i in range(0, len(gone), 3):
                    tasks.start_soon(delete, [*(document.id for document in gone[i : i + 3]), "unknown"])
            assert deleted == [3, 3, 3, 3]
            (one,) = await backend.fetch(["one"])
            assert one in versions
            oracle = await oracle_of(
                dataclasses.replace(
                    world,
                    documents=[*kept, one],
                    embeddings=M3Embeddings.concatenate(
                        [world.embeddings[:12], world.embeddings[versions.index(one)]]
                    ),
                )
            )
            for query in world.queries:
                await compare_search(backend, oracle, query, METHODS["dense_sparse"], 50)
                await compare_search(backend, oracle, query, ALL, 50)

    @runs
    async def test_b05_cancelled_calls_leave_a_working_store(self, tmp_path: Path) -> None:
        # Every call leaves the collection as it is, so that it does not matter which came to their end. asyncio's
        # own cancellation goes through anyio's shields.
        world = make_world(52)
        everything = M3Embeddings.concatenate([world.embeddings] * 4)
        again = [
            dataclasses.replace(document, id=f"{i} {document.id}")
            for i in range(4)
            for document in world.documents
        ]
        unknown = [f"unknown {i}" for i in range(50)]
        async with self.stored(
            tmp_path, dataclasses.replace(world, documents=again, embeddings=everything)
        ) as backend:
            before = await backend.search(world.queries[0], ALL, 20)
            for delay_seconds in (0.0, 0.0005, 0.001, 0.002, 0.004, 0.008):
                calls = [
                    asyncio.ensure_future(call)
                    for _ in range(2)
                    for call in (
                        backend.upsert(again, everything),
                        backend.search(world.queries[1], ALL, 20),
                        backend.delete(unknown),
                    )
                ]
                for i, call in enumerate(calls):
                    asyncio.get_running_loop().call_later(i * delay_seconds, call.cancel)
                for outcome in await asyncio.gather(*calls, return_exceptions=True):
                    assert not isinstance(outcome, Exception), outcome
                with anyio.fail_after(30):
                    assert await backend.search(world.queries[0], ALL, 20) == before
                    assert await backend.count() == len(again)
            assert await backend.fetch([document.id for document in again]) == again

    # -- writing

    @runs
    async def test_b06_what_upsert_returned_for_is_read_at_once(self, tmp_path: Path) -> None:
        world = make_world(6, documents=12)
        async with self.stored(tmp_path, dataclasses.replace(world, documents=[])) as backend:
            for i, document in enumerate(world.documents):
                await backend.upsert([document], world.embeddings[i])
                assert await backend.count() == i + 1
                assert await backend.fetch([document.id]) == [document]
                assert await backend.score("dense", world.embeddings[i], [document.id]) == pytest.approx(
                    1.0, abs=1e-5
                )

    @runs
    async def test_b07_upsert_replaces_text_metadata_and_every_vector(self, tmp_path: Path) -> None:
        world, other = make_world(7), make_world(70)
        replaced = [
            dataclasses.replace(new, id=old.id)
            for old, new in zip(world.documents, other.documents, strict=True)
        ]
        final = dataclasses.replace(world, documents=replaced, embeddings=other.embeddings)
        async with self.stored(tmp_path, world) as backend:
            await backend.upsert(replaced, other.embeddings)
            await backend.upsert(replaced, other.embeddings)
            assert await backend.count() == len(replaced)
            assert await backend.fetch([document.id for document in replaced]) == replaced
            oracle = await oracle_of(final)
            for query in world.queries:
                await compare_search(backend, oracle, query, METHODS["dense_sparse"], 50)
                await compare_search(backend, oracle, query, ALL, 50)

    @runs
    async def test_b07_a_component_that_became_empty_is_gone(self, tmp_path: Path) -> None:
        world = make_world(71, documents=1)
        rows = unit_rows(np.ones((1, 24)))
        query = join([(rows[0], {5: 1.0}, rows)], world.schema.model)
        before = join([(rows[0], {5: 1.0}, np.repeat(rows, 9, axis=0))], world.schema.model)
        after = join([(rows[0], {}, -rows)], world.schema.model)
        async with self.stored(tmp_path, dataclasses.replace(world, embeddings=before)) as backend:
            ids = [world.documents[0].id]
            assert await backend.score("sparse", query, ids) == pytest.approx(1.0)
            await backend.upsert(world.documents, after)
            assert await backend.score("sparse", query, ids) == 0.0
            assert await backend.score("multivector", query, ids) == pytest.approx(-1.0, abs=1e-3)
            assert (await backend.candidates("sparse", query, 5)).ids == []

    @runs
    async def test_b08_bad_input_stores_nothing(self, tmp_path: Path) -> None:
        world = make_world(8, documents=6)
        good, documents = world.embeddings, world.documents
        assert good.dense is not None and good.sparse is not None and good.multivectors is not None
        rows, offsets = good.multivectors.rows, good.multivectors.offsets

        def with_rows(changed: Any, bounds: Any = offsets) -> M3Embeddings:
            return dataclasses.replace(good, multivectors=MultiVectors(changed, bounds))

        def with_weights(data: Any, indices: Any = good.sparse.indices) -> M3Embeddings:
            assert good.sparse is not None
            return dataclasses.replace(
                good, sparse=sp.csr_array((data, indices, good.sparse.indptr), shape=good.sparse.shape)
            )

        no_rows = offsets.copy()
        no_rows[1] = 0
        bad = {
            "NaN in dense": dataclasses.replace(good, dense=_changed(good.dense, np.nan)),
            "infinity in dense": dataclasses.replace(good, dense=_changed(good.dense, -np.inf)),
            "dense too narrow": dataclasses.replace(good, dense=good.dense[:, :-1].copy()),
            "no sparse": dataclasses.replace(good, sparse=None),
            "sparse weight 0": with_weights(_changed(good.sparse.data, 0)),
            "sparse weight < 0": with_weights(_changed(good.sparse.data, -0.1)),
            "NaN sparse weight": with_weights(_changed(good.sparse.data, np.nan)),
            "repeated token": with_weights(good.sparse.data, np.full_like(good.sparse.indices, 7)),
            "NaN in rows": with_rows(_changed(rows, np.nan)),
            "rows beyond float16": with_rows(_changed(rows, 1e5)),
            "rows too wide": with_rows(np.concatenate([rows, rows], axis=1)),
            "a text without rows": with_rows(rows, no_rows),
            "fewer than documents": good[:-1],
        }
        async with self.stored(tmp_path, dataclasses.replace(world, documents=[])) as backend:
            for name, embeddings in bad.items():
                with pytest.raises(InvalidInput):
                    await backend.upsert(documents, embeddings)
                assert await backend.count() == 0, name
            stranger = dataclasses.replace(world.schema.model, name="someone/else")
            with pytest.raises(ModelMismatch, match="someone/else"):
                await backend.upsert(documents, dataclasses.replace(good, model=stranger))
            for document in (
                Document("", "text"),
                Document("x" * 513, "text"),
                Document("a", None),  # type: ignore[arg-type]
                Document("a", "\ud800"),
                Document("a", "text", {"f": float("nan")}),
                Document("a", "text", {"f": object()}),
                documents[0],
            ):
                with pytest.raises(InvalidInput):
                    await backend.upsert([*documents[:-1], document], good)
            assert await backend.count() == 0
            await backend.upsert(documents, good)
            assert await backend.count() == len(documents)

    @runs
    async def test_b09_delete_counts_what_was_there(self, tmp_path: Path) -> None:
        world = make_world(9)
        async with self.stored(tmp_path, world) as backend:
            a, b, *rest = [document.id for document in world.documents]
            assert await backend.delete([]) == 0
            assert await backend.delete([a, "unknown", a, b]) == 2
            assert await backend.delete([a, b]) == 0
            assert await backend.fetch([a, b]) == [None, None]
            assert await backend.count() == len(rest)
            hits = await backend.search(world.queries[0], METHODS["dense_sparse"], 100)
            assert {hit.id for hit in hits} == set(rest)

    @runs
    async def test_b10_delete_where_removes_exactly_what_passes(self, tmp_path: Path) -> None:
        world = make_world(10)
        async with self.stored(tmp_path, world) as backend:
            gone: set[str] = set()
            for raw in world.filters[::5]:
                filter = parse_filter(raw)
                assert filter is not None
                now = set(world.passing(raw)) - gone
                assert await backend.delete_where(filter) == len(now)
                gone |= now
                assert {id async for id in backend.scan_ids()} == {d.id for d in world.documents} - gone

    # -- reading

    @runs
    async def test_b11_fetch_gives_back_what_went_in(self, tmp_path: Path) -> None:
        world = make_world(11, documents=60)
        async with self.stored(tmp_path, world) as backend:
            documents = {document.id: document for document in world.documents}
            asked = [*list(documents)[::-1], "unknown", world.documents[0].id]
            assert await backend.fetch(asked) == [documents.get(id) for id in asked]
            assert await backend.fetch([]) == []

    @runs
    async def test_b11_metadata_keep_their_json_types(self, tmp_path: Path) -> None:
        world = make_world(111, documents=1)
        metadata: dict[str, Any] = {
            "int": 2**63 - 1, "least": -(2**63), "float": 0.1 + 0.2, "whole": 2.0, "tiny": 5e-324, "huge": 1.7e308,
            "true": True, "null": None, "text": "\x00 \u2028 🇰🇪", "list": [1, "1", 1.5, None, [], {}], "": {"": ""},
            "a.b": {"c.d": [[{"e": []}]]}, "$in": "dollar", 'quo"te': 1, "_id": 1, "id": 2, "vector": [1], "dense": {},
        }  # fmt: skip
        changed = [Document("one", "text", MappingProxyType(metadata))]
        async with self.stored(tmp_path, dataclasses.replace(world, documents=changed)) as backend:
            (found,) = await backend.fetch(["one"])
            assert found is not None
            assert found.metadata == metadata
            assert repr(sorted(found.metadata.items())) == repr(sorted(metadata.items()))

    @pytest.mark.parametrize("storage", [FLOAT32, FLOAT16], ids=["float32", "float16"])
    @runs
    async def test_b12_vectors_are_as_stored(self, tmp_path: Path, storage: Storage) -> None:
        world = make_world(12, storage=storage)
        async with self.stored(tmp_path, world) as backend:
            order = [3, 0, 7, 3, 11]
            got = await backend.vectors([world.documents[i].id for i in order])
            kept = as_float16(world.embeddings) if storage == FLOAT16 else world.embeddings
            want = M3Embeddings.concatenate([kept[i] for i in order])
            assert got.dense is not None and got.sparse is not None and got.multivectors is not None
            assert want.dense is not None and want.sparse is not None and want.multivectors is not None
            np.testing.assert_array_equal(got.dense, want.dense)
            np.testing.assert_array_equal(got.sparse.toarray(), want.sparse.toarray())
            np.testing.assert_array_equal(got.multivectors.offsets, want.multivectors.offsets)
            np.testing.assert_array_equal(got.multivectors.rows, want.multivectors.rows)
            with pytest.raises(NotFound, match="unknown"):
                await backend.vectors([world.documents[0].id, "unknown"])

    @runs
    async def test_b13_count_follows_the_meaning_of_filters(self, tmp_path: Path) -> None:
        world = make_world(13, documents=60)
        assert len(world.filters) > 20
        async with self.stored(tmp_path, world) as backend:
            assert await backend.count() == 60
            for raw in world.filters:
                passing = world.passing(raw)
                assert 0 < len(passing) < 60
                assert await backend.count(parse_filter(raw)) == len(passing), raw

    @runs
    async def test_b14_ids_are_never_confused(self, tmp_path: Path) -> None:
        world = make_world(14, documents=len(NASTY_IDS))
        async with self.stored(tmp_path, world) as backend:
            by_id = {document.id: document for document in world.documents}
            assert set(by_id) == set(NASTY_IDS)
            for id in NASTY_IDS:
                assert await backend.fetch([id]) == [by_id[id]]
            for left, id in enumerate(NASTY_IDS):
                assert await backend.delete([id]) == 1
                assert await backend.count() == len(NASTY_IDS) - left - 1

    @runs
    async def test_b15_scan_yields_every_id_once(self, tmp_path: Path) -> None:
        world = make_world(15, documents=2300, most_rows=2)
        async with self.stored(tmp_path, dataclasses.replace(world, documents=[])) as backend:
            assert [id async for id in backend.scan_ids()] == []
            await backend.upsert(world.documents, world.embeddings)
            found = [id async for id in backend.scan_ids()]
            assert sorted(found) == sorted(document.id for document in world.documents)

    # -- candidates

    @pytest.mark.parametrize("component", ["dense", "sparse"])
    @runs
    async def test_b16_b18_b19_candidates_are_the_true_top(
        self, tmp_path: Path, component: Component
    ) -> None:
        world = make_world(16, documents=80)
        async with self.stored(tmp_path, world) as backend:
            oracle = await oracle_of(world)
            for query in world.queries:
                for raw in (None, *world.filters[::3]):
                    filter = parse_filter(raw)
                    for limit in (1, 7, 200):
                        got = await backend.candidates(component, query, limit, filter=filter, exact=True)
                        want = await oracle.candidates(component, query, limit, filter=filter)
                        assert list(got.ids) == list(want.ids), (raw, limit)
                        np.testing.assert_allclose(got.scores, want.scores, atol=1e-5)
                        assert got.scores.dtype == np.float32

    @runs
    async def test_b17_approximate_candidates_have_exact_scores(self, tmp_path: Path) -> None:
        world = make_world(17, documents=80)
        async with self.stored(tmp_path, world) as backend:
            oracle = await oracle_of(world)
            for query in world.queries:
                got = await backend.candidates("dense", query, 30)
                assert len(set(got.ids)) == len(got.ids) == 30
                assert list(got.scores) == sorted(got.scores, reverse=True)
                np.testing.assert_allclose(got.scores, await oracle.score("dense", query, got.ids), atol=1e-5)

    @runs
    async def test_b19_a_filter_holds_before_the_cut(self, tmp_path: Path) -> None:
        world = make_world(19, documents=300, most_rows=3)
        # One document in sixty passes, so a filter after the cut would leave nearly nothing of 4 candidates.
        documents = [
            dataclasses.replace(document, metadata={"rare": i % 60 == 0})
            for i, document in enumerate(world.documents)
        ]
        async with self.stored(tmp_path, dataclasses.replace(world, documents=documents)) as backend:
            filter = parse_filter({"rare": True})
            rare = {document.id for document in documents if document.metadata["rare"]}
            for query in world.queries:
                for exact in (True, False):
                    got = await backend.candidates("dense", query, 4, filter=filter, exact=exact)
                    assert len(got.ids) == 4
                    assert set(got.ids) < rare
                hits = await backend.search(query, ALL, 10, filter=filter)
                assert {hit.id for hit in hits} == rare

    # -- scores

    @pytest.mark.parametrize("storage", [FLOAT32, FLOAT16], ids=["float32", "float16"])
    @runs
    async def test_b20_b21_scores_are_exact(self, tmp_path: Path, storage: Storage) -> None:
        world = make_world(20, storage=storage)
        ids = [document.id for document in world.documents]
        async with self.stored(tmp_path, world) as backend:
            oracle = await oracle_of(world)
            for query in world.queries:
                for component in COMPONENTS:
                    got = await backend.score(component, query, ids[::-1])
                    want = await oracle.score(component, query, ids[::-1])
                    assert got.dtype == np.float32
                    np.testing.assert_allclose(got, want, atol=1e-5)
                    if component == "multivector" and storage == FLOAT16:
                        unrounded = score(component, query, world.embeddings)[::-1]
                        assert np.abs(unrounded - want).max() > 2e-5, "this world cannot tell rounding"
            none_shared = await backend.score("sparse", world.queries[-2], ids)
            assert none_shared.tolist() == [0.0] * len(ids)
            assert (await backend.score("dense", world.queries[0], [])).shape == (0,)

    @runs
    async def test_b22_a_document_of_8191_rows_is_exact(self, tmp_path: Path) -> None:
        width = self.long_dimension
        rng = np.random.default_rng(22)
        small = make_world(22, documents=4, dimension=width)
        texts = [
            (unit_rows(rng.normal(size=width)), {2: 0.5}, unit_rows(rng.normal(size=(rows, width))))
            for rows in (8191, 1, 4095, 4096)
        ]
        world = dataclasses.replace(small, embeddings=join(texts, small.schema.model))
        async with self.stored(tmp_path, world) as backend:
            oracle = await oracle_of(world)
            ids = [document.id for document in world.documents]
            for query in world.queries:
                want = await oracle.score("multivector", query, ids)
                np.testing.assert_allclose(await backend.score("multivector", query, ids), want, atol=1e-5)
                await compare_search(backend, oracle, query, ALL, 4)
            # A query of which one row meets each part of the longest document.
            ends = np.stack([texts[0][2][0], texts[0][2][4095], texts[0][2][-1]])
            query = join([(texts[0][0], {2: 1.0}, ends)], small.schema.model)
            assert await backend.score("multivector", query, ids[:1]) == pytest.approx(1.0, abs=1e-3)

    @runs
    async def test_b23_score_of_an_unknown_id_raises(self, tmp_path: Path) -> None:
        world = make_world(23, documents=4)
        async with self.stored(tmp_path, world) as backend:
            for component in COMPONENTS:
                with pytest.raises(NotFound, match="unknown"):
                    await backend.score(component, world.queries[0], [world.documents[0].id, "unknown"])

    # -- search

    @pytest.mark.parametrize("storage", [FLOAT32, FLOAT16], ids=["float32", "float16"])
    @runs
    async def test_b24_search_equals_the_oracle(self, tmp_path: Path, storage: Storage) -> None:
        parts = []
        empty = dataclasses.replace(make_world(0, storage=storage), documents=[])
        async with self.stored(tmp_path, empty) as backend:
            for seed in range(self.worlds):
                world = make_world(2400 + seed, storage=storage)
                await backend.upsert(world.documents, world.embeddings)
                oracle = await oracle_of(world)
                for i, query in enumerate(world.queries):
                    for j, method in enumerate(METHODS_TO_COMPARE):
                        raw = world.filters[(7 * i + j + seed) % len(world.filters)] if (i + j) % 2 else None
                        k = (1, 5, 100)[(i + j) % 3]
                        filter = parse_filter(raw)
                        parts.append(await compare_search(backend, oracle, query, method, k, filter=filter))
                await backend.delete([document.id for document in world.documents])
        assert parts
        name = type(self).__name__
        largest = ", ".join(f"{part} {value:.1e}" for part, value in largest_of(parts).items())
        print(f"\n{name}, {storage.multivector_dtype}: {self.worlds} worlds, {len(parts)} searches, "  # noqa: T201
              f"largest differences from the oracle: {largest}")  # fmt: skip

    @runs
    async def test_b24_collections_without_all_components(self, tmp_path: Path) -> None:
        for components in (("dense",), ("dense", "sparse"), ("dense", "multivector")):
            world = make_world(240, components=components)
            async with self.stored(tmp_path, world) as backend:
                oracle = await oracle_of(world)
                for method in METHODS.values():
                    if set(method.components) <= set(components):
                        await compare_search(backend, oracle, world.queries[0], method, 10)
                    else:
                        with pytest.raises(InvalidInput, match=method.name):
                            await backend.search(world.queries[0], method, 10)

    @runs
    async def test_b25_hits_have_all_scores_and_ties_go_by_id(self, tmp_path: Path) -> None:
        world = make_world(25, documents=9)
        same = M3Embeddings.concatenate([world.embeddings[0]] * 9)
        async with self.stored(tmp_path, dataclasses.replace(world, embeddings=same)) as backend:
            for method in METHODS.values():
                hits = await backend.search(world.embeddings[0], method, 4)
                assert [hit.id for hit in hits] == sorted(document.id for document in world.documents)[:4]
                for hit in hits:
                    assert hit.scores.dense == pytest.approx(1.0, abs=1e-5)
                    assert hit.scores.multivector == pytest.approx(1.0, abs=1e-3)
                    assert hit.scores.sparse is not None

    @runs
    async def test_b26_nothing_to_find_is_no_error(self, tmp_path: Path) -> None:
        world = make_world(26)
        nothing = parse_filter({"no such field": "x"})
        without_tokens = dataclasses.replace(
            world.queries[0], sparse=sp.csr_array((1, world.schema.model.vocabulary_size), dtype=np.float32)
        )
        async with self.stored(tmp_path, dataclasses.replace(world, documents=[])) as backend:
            for method in METHODS.values():
                assert await backend.search(world.queries[0], method, 5) == []
            assert await backend.count() == 0
            await backend.upsert(world.documents, world.embeddings)
            for method in METHODS.values():
                assert await backend.search(world.queries[0], method, 5, filter=nothing) == []
            assert await backend.count(nothing) == 0
            for query in (world.queries[-2], without_tokens):
                assert await backend.search(query, SPARSE, 5) == []
                hits = await backend.search(query, ALL, 5)
                assert [hit.scores.sparse for hit in hits] == [0.0] * 5

    @runs
    async def test_b27_k_deepens_the_lists(self, tmp_path: Path) -> None:
        world = make_world(27, documents=1100, most_rows=2, queries=2)
        async with self.stored(tmp_path, world) as backend:
            for method, k in ((ALL, 250), (DENSE, 1100)):
                hits = await backend.search(world.queries[0], method, k)
                assert len({hit.id for hit in hits}) == k

    @runs
    async def test_b27_unusable_questions_are_refused(self, tmp_path: Path) -> None:
        world = make_world(270, documents=4)
        query = world.queries[0]
        assert query.dense is not None
        async with self.stored(tmp_path, world) as backend:
            for k in (0, -1, True, 1.5):
                with pytest.raises(InvalidInput):
                    await backend.search(query, ALL, k)  # type: ignore[arg-type]
            for bad in (
                world.embeddings[:2],
                dataclasses.replace(query, multivectors=None),
                dataclasses.replace(query, dense=_changed(query.dense, np.nan)),
                dataclasses.replace(query, dense=query.dense[:, 1:].copy()),
            ):
                with pytest.raises(InvalidInput):
                    await backend.search(bad, ALL, 3)
            stranger = dataclasses.replace(world.schema.model, name="someone/else")
            with pytest.raises(ModelMismatch):
                await backend.search(dataclasses.replace(query, model=stranger), ALL, 3)


def _changed(array: Any, value: float) -> Any:
    changed = array.copy()
    changed.reshape(-1)[changed.size // 2] = value
    return changed
