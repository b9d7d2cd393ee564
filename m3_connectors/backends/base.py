"""The contract between an index and a store, in numbered clauses; ``testing.BackendConformance`` tests each by number.

Collection
 B1  ``create`` makes an empty collection that records its schema; a second ``create`` raises AlreadyExists.
 B2  ``open`` reads the schema back equal to the one given to ``create``; without a collection it raises NotFound.
 B3  ``drop`` removes the collection and all it holds; afterwards ``open`` raises NotFound and ``create`` works.
 B4  After ``close`` and a new ``open``, everything acknowledged before is there (stores that persist).
 B5  Calls on one backend may run concurrently; each answers as if it ran alone.
Writing
 B6  ``upsert`` stores documents with all components of the schema; when it returns, every read sees them.
 B7  ``upsert`` of an id that is there replaces text, metadata and all vectors; repeating a call changes nothing.
 B8  Bad vectors (NaN, infinity, wrong width, no multi-vector row, sparse weights <= 0, another model's) raise
     InvalidInput or ModelMismatch, and nothing of the call is stored.
 B9  ``delete`` removes the ids that are there and returns how many; unknown ids are no error.
 B10 ``delete_where`` removes exactly the documents that pass the filter and returns how many.
Reading
 B11 ``fetch`` answers in the order asked, None for unknown ids; text and metadata come back equal to what went in.
 B12 ``vectors`` answers in the order asked: dense and sparse in float32, multi-vectors in the storage precision.
 B13 ``count`` counts the documents that pass a filter, all without one.
 B14 Ids are any Unicode of 1 to 512 bytes and are never confused with each other or with query syntax.
 B15 ``scan_ids`` yields every stored id once, in any order.
Candidates
 B16 ``candidates("dense", exact=True)`` are the true top list by s_dense, best first, with exact scores;
     of equal scores at the cut, any.
 B17 ``candidates("dense")`` may be approximate in who is listed, never in the scores.
 B18 ``candidates("sparse")`` are the true top list by s_lex among documents that share a token with the query.
 B19 A filter holds before the cut: the list has ``limit`` entries whenever so many documents pass (and, for
     sparse, share a token).
Scores
 B20 ``score`` is exact for each component, in the order of the ids; no shared token scores 0.
 B21 float16 multi-vector storage rounds documents and query to float16 and is exact otherwise (within 1e-5).
 B22 A document of 8,191 rows is scored exactly, or was refused or pooled as the storage choice says; of a pooled
     one, the pooled rows are what ``vectors`` gives and what is scored exactly.
 B23 ``score`` of an id that is not stored raises NotFound.
Search
 B24 ``search`` equals the oracle for every method and any weights: same ids in the same order, scores within 1e-5.
 B25 Every hit has the scores of all stored components; equal fused scores are ordered by id.
 B26 An empty collection, a filter that nothing passes and a query without tokens in common answer without error.
 B27 ``k`` beyond the paper's depths deepens the lists, so that k hits come back where so many exist.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import ClassVar

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from m3_connectors.backends.capabilities import Capability, ServerInfo, require
from m3_connectors.backends.checks import check_filter, check_query, check_stored
from m3_connectors.backends.pooling import long_documents, pool_long
from m3_connectors.backends.schema import Schema, Storage
from m3_connectors.backends.together import together
from m3_connectors.documents import Document, Scores, check_documents, check_id
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import InvalidInput, NotFound
from m3_connectors.filters import Filter
from m3_connectors.methods import Method, fuse, rank

__all__ = ["Backend", "Known", "Ranking", "Schema", "ScoredId", "Storage"]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Candidates of one component, best first, with exact scores.

    Attributes:
        ids: Document ids, ``[n]``.
        scores: float32 ``[n]``.
    """

    ids: Sequence[str]
    scores: Float32


@dataclasses.dataclass(frozen=True)
class ScoredId:
    """One answer, with its document where the same request brought it; else it is fetched by its id."""

    id: str
    score: float
    scores: Scores
    document: Document | None = None


