"""The shipped suite notices broken stores: each clause's test fails on a store that breaks that clause."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_connectors.backends.base import Backend, Candidates, Lists, Schema, ScoredId, Storage
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.backends.pooling import pool_long
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.filters import Compare, Filter, OneOf, matches
from m3_connectors.methods import Method
from m3_connectors.scoring import score
from m3_connectors.search import Key
from m3_connectors.testing import BackendConformance
from m3_connectors.testing.worlds import make_world


class ForgetsTheSchema(MemoryBackend):
    async def _open(self) -> Schema:
        return dataclasses.replace(await super()._open(), storage=Storage())


class DropKeepsDocuments(MemoryBackend):
    async def _drop(self) -> None:
        self._created = None


class CountsUpsertsOnce(MemoryBackend):
    async def _count(self, filter: Filter | None) -> int:
        return len(await super()._fetch(list(self._documents))) if filter is None else 0


class WritesInTwoSteps(MemoryBackend):
    """Of writers at the same time, the first to write its vectors is the last to write its text."""

    def __init__(self, collection: str) -> None:
        super().__init__(collection)
        self._writers: list[asyncio.Event] = []

    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        await super()._upsert(documents, embeddings)
        finished = asyncio.Event()
        self._writers.append(finished)
        await asyncio.sleep(0)  # the loop first starts every other task that is ready
        while (last := self._writers[-1]) is not finished:
            await last.wait()
        self._documents |= {document.id: document for document in documents}
        self._writers.pop()
        finished.set()


class RemovesThenWrites(MemoryBackend):
    """Every write after the first is still between its two steps when the clause cancels it."""

    filled = False

    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        await self._delete([document.id for document in documents])
        if self.filled:
            await asyncio.Event().wait()
        await super()._upsert(documents, embeddings)
        self.filled = True


class KeepsOldVectors(MemoryBackend):
    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        before = dict(self._embeddings)
        await super()._upsert(documents, embeddings)
        self._embeddings |= before


class CountsWhatWasAsked(MemoryBackend):
    async def _delete(self, ids: Sequence[str]) -> int:
        await super()._delete(ids)
        return len(set(ids))


class DeletesEverythingThatPassesAndMore(MemoryBackend):
    async def _delete_where(self, filter: Filter) -> int:
        count = len(self._passing(filter))
        await self._delete([*self._passing(filter), *list(self._documents)[:1]])
        return count


class FetchesInItsOwnOrder(MemoryBackend):
    async def _fetch(self, ids: Sequence[str]) -> list[Document | None]:
        return await super()._fetch(sorted(ids))


class WholeNumbersBecomeFloats(MemoryBackend):
    async def _fetch(self, ids: Sequence[str]) -> list[Document | None]:
        found = await super()._fetch(ids)
        return [
            d
            and dataclasses.replace(
                d, metadata={k: float(v) if isinstance(v, int) else v for k, v in d.metadata.items()}
            )
            for d in found
        ]


class StripsIds(MemoryBackend):
    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        await super()._upsert([dataclasses.replace(d, id=d.id.strip() or "x") for d in documents], embeddings)


class FoldsCase(MemoryBackend):
    async def _fetch(self, ids: Sequence[str]) -> list[Document | None]:
        by_folded = {id.casefold(): id for id in self._documents}
        return await super()._fetch([by_folded.get(id.casefold(), id) for id in ids])


class ScansOnePage(MemoryBackend):
    async def scan_ids(self) -> AsyncIterator[str]:
        for id in list(self._documents)[:1000]:
            yield id


class LooksIntoNoLists(MemoryBackend):
    def _passing(self, filter: Filter | None) -> list[str]:
        def without(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: without(item) for key, item in value.items() if not isinstance(item, list)}
            return value

        return [id for id, each in self._documents.items() if matches(filter, without(each.metadata))]


class ComparesDoubles(MemoryBackend):
    def _passing(self, filter: Filter | None) -> list[str]:
        assert isinstance(filter, OneOf | Compare)
        asked = (
            OneOf(filter.field, tuple(float(value) for value in filter.values))
            if isinstance(filter, OneOf)
            else Compare(filter.field, filter.operator, float(filter.bound))  # type: ignore[arg-type]
        )
        return [
            id for id, each in self._documents.items() if matches(asked, {"n": float(each.metadata["n"])})
        ]


class FiltersAfterTheCut(MemoryBackend):
    async def lists(self, ask: Lists) -> Candidates:
        found = await super().lists(dataclasses.replace(ask, filter=None))
        passing = set(self._passing(ask.filter))
        return found.take([i for i, id in enumerate(found.keys) if id in passing])


class ListsWhatSharesNothing(MemoryBackend):
    def _sharing_a_token(self, query: M3Embeddings) -> set[str]:
        return set(self._documents)


class RoundsScores(MemoryBackend):
    async def lists(self, ask: Lists) -> Candidates:
        found = await super().lists(ask)
        if not ask.exact:
            for name, scores in found.scores.items():
                found.scores[name] = scores.astype(np.float16).astype(np.float32)
        return found


class SearchesTheOldGraph(MemoryBackend):
    """Lists by the vectors that were there when it was last optimised, as far as their documents still are."""

    async def optimize(self) -> None:
        self._graph = dict(self._embeddings)

    async def lists(self, ask: Lists) -> Candidates:
        kept = self._embeddings
        self._embeddings = {id: row if ask.exact else self._graph.get(id, row) for id, row in kept.items()}
        self._columns = None
        try:
            return await super().lists(ask)
        finally:
            self._embeddings, self._columns = kept, None


class ListsSomeOnly(MemoryBackend):
    async def lists(self, ask: Lists) -> Candidates:
        found = await super().lists(ask)
        return found if ask.exact else found.take(range(0, len(found), 2))


class RoundsTheDocumentsOnly(MemoryBackend):
    def _scores(self, component: Component, query: M3Embeddings, ids: Sequence[Key]) -> Float32:
        positions = [list(self._embeddings).index(str(id)) for id in ids]
        return score(component, query, self._all())[positions]


class CutsLongDocuments(MemoryBackend):
    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        assert embeddings.multivectors is not None
        rows = type(embeddings.multivectors).from_list(
            [m[:1023] for m in embeddings.multivectors], embeddings.multivectors.dimension
        )
        await super()._upsert(documents, embeddings.replace(multivectors=rows))


class PoolsAgain(MemoryBackend):
    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        await super()._upsert(documents, pool_long(self.schema.storage, embeddings))


class ScoresTheUnknown(MemoryBackend):
    async def complete(
        self,
        query: M3Embeddings,
        found: Candidates,
        components: Sequence[Component],
        *,
        documents: bool = False,
    ) -> None:
        await super().complete(query, found, components)
        for name in components:
            missing = found.missing(name)
            found.learn(name, missing, [0.0] * len(missing))


class ZeroForNotInTheList(MemoryBackend):
    async def lists(self, ask: Lists) -> Candidates:
        found = await super().lists(ask)
        for name in ask.depths:
            missing = found.missing(name)
            found.learn(name, missing, [0.0] * len(missing))
        return found


class IgnoresWeights(MemoryBackend):
    async def _search(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None, exact: bool
    ) -> list[ScoredId]:
        weights = (float(bool(weight)) for weight in method.weights)
        return await super()._search(query, method.weighted(*weights), k, filter, exact)


class HidesOtherScores(MemoryBackend):
    async def _search(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None, exact: bool
    ) -> list[ScoredId]:
        hits = await super()._search(query, method, k, filter, exact)
        return [dataclasses.replace(hit, scores=dataclasses.replace(hit.scores, sparse=None)) for hit in hits]


class TiesAsTheyCome(MemoryBackend):
    async def _search(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None, exact: bool
    ) -> list[ScoredId]:
        hits = await super()._search(query, method, k, filter, exact)
        return sorted(hits, key=lambda hit: (-hit.score, [-ord(letter) for letter in hit.id]))


class FailsOnNothing(MemoryBackend):
    async def _search(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None, exact: bool
    ) -> list[ScoredId]:
        hits = await super()._search(query, method, k, filter, exact)
        assert hits
        return hits


class NeverDeeper(MemoryBackend):
    async def _search(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None, exact: bool
    ) -> list[ScoredId]:
        return await super()._search(query, method, min(k, 200), filter, exact)


@pytest.mark.parametrize(
    ("broken", "clause", "arguments"),
    [
        (ForgetsTheSchema, "b02", {}),
        (DropKeepsDocuments, "b03", {}),
        (WritesInTwoSteps, "b05_concurrent_writes", {}),
        (RemovesThenWrites, "b05_cancelled", {}),
        (KeepsOldVectors, "b07_upsert", {}),
        (KeepsOldVectors, "b07_a_component", {}),
        (CountsWhatWasAsked, "b09", {}),
        (DeletesEverythingThatPassesAndMore, "b10", {}),
        (FetchesInItsOwnOrder, "b11_fetch", {}),
        (WholeNumbersBecomeFloats, "b11_metadata", {}),
        (CountsUpsertsOnce, "b13_count", {}),
        (LooksIntoNoLists, "b13_filters_mean", {}),
        (ComparesDoubles, "b13_whole", {}),
        (StripsIds, "b14", {}),
        (FoldsCase, "b14", {}),
        (ScansOnePage, "b15", {}),
        (FiltersAfterTheCut, "b16", {"component": "dense"}),
        (FiltersAfterTheCut, "b19", {}),
        (ListsWhatSharesNothing, "b16", {"component": "sparse"}),
        (RoundsScores, "b17_approximate_candidates", {}),
        (RoundsScores, "b17_sparse_candidates", {}),
        (RoundsScores, "b17_an_approximate_search", {"storage": Storage("float32")}),
        (RoundsScores, "b17_scores_stay_exact", {}),
        (ListsSomeOnly, "b17_approximate_candidates", {}),
        (ListsSomeOnly, "b17_sparse_candidates", {}),
        (ZeroForNotInTheList, "b17_an_approximate_search", {"storage": Storage("float32")}),
        (HidesOtherScores, "b17_an_approximate_search", {"storage": Storage("float32")}),
        (SearchesTheOldGraph, "b17_scores_stay_exact", {}),
        (RoundsTheDocumentsOnly, "b20", {"storage": Storage("float16")}),
        (CutsLongDocuments, "b22_a_document", {}),
        (PoolsAgain, "b22_pooled", {}),
        (ScoresTheUnknown, "b23", {}),
        (ZeroForNotInTheList, "b24_search", {"storage": Storage("float32")}),
        (IgnoresWeights, "b24_search", {"storage": Storage("float32")}),
        (HidesOtherScores, "b25", {}),
        (TiesAsTheyCome, "b25", {}),
        (FailsOnNothing, "b26", {}),
        (NeverDeeper, "b27_k", {}),
    ],
)
def test_a_broken_store_fails_its_clause(
    tmp_path: Path, broken: type[MemoryBackend], clause: str, arguments: dict[str, Any]
) -> None:
    class Suite(BackendConformance):
        def make_backend(self, directory: Path, collection: str) -> Backend:
            return broken(collection)

    (name,) = (name for name in dir(Suite) if name.startswith(f"test_{clause}"))
    with pytest.raises((AssertionError, ExceptionGroup, pytest.fail.Exception)):
        getattr(Suite(), name)(tmp_path, **arguments)


def test_worlds_are_the_same_for_the_same_seed() -> None:
    first, second, other = make_world(1), make_world(1), make_world(2)
    assert first.documents == second.documents != other.documents
    assert first.filters == second.filters
    np.testing.assert_array_equal(first.embeddings.dense, second.embeddings.dense)
    np.testing.assert_array_equal(first.embeddings.multivectors.rows, second.embeddings.multivectors.rows)  # type: ignore[union-attr]


def test_worlds_need_no_test_framework() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None; sys.modules['hypothesis'] = None\n"
        "import m3_connectors.testing, m3_connectors.testing.worlds, m3_connectors.testing.agreement\n"
        "try: from m3_connectors.testing import BackendConformance\n"
        "except ImportError as error: assert 'm3-connectors[testing]' in str(error)\n"
        "else: sys.exit('imported without pytest')"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
