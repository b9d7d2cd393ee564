"""B24 to B27 and B30: whole searches compared with the reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from m3_connectors.backends.base import Storage
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import InvalidInput, ModelMismatch
from m3_connectors.filters import parse_filter
from m3_connectors.methods import ALL, DENSE, METHODS, SPARSE
from m3_connectors.passages import FIELD
from m3_connectors.testing.agreement import (
    compare_parents,
    compare_search,
    compare_world,
    largest_of,
    oracle_of,
)
from m3_connectors.testing.conformance.suite import Suite, changed, each_storage, runs
from m3_connectors.testing.worlds import NASTY_IDS, make_world


class SearchClauses(Suite):
    """B24 to B27 and B30: whole searches compared with the reference."""

    @each_storage("precisions")
    async def test_b24_search_equals_the_oracle(self, tmp_path: Path, storage: Storage) -> None:
        parts: list[dict[str, float]] = []
        worlds = self.worlds if storage.precision.engine_dtype else 1
        empty = dataclasses.replace(make_world(0, storage=storage), documents=[])
        async with self.stored(tmp_path, empty) as backend:
            for seed in range(worlds):
                world = make_world(2400 + seed, storage=storage)
                await backend.upsert(world.documents, world.embeddings)
                parts += await compare_world(backend, world, shift=seed)
                await backend.delete([document.id for document in world.documents])
        assert parts
        name = type(self).__name__
        largest = ", ".join(f"{part} {value:.1e}" for part, value in largest_of(parts).items())
        print(f"\n{name}, {storage.multivector_dtype}: {worlds} worlds, {len(parts)} searches, "  # noqa: T201
              f"largest differences from the reference: {largest}")  # fmt: skip

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
        without_tokens = world.queries[0].replace(
            sparse=sp.csr_array((1, world.schema.model.vocabulary_size), dtype=np.float32)
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
        async with self.stored(tmp_path, world) as backend:
            for k in (0, -1, True, 1.5):
                with pytest.raises(InvalidInput):
                    await backend.search(query, ALL, k)  # type: ignore[arg-type]
            for bad in (
                world.embeddings[:2],
                query.replace(multivectors=None),
                query.replace(dense=changed(query.dense, np.nan)),
                query.replace(dense=query.dense[:, 1:].copy()),
            ):
                with pytest.raises(InvalidInput):
                    await backend.search(bad, ALL, 3)
            stranger = dataclasses.replace(world.schema.model, name="someone/else")
            with pytest.raises(ModelMismatch):
                await backend.search(query.replace(model=stranger), ALL, 3)

    @runs
    async def test_b30_the_best_chunk_of_each_parent(self, tmp_path: Path) -> None:
        world = make_world(30, documents=400, most_rows=2, queries=3)
        # One parent has more chunks than most methods have candidates, and a fifth of the others were not cut.
        parents = [
            "long" if i < 260 else NASTY_IDS[i % len(NASTY_IDS)] if i % 5 else None for i in range(400)
        ]
        documents = [
            document if parent is None else dataclasses.replace(
                document, metadata={**document.metadata, FIELD: {"parent": parent, "position": 0}}
            )
            for document, parent in zip(world.documents, parents, strict=True)
        ]  # fmt: skip
        world = dataclasses.replace(world, documents=documents)
        oracle = await oracle_of(world)
        async with self.stored(tmp_path, world) as backend:
            for i, method in enumerate(METHODS.values()):
                query, filter = world.queries[i % 3], parse_filter(world.filters[i] if i % 2 else None)
                for k in (1, 12, 70, 400):
                    await compare_parents(backend, oracle, query, method, k, filter=filter)