def answers(
    ids: Sequence[str],
    fused: npt.NDArray[np.float64],
    scores: Mapping[Component, Float32],
    documents: Mapping[str, Document],
) -> list[ScoredId]:
    """The answers of a search, all columns in its order."""
    return [
        ScoredId(
            id,
            float(fused[i]),
            Scores(**{name: float(values[i]) for name, values in scores.items()}),
            documents.get(id),
        )
        for i, id in enumerate(ids)
    ]


Known = dict[Component, dict[str, np.float32]]
"""Scores that are known before any is asked for: by component and id."""


_TRIES = 8
"""Of a search while others delete."""


class Backend(abc.ABC):
    """One collection in one store; all calls are coroutines on one event loop.

    The public methods check their input and then call the method of the same name with an underscore, which
    an adapter writes: an adapter sees valid input only, and nothing invalid ever reaches a store.
    """

    name: ClassVar[str]
    """Short name, as in errors and URLs."""

    collection: str
    """Name of the collection."""

    capabilities: frozenset[Capability]
    """What this store does of what can be asked; the rest is refused. An open collection may do less than its class."""

    _schema: Schema | None = None

    @property
    def schema(self) -> Schema:
        """What the open collection records about itself."""
        if self._schema is None:
            raise InvalidInput(
                f"{self.name} collection {self.collection!r} is not open: await open() or create()."
            )
        return self._schema

    # -- the collection

    async def create(self, schema: Schema) -> None:
        """B1. Make an empty collection and open it."""
        await self._create(schema)
        self._schema = schema

    async def open(self) -> Schema:
        """B2. Open the collection and return its schema."""
        self._schema = await self._open()
        return self._schema

    async def drop(self) -> None:
        """B3. Remove the collection; no error if there is none."""
        await self._drop()
        self._schema = None

    @abc.abstractmethod
    async def close(self) -> None:
        """B4. Give back what the adapter holds; safe to call twice."""

    async def optimize(self) -> None:  # noqa: B027 (most stores do it by themselves)
        """Build what makes searches faster, such as a graph, or wait until the store has; nothing if there is none."""

    async def server(self) -> ServerInfo:
        """What the store is, and what is wrong with it; needs no collection.

        Raises:
            BackendError: It cannot be reached, or refuses the credentials.
        """
        return ServerInfo(self.name)

    # -- writing

    async def upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """B6–B8. Store documents with their embeddings, row i for document i; ids differ from each other.

        Long documents are pooled here where the schema says so, so that all stores get the same rows.

        Raises:
            InvalidInput: Documents or vectors are not fit to be stored; nothing was.
            ModelMismatch: The vectors are another model's; nothing was stored.
        """
        documents = check_documents(documents)
        if len({document.id for document in documents}) < len(documents):
            raise InvalidInput("two documents of one upsert have the same id: keep the last of each.")
        embeddings = check_stored(self.schema, self.collection, len(documents), embeddings)
        storage = self.schema.storage
        if long_documents(storage, embeddings).any():  # a thread: pooling takes half a second for 8,191 rows
            embeddings = await anyio.to_thread.run_sync(pool_long, storage, embeddings)
        if documents:
            await self._upsert(documents, embeddings)

    async def delete(self, ids: Sequence[str]) -> int:
        """B9. Remove documents by id; how many were there."""
        return await self._delete(self._checked(ids)) if ids else 0

    async def delete_where(self, filter: Filter) -> int:
        """B10. Remove the documents that pass the filter; how many there were."""
        check_filter(self.schema, self.collection, filter)
        return await self._delete_where(filter)

    # -- reading

    async def fetch(self, ids: Sequence[str]) -> list[Document | None]:
        """B11. Documents by id."""
        return await self._fetch(self._checked(ids)) if ids else []

    async def vectors(self, ids: Sequence[str]) -> M3Embeddings:
        """B12. What is stored for these ids; at least one.

        Raises:
            InvalidInput: No id is given.
            NotFound: An id is not stored.
        """
        if not ids:
            raise InvalidInput("vectors of no ids: give at least one id.")
        return await self._vectors(self._checked(ids))

    async def count(self, filter: Filter | None = None) -> int:
        """B13. How many documents pass the filter."""
        check_filter(self.schema, self.collection, filter)
        return await self._count(filter)

    @abc.abstractmethod
    def scan_ids(self) -> AsyncIterator[str]:
        """B15. Every stored id once."""

    # -- ranking

    async def candidates(
        self,
        component: Component,
        query: M3Embeddings,
        limit: int,
        *,
        filter: Filter | None = None,
        exact: bool = False,
    ) -> Ranking:
        """B16–B19. The best documents by one component, dense or sparse.

        Raises:
            InvalidInput: The component proposes nothing, ``limit`` < 1, or the query is unfit.
            ModelMismatch: The query is another model's.
        """
        if component not in ("dense", "sparse"):
            raise InvalidInput(f"{component} cannot propose candidates; dense and sparse can.")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InvalidInput(f"limit is {limit!r}: ask for at least 1 candidate.")
        self._require(Capability.EXACT, asked=exact)
        check_query(self.schema, self.collection, (component,), query)
        check_filter(self.schema, self.collection, filter)
        return await self._candidates(component, query, limit, filter, exact)

    async def score(self, component: Component, query: M3Embeddings, ids: Sequence[str]) -> Float32:
        """B20–B23. The exact score of each id, float32 ``[len(ids)]``.

        Raises:
            InvalidInput: The query is unfit, or the component is not stored.
            ModelMismatch: The query is another model's.
            NotFound: An id is not stored.
        """
        check_query(self.schema, self.collection, (component,), query)
        return (
            await self._score(component, query, self._checked(ids)) if ids else np.empty(0, dtype=np.float32)
        )

    async def search(
        self,
        query: M3Embeddings,
        method: Method,
        k: int,
        *,
        filter: Filter | None = None,
        exact: bool = False,
    ) -> list[ScoredId]:
        """B24–B27. The k best documents by a method.

        Args:
            query: One text; at least the method's components.
            method: Candidates and weights.
            k: Most hits, >= 1.
            filter: Only documents that pass.
            exact: No approximate list; slower, for evaluation.

        Raises:
            InvalidInput: ``k`` < 1, or the query lacks a component, is not finite or of another width.
            ModelMismatch: The query is another model's.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise InvalidInput(f"k is {k!r}: ask for at least 1 hit, as a whole number.")
        k = int(k)
        self._require(Capability.EXACT, asked=exact)
        check_query(self.schema, self.collection, method.components, query, f'method "{method.name}"')
        check_filter(self.schema, self.collection, filter)
        method = method.deep_enough(k)
        for _ in range(_TRIES - 1):
            # A candidate that is deleted before it is scored is no answer, and no error either: ask again, without it.
            with contextlib.suppress(NotFound):
                return await self._search(query, method, k, filter, exact)
        return await self._search(query, method, k, filter, exact)

    async def _search(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None, exact: bool
    ) -> list[ScoredId]:
        """Candidates, then the missing scores, then fusion."""
        ids, known = await self._propose(query, method, filter, exact)
        return await self._best_of(query, method, k, ids, known)

    async def _best_of(
        self, query: M3Embeddings, method: Method, k: int, ids: Sequence[str], known: Known
    ) -> list[ScoredId]:
        """The k best of these candidates."""
        scores = await self._complete(method.scored, query, ids, known)
        fused = fuse(scores, method.weights) if ids else np.empty(0)
        best = rank(ids, fused, k)
        winners = [ids[i] for i in best]
        extra, documents = await self._inform(self._uncounted(query, method), query, winners, known)
        shown = {name: values[best] for name, values in scores.items()} | extra
        return answers(winners, fused[best], shown, documents)

    def _uncounted(self, query: M3Embeddings, method: Method) -> list[Component]:
        """The components that are informative only: scored for the k hits, not for the candidates."""
        return [
            name for name in self.schema.components if name in query.components and name not in method.scored
        ]

    async def _propose(
        self, query: M3Embeddings, method: Method, filter: Filter | None, exact: bool
    ) -> tuple[list[str], Known]:
        """The candidates of a method and their known scores; override where the store's lists bring more of them."""
        components = list(method.candidates)
        rankings = await together(
            [
                functools.partial(self._candidates, name, query, method.candidates[name], filter, exact)
                for name in components
            ]
        )
        known: Known = {
            name: dict(zip(found.ids, found.scores, strict=True))
            for name, found in zip(components, rankings, strict=True)
        }
        return list(dict.fromkeys(id for found in rankings for id in found.ids)), known

    async def _complete(
        self, components: Sequence[Component], query: M3Embeddings, ids: Sequence[str], known: Known
    ) -> dict[Component, Float32]:
        """Every component's score of every id: the known ones, and the store's own exact score of the others."""

        async def complete(component: Component) -> Float32:
            seen = known.get(component, {})
            missing = [id for id in ids if id not in seen]
            scores = await self._score(component, query, missing) if missing else ()
            found = dict(zip(missing, scores, strict=True))
            return np.array([seen[id] if id in seen else found[id] for id in ids], dtype=np.float32)

        scores = await together([functools.partial(complete, name) for name in components])
        return dict(zip(components, scores, strict=True))

    async def _inform(
        self, components: Sequence[Component], query: M3Embeddings, ids: Sequence[str], known: Known
    ) -> tuple[dict[Component, Float32], Mapping[str, Document]]:
        """Scores of the hits that do not count; and their documents, in adapters where one request brings both."""
        return await self._complete(components, query, ids, known), {}

    # -- what an adapter writes

    @abc.abstractmethod
    async def _create(self, schema: Schema) -> None:
        """Make the collection; AlreadyExists if it is there."""

    @abc.abstractmethod
    async def _open(self) -> Schema:
        """Open the collection and read its schema; NotFound if it is not there."""

    @abc.abstractmethod
    async def _drop(self) -> None:
        """Remove the collection if it is there."""

    @abc.abstractmethod
    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """Store checked documents; at least one, ids distinct."""

    @abc.abstractmethod
    async def _delete(self, ids: Sequence[str]) -> int:
        """B9, at least one id."""

    @abc.abstractmethod
    async def _delete_where(self, filter: Filter) -> int:
        """B10."""

    @abc.abstractmethod
    async def _fetch(self, ids: Sequence[str]) -> list[Document | None]:
        """B11, at least one id; ids may repeat."""

    @abc.abstractmethod
    async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
        """B12, at least one id; ids may repeat."""

    @abc.abstractmethod
    async def _count(self, filter: Filter | None) -> int:
        """B13."""

    @abc.abstractmethod
    async def _candidates(
        self, component: Component, query: M3Embeddings, limit: int, filter: Filter | None, exact: bool
    ) -> Ranking:
        """B16–B19, a checked query."""

    @abc.abstractmethod
    async def _score(self, component: Component, query: M3Embeddings, ids: Sequence[str]) -> Float32:
        """B20–B23, a checked query and at least one id; ids may repeat."""

    def _require(self, capability: Capability, *, asked: bool) -> None:
        """Raise Unsupported if the capability is asked for and not there."""
        if asked:
            require(f'{self.name} collection "{self.collection}"', self.capabilities, [capability])

    def _check_open(self) -> None:
        _ = self.schema

    def _checked(self, ids: Sequence[str]) -> list[str]:
        self._check_open()
        for i, id in enumerate(ids):
            check_id(id, f"ids[{i}]")
        return list(ids)
