"""B17: results may be approximate after the store has built its index; scores may not be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from m3_connectors.backends.base import Backend, Storage
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.filters import parse_filter
from m3_connectors.methods import METHODS
from m3_connectors.testing.agreement import METHODS_TO_COMPARE, compare_scores, largest_of, oracle_of
from m3_connectors.testing.conformance.suite import Suite, each_storage, runs
from m3_connectors.testing.worlds import World, make_world


class ApproximateClauses(Suite):
    """B17: searches without ``exact``, on a collection that is large enough for graphs and quantisation.

    Run it also on collections with the configurations that an operator may choose: with each quantisation and
    index type, and with thresholds so low that ``approximate_documents`` documents reach them.
    """

    approximate_documents: ClassVar[int] = 400
    """The number of documents with which the store should search approximately."""

    approximate_dimension: ClassVar[int] = 64
    """The width of their vectors; 400 vectors of 64 float32 numbers take 100 kB."""

    @runs
    async def test_b17_approximate_candidates_have_exact_scores(self, tmp_path: Path) -> None:
        world = self._world(17)
        async with self.stored(tmp_path, world) as backend:
            await backend.optimize()
            oracle = await oracle_of(world)
            for query in world.queries:
                for raw in (None, *world.filters[::9]):
                    filter = parse_filter(raw)
                    got = await backend.candidates("dense", query, 30, filter=filter)
                    assert len(set(got.ids)) == len(got.ids) == min(30, len(world.passing(raw)))
                    assert set(got.ids) <= set(world.passing(raw))
                    assert list(got.scores) == sorted(got.scores, reverse=True)
                    true = await oracle.score("dense", query, got.ids)
                    np.testing.assert_allclose(got.scores, true, atol=1e-5)

    @runs
    async def test_b17_sparse_candidates_are_the_true_top_without_exact(self, tmp_path: Path) -> None:
        world = self._world(18)
        async with self.stored(tmp_path, world) as backend:
            await backend.optimize()
            oracle = await oracle_of(world)
            for query in world.queries:
                for limit in (7, 200):
                    got = await backend.candidates("sparse", query, limit)
                    want = await oracle.candidates("sparse", query, limit)
                    assert list(got.ids) == list(want.ids)
                    np.testing.assert_allclose(got.scores, want.scores, atol=1e-5)

    @each_storage("approximate_precisions")
    async def test_b17_an_approximate_search_shows_exact_scores(
        self, tmp_path: Path, storage: Storage
    ) -> None:
        world = self._world(170, storage)
        async with self.stored(tmp_path, world) as backend:
            await backend.optimize()
            oracle = await oracle_of(world)
            parts = []
            for i, query in enumerate(world.queries):
                for j, method in enumerate(METHODS_TO_COMPARE):
                    if (i + j) // 2 % 2:  # each method with half of the queries, filtered and not
                        continue
                    raw = world.filters[(7 * i + j) % len(world.filters)] if (i + j) % 2 else None
                    k = (1, 10, 100)[(i + j) % 3]
                    filter = parse_filter(raw)
                    parts.append(await compare_scores(backend, oracle, query, method, k, filter=filter))
        largest = ", ".join(f"{part} {value:.1e}" for part, value in largest_of(parts).items())
        print(f"\n{type(self).__name__}, {storage.multivector_dtype}: {len(parts)} searches without exact, "  # noqa: T201
              f"largest differences from the reference: {largest}")  # fmt: skip

    @runs
    async def test_b17_scores_stay_exact_while_the_collection_changes(self, tmp_path: Path) -> None:
        world = self._world(171)
        third = len(world.documents) // 3
        other = self._world(172).embeddings
        async with self.stored(tmp_path, world) as backend:
            await backend.optimize()
            # A third is deleted, a third gets new vectors, a third stays as indexed, and some are new and not
            # indexed.
            await backend.delete([document.id for document in world.documents[:third]])
            replaced = world.documents[third : 2 * third]
            await backend.upsert(replaced, other[third : 2 * third])
            new = [
                dataclasses.replace(document, id=f"new {document.id[:100]}")
                for document in world.documents[:third]
            ]
            await backend.upsert(new, other[:third])
            now = dataclasses.replace(
                world,
                documents=[*new, *world.documents[third:]],
                embeddings=M3Embeddings.concatenate(
                    [other[:third], other[third : 2 * third], world.embeddings[2 * third :]]
                ),
            )
            await self._compare(backend, now)
            await backend.optimize()
            await self._compare(backend, now)

    async def _compare(self, backend: Backend, world: World) -> None:
        oracle = await oracle_of(world)
        # Every query and every method, but not every pair of them: a comparison needs a dozen requests.
        for i, query in enumerate(world.queries):
            for j, method in enumerate(METHODS.values()):
                if (i + j) % 2:
                    await compare_scores(backend, oracle, query, method, 20)

    def _world(self, seed: int, storage: Storage | None = None) -> World:
        return make_world(
            seed,
            documents=self.approximate_documents,
            dimension=self.approximate_dimension,
            most_rows=4,
            storage=storage,
        )
