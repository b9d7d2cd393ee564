"""B6 to B10: store, replace, refuse and delete documents."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings, MultiVectors
from m3_connectors.errors import InvalidInput, ModelMismatch
from m3_connectors.filters import parse_filter
from m3_connectors.methods import ALL, METHODS
from m3_connectors.testing.agreement import compare_search, oracle_of
from m3_connectors.testing.conformance.suite import Suite, changed, runs
from m3_connectors.testing.worlds import join, make_world, unit_rows


class WritingClauses(Suite):
    """B6 to B10: store, replace, refuse and delete documents."""

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
        rows, offsets = good.multivectors.rows, good.multivectors.offsets

        def with_rows(changed: Any, bounds: Any = offsets) -> M3Embeddings:
            return good.replace(multivectors=MultiVectors(changed, bounds))

        def with_weights(data: Any, indices: Any = good.sparse.indices) -> M3Embeddings:
            return good.replace(
                sparse=sp.csr_array((data, indices, good.sparse.indptr), shape=good.sparse.shape)
            )

        no_rows = offsets.copy()
        no_rows[1] = 0
        bad = {
            "NaN in dense": good.replace(dense=changed(good.dense, np.nan)),
            "infinity in dense": good.replace(dense=changed(good.dense, -np.inf)),
            "dense whose scores overflow": good.replace(dense=changed(good.dense, 1e30)),
            "dense too narrow": good.replace(dense=good.dense[:, :-1].copy()),
            "no sparse": good.replace(sparse=None),
            "sparse weight 0": with_weights(changed(good.sparse.data, 0)),
            "sparse weight < 0": with_weights(changed(good.sparse.data, -0.1)),
            "NaN sparse weight": with_weights(changed(good.sparse.data, np.nan)),
            "sparse weight whose scores overflow": with_weights(changed(good.sparse.data, 1e30)),
            "repeated token": with_weights(good.sparse.data, np.full_like(good.sparse.indices, 7)),
            "NaN in rows": with_rows(changed(rows, np.nan)),
            "rows beyond float16": with_rows(changed(rows, 1e5)),
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
                await backend.upsert(documents, good.replace(model=stranger))
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
