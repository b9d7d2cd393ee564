"""The shipped suite notices broken stores: each clause's test fails on a store that breaks that clause."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from m3_connectors.backends import base
from m3_connectors.backends.base import Backend, Candidates, Lists, Schema, ScoredId, Storage
from m3_connectors.backends.capabilities import Capability
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.backends.pooling import pool_long
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import AlreadyExists
from m3_connectors.filters import Compare, Filter, OneOf, matches
from m3_connectors.methods import DENSE, Method
from m3_connectors.scoring import score
from m3_connectors.search import Key
from m3_connectors.testing import BackendConformance
from m3_connectors.testing.worlds import make_world


class Kept(MemoryBackend):
    """A sound store whose collections outlive their backends, as long as the test lasts."""

    capabilities = MemoryBackend.capabilities | {Capability.PERSISTENT}
    collections_of_the_test: ClassVar[dict[str, dict[str, Any]]]

    def __init__(self, collection: str) -> None:
        super().__init__(collection)
        self.__dict__ = self.collections_of_the_test.setdefault(collection, self.__dict__)

    async def close(self) -> None:
        pass


class CreatesAgain(MemoryBackend):
    async def _create(self, schema: Schema) -> None:
        self._created = schema


class TakesTheNameFirst(Kept):
    """Between the two steps of ``create``, others can neither create the collection nor open it."""

    taken = False

    async def _create(self, schema: Schema) -> None:
        if self.taken:
            raise AlreadyExists("the name is taken", backend=self.name, operation="create")
        self.taken = True
        for _ in range(100):
            await asyncio.sleep(0)  # the other tasks have failed before the second step
        await super()._create(schema)


class ForgetsTheSchema(MemoryBackend):
    async def _open(self) -> Schema:
        return dataclasses.replace(await super()._open(), storage=Storage())


class DropKeepsDocuments(MemoryBackend):
    async def _drop(self) -> None:
        self._created = None


class LosesTheLastDocument(Kept):
    async def close(self) -> None:
        if self._documents:
            await self._delete([list(self._documents)[-1]])


class OneQueryAtATime(MemoryBackend):
    """The query waits in the backend, where the next search overwrites it."""

    async def lists(self, ask: Lists) -> Candidates:
        self._query = ask.query
        await asyncio.sleep(0)  # the loop starts every other search that is ready
        return await super().lists(dataclasses.replace(ask, query=self._query))


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


class WritesWithTheNextCall(MemoryBackend):
    def __init__(self, collection: str) -> None:
        super().__init__(collection)
        self._waiting: list[tuple[Sequence[Document], M3Embeddings]] = []

    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        for earlier in self._waiting:
            await super()._upsert(*earlier)
        self._waiting = [(documents, embeddings)]


class StoresUntilTheFirstBadOne(MemoryBackend):
    async def upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        for i, document in enumerate(documents):
            await super().upsert([document], embeddings[i])


class StoresWhateverComes(MemoryBackend):
    async def upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        await self._upsert(documents, embeddings)


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


class ReturnsVectorsInItsOwnOrder(MemoryBackend):
    async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
        return await super()._vectors(sorted(ids))


class RoundsWhatItReturns(MemoryBackend):
    async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
        found = await super()._vectors(ids)
        assert found.dense is not None
        return found.replace(dense=found.dense.astype(np.float16).astype(np.float32))


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


class FilteredScansEndEarly(MemoryBackend):
    async def _passing_ids(self, filter: Filter) -> AsyncIterator[str]:
        for id in self._passing(filter)[:1000]:
            yield id


class ScansPastTheFilter(MemoryBackend):
    def _passing_ids(self, filter: Filter) -> AsyncIterator[str]:
        return self.scan_ids()


class ScansByPosition(MemoryBackend):
    """What a scan with an offset does: a document that is deleted meanwhile hides another one."""

    async def _passing_ids(self, filter: Filter) -> AsyncIterator[str]:
        position = 0
        while page := self._passing(filter)[position : position + 500]:
            for id in page:
                yield id
            position += 500


class GroupsAfterTheCut(MemoryBackend):
    """What a caller can do with k hits: their parents are fewer than k."""

    async def search(self, *arguments: Any, group_by: Any = None, **options: Any) -> list[ScoredId]:
        found = await super().search(*arguments, **options)
        if group_by is None:
            return found
        documents = await self.fetch([hit.id for hit in found])
        hits = [
            dataclasses.replace(hit, document=document)
            for hit, document in zip(found, documents, strict=True)
        ]
        return list({hit.document.parent: hit for hit in reversed(hits) if hit.document}.values())[::-1]


class RemembersTheDeleted(MemoryBackend):
    async def _delete(self, ids: Sequence[str]) -> int:
        self.seen = {*getattr(self, "seen", ()), *self._documents}
        return await super()._delete(ids)

    async def _present(self, ids: Sequence[str]) -> set[str]:
        return await super()._present(ids) | (getattr(self, "seen", set()) & set(ids))


class FetchesTheFirstHalf(MemoryBackend):
    async def _fetch(self, ids: Sequence[str]) -> list[Document | None]:
        found = await super()._fetch(ids)
        return found if len(ids) < 16 else [*found[: len(ids) // 2], *[None] * (len(ids) - len(ids) // 2)]


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


class ForgetsTimeZones(MemoryBackend):
    def _passing(self, filter: Filter | None) -> list[str]:
        return [
            id
            for id, each in self._documents.items()
            if matches(filter, {"when": re.sub(r"[+-]\d\d:\d\d$", "", each.metadata["when"])})
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


class ScoresRoughly(MemoryBackend):
    def _scores(self, component: Component, query: M3Embeddings, ids: Sequence[Key]) -> Float32:
        return super()._scores(component, query, ids).astype(np.float16).astype(np.float32)


class RoundsTheDocumentsOnly(MemoryBackend):
    def _multivector_scores(self, queries: M3Embeddings, ids: Sequence[Sequence[Key]]) -> list[Float32]:
        found = [self._joined([self._embeddings[str(id)] for id in each]) for each in ids]
        return [score("multivector", query, each) for query, each in zip(queries, found, strict=True)]


class RoundsNothing(RoundsTheDocumentsOnly):
    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        await super()._upsert(documents, embeddings)
        self._embeddings |= dict(zip((document.id for document in documents), embeddings, strict=True))
        self._columns = None


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


class SearchesWithWhatIsStored(MemoryBackend):
    async def search(
        self,
        query: M3Embeddings,
        method: Method,
        k: int,
        *,
        filter: Filter | None = None,
        exact: bool = False,
    ) -> list[ScoredId]:
        stored = set(method.components) <= set(self.schema.components)
        return await super().search(query, method if stored else DENSE, k, filter=filter, exact=exact)


class TakesAnyK(MemoryBackend):
    async def search(
        self,
        query: M3Embeddings,
        method: Method,
        k: int,
        *,
        filter: Filter | None = None,
        exact: bool = False,
    ) -> list[ScoredId]:
        return await super().search(query, method, max(1, int(k)), filter=filter, exact=exact)


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


class FindsHalfOfWhatLacks(MemoryBackend):
    async def _lacking(self, component: Component, limit: int) -> list[Document]:
        found = await super()._lacking(component, limit)
        return found[: (len(found) + 1) // 2] if limit > 1 else []


class RewritesWhatWasRead(MemoryBackend):
    async def _rewrite(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        await self._upsert(documents, embeddings)


SABOTEURS: list[tuple[type[MemoryBackend], str, dict[str, Any]]] = [
    (CreatesAgain, "b01 second", {}),
    (TakesTheNameFirst, "b01 together", {}),
    (ForgetsTheSchema, "b02", {}),
    (DropKeepsDocuments, "b03", {}),
    (LosesTheLastDocument, "b04", {}),
    (OneQueryAtATime, "b05 concurrent_calls", {}),
    (WritesInTwoSteps, "b05 concurrent_writes", {}),
    (RemovesThenWrites, "b05 cancelled", {}),
    (WritesWithTheNextCall, "b06", {}),
    (KeepsOldVectors, "b07 upsert", {}),
    (KeepsOldVectors, "b07 became_empty", {}),
    (StoresUntilTheFirstBadOne, "b08", {}),
    (StoresWhateverComes, "b08", {}),
    (CountsWhatWasAsked, "b09", {}),
    (DeletesEverythingThatPassesAndMore, "b10", {}),
    (FetchesInItsOwnOrder, "b11 fetch", {}),
    (WholeNumbersBecomeFloats, "b11 metadata", {}),
    (ReturnsVectorsInItsOwnOrder, "b12", {"storage": Storage("float32")}),
    (RoundsWhatItReturns, "b12", {"storage": Storage("float32")}),
    (CountsUpsertsOnce, "b13 count", {}),
    (LooksIntoNoLists, "b13 filters_mean", {}),
    (ComparesDoubles, "b13 whole", {}),
    (ForgetsTimeZones, "b13 year", {}),
    (StripsIds, "b14", {}),
    (FoldsCase, "b14", {}),
    (ScansOnePage, "b15", {}),
    (FiltersAfterTheCut, "b16", {"component": "dense"}),
    (RoundsScores, "b17 approximate_candidates", {}),
    (RoundsScores, "b17 sparse_candidates", {}),
    (RoundsScores, "b17 approximate_search", {"storage": Storage("float32")}),
    (RoundsScores, "b17 scores_stay_exact", {}),
    (ListsSomeOnly, "b17 approximate_candidates", {}),
    (ListsSomeOnly, "b17 sparse_candidates", {}),
    (ZeroForNotInTheList, "b17 approximate_search", {"storage": Storage("float32")}),
    (HidesOtherScores, "b17 approximate_search", {"storage": Storage("float32")}),
    (SearchesTheOldGraph, "b17 scores_stay_exact", {}),
    (ListsWhatSharesNothing, "b18", {"component": "sparse"}),
    (FiltersAfterTheCut, "b19 before_the_cut", {}),
    (ScoresRoughly, "b20", {"storage": Storage("float32")}),
    (RoundsTheDocumentsOnly, "b21", {"storage": Storage("float16")}),
    (RoundsNothing, "b21", {"storage": Storage("float16")}),
    (CutsLongDocuments, "b22 8191", {}),
    (PoolsAgain, "b22 pooled_documents", {}),
    (PoolsAgain, "b22 all_documents", {"storage": Storage("int2")}),
    (ScoresTheUnknown, "b23", {}),
    (ZeroForNotInTheList, "b24 oracle", {"storage": Storage("float32")}),
    (IgnoresWeights, "b24 oracle", {"storage": Storage("float32")}),
    (SearchesWithWhatIsStored, "b24 all_components", {}),
    (HidesOtherScores, "b25", {}),
    (TiesAsTheyCome, "b25", {}),
    (FailsOnNothing, "b26", {}),
    (NeverDeeper, "b27 k_deepens", {}),
    (TakesAnyK, "b27 unusable", {}),
    (FindsHalfOfWhatLacks, "b28 equals", {}),
    (RewritesWhatWasRead, "b28 left_alone", {}),
    (ScansPastTheFilter, "b29 passes", {}),
    (FilteredScansEndEarly, "b29 many_pages", {}),
    (ScansByPosition, "b29 many_pages", {}),
    (FetchesTheFirstHalf, "b29 own_vectors", {}),
    (RemembersTheDeleted, "b29 present", {}),
    (GroupsAfterTheCut, "b30", {}),
]
"""A store, the clause that it breaks (its number, and which of the clause's tests), and the test's parameters."""

TESTS = [name for name in dir(BackendConformance) if name.startswith("test_")]


def the_test(clause: str) -> str:
    """Return the name of the suite's test: of this clause, with this part of a name if the clause has several."""
    number, _, part = clause.partition(" ")
    (name,) = (name for name in TESTS if number in name.split("_") and part in name)
    return name


def run(store: type[MemoryBackend], test: str, directory: Path, arguments: dict[str, Any]) -> None:
    """Run one test of the suite on a store."""

    class Suite(BackendConformance):
        def make_backend(self, directory: Path, collection: str) -> Backend:
            return store(collection)

    Kept.collections_of_the_test = {}
    getattr(Suite(), test)(directory, **arguments)


@pytest.mark.parametrize(("broken", "clause", "arguments"), SABOTEURS)
def test_a_broken_store_fails_its_clause(
    tmp_path: Path, broken: type[MemoryBackend], clause: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises((AssertionError, ExceptionGroup, pytest.fail.Exception)):
        run(broken, the_test(clause), tmp_path, arguments)


@pytest.mark.parametrize("clause", ["b01 second", "b01 together", "b02", "b03", "b04", "b06"])
def test_a_sound_store_that_keeps_its_data_passes(tmp_path: Path, clause: str) -> None:
    run(Kept, the_test(clause), tmp_path, {})


def test_every_clause_has_a_saboteur() -> None:
    contract = re.findall(r"^ *B(\d+) ", base.__doc__ or "", re.MULTILINE)
    clauses = [f"b{int(number):02}" for number in contract]
    assert len(clauses) == 30
    assert sorted({clause.partition(" ")[0] for _, clause, _ in SABOTEURS}) == clauses
    assert sorted({the_test(clause) for _, clause, _ in SABOTEURS}) == TESTS


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
