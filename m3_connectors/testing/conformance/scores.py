"""B16 and B18 to B23: exact candidates and exact scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from m3_connectors.backends.base import Storage
from m3_connectors.backends.pooling import pool_rows
from m3_connectors.embeddings import COMPONENTS, Component, MultiVectors
from m3_connectors.errors import DocumentNotFound
from m3_connectors.filters import parse_filter
from m3_connectors.methods import ALL
from m3_connectors.scoring import score
from m3_connectors.testing.agreement import compare_search, oracle_of
from m3_connectors.testing.conformance.suite import POOLED, Suite, each_storage, runs
from m3_connectors.testing.worlds import join, make_world, unit_rows


class ScoreClauses(Suite):
    """B16 and B18 to B23: exact candidates and exact scores."""

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
    async def test_b19_a_filter_holds_before_the_cut(self, tmp_path: Path) -> None:
        world = make_world(19, documents=300, most_rows=3)
        # One document in sixty passes, so a filter after the cut would leave almost nothing of 4 candidates.
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

    @each_storage("precisions")
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
                    if component == "multivector" and storage.precision.tolerance:
                        unrounded = score(component, query, world.embeddings)[::-1]
                        assert np.abs(unrounded - want).max() > 2e-5, "this world cannot detect rounding"
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
            # The query has one row for each part of the longest document.
            ends = np.stack([texts[0][2][0], texts[0][2][4095], texts[0][2][-1]])
            query = join([(texts[0][0], {2: 1.0}, ends)], small.schema.model)
            assert await backend.score("multivector", query, ids[:1]) == pytest.approx(1.0, abs=1e-3)

    @runs
    async def test_b22_pooled_documents_are_what_is_stored_and_scored(self, tmp_path: Path) -> None:
        width = self.long_dimension
        rng = np.random.default_rng(220)
        small = make_world(220, documents=4, dimension=width, storage=POOLED)
        counts = (8191, 1, 999, 1000)
        texts = [
            (unit_rows(rng.normal(size=width)), {2: 0.5}, unit_rows(rng.normal(size=(rows, width))))
            for rows in counts
        ]
        world = dataclasses.replace(small, embeddings=join(texts, small.schema.model))
        async with self.stored(tmp_path, world) as backend:
            oracle = await oracle_of(world)
            ids = [document.id for document in world.documents]
            kept = (await backend.vectors(ids)).multivectors
            assert kept is not None
            assert kept.counts.tolist() == [2048, 1, 999, 250]
            for (_, _, rows), now in zip(texts, kept, strict=True):
                pooled = pool_rows(rows, 4) if len(rows) >= 1000 else rows
                np.testing.assert_array_equal(now, POOLED.precision.round(pooled))
            for query in world.queries:
                want = await oracle.score("multivector", query, ids)
                np.testing.assert_allclose(await backend.score("multivector", query, ids), want, atol=1e-5)
                await compare_search(backend, oracle, query, ALL, 4)

    @each_storage("precisions")
    async def test_b22_all_documents_can_be_pooled(self, tmp_path: Path, storage: Storage) -> None:
        every = dataclasses.replace(storage, long_documents="pool", pool_factor=2, pool_from_rows=1)
        world = make_world(221, documents=20, storage=every)
        async with self.stored(tmp_path, world) as backend:
            oracle = await oracle_of(world)
            ids = [document.id for document in world.documents]
            kept = (await backend.vectors(ids)).multivectors
            given = world.embeddings.multivectors
            pooled = MultiVectors.from_list([pool_rows(rows, 2) for rows in given], given.dimension)
            np.testing.assert_array_equal(kept.counts, pooled.counts)
            np.testing.assert_allclose(
                kept.rows, world.schema.precision.round_documents(pooled).rows, atol=1e-6
            )
            for query in world.queries:
                want = await oracle.score("multivector", query, ids)
                np.testing.assert_allclose(await backend.score("multivector", query, ids), want, atol=1e-5)
                await compare_search(backend, oracle, query, ALL, 10)

    @runs
    async def test_b23_score_of_an_unknown_id_raises(self, tmp_path: Path) -> None:
        world = make_world(23, documents=4)
        async with self.stored(tmp_path, world) as backend:
            for component in COMPONENTS:
                with pytest.raises(DocumentNotFound, match="unknown"):
                    await backend.score(component, world.queries[0], [world.documents[0].id, "unknown"])
