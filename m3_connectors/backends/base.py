"""The contract between an index and a store, in numbered clauses; ``testing.BackendConformance`` tests each by number.

Collection
 B1  ``create`` makes an empty collection that records its schema; a second ``create`` raises AlreadyExists.
 B2  ``open`` reads the schema back equal to the one given to ``create``; without a collection it raises
     CollectionNotFound.
 B3  ``drop`` removes the collection and all it holds; afterwards ``open`` raises CollectionNotFound and ``create``
     works.
 B4  After ``close`` and a new ``open``, everything acknowledged before is there (stores that persist).
 B5  Calls on one backend may run concurrently; each answers as if it ran alone.
Writing
 B6  ``upsert`` stores documents with all components of the schema; when it returns, every read sees them.
 B7  ``upsert`` of an id that is there replaces text, metadata and all vectors; repeating a call changes nothing.
 B8  Bad vectors (NaN, infinity, so large that scores overflow, wrong width, no multi-vector row, sparse weights <= 0,
     another model's) raise InvalidInput or ModelMismatch, and nothing of the call is stored.
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
 B17 ``candidates("dense")`` and a search without ``exact`` may be approximate in who is listed, never in the scores,
     whatever index or quantisation the store's operator chose: they are those of B20 and of ``score``.
 B18 ``candidates("sparse")`` are the true top list by s_lex among documents that share a token with the query.
 B19 A filter holds before the cut: the list has ``limit`` entries whenever so many documents pass (and, for
     sparse, share a token).
Scores
 B20 ``score`` is exact for each component, in the order of the ids; no shared token scores 0.
 B21 float16 multi-vector storage rounds documents and query to float16 and is exact otherwise (within 1e-5).
 B22 A document of 8,191 rows is scored exactly, or was refused or pooled as the storage choice says; of a pooled
     one, the pooled rows are what ``vectors`` gives and what is scored exactly.
 B23 ``score`` of an id that is not stored raises DocumentNotFound.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import ClassVar, TypeVar

import anyio.to_thread
import numpy as np

from m3_connectors.backends.capabilities import Capability, Remark, ServerInfo, require
from m3_connectors.backends.checks import check_filter, check_query, check_stored
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.pooling import long_documents, pool_long
from m3_connectors.backends.schema import Schema, Storage
from m3_connectors.documents import Document, check_documents, check_id
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import DocumentNotFound, InvalidInput, Unsupported
from m3_connectors.filters import Filter
from m3_connectors.methods import Method, rank
from m3_connectors.search import Candidates, Deleted, Key, Lists, ScoredId, search

__all__ = ["Backend", "Candidates", "Lists", "Ranking", "Schema", "ScoredId", "Storage"]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Candidates of one component, best first, with exact scores.

    Attributes:
        ids: Document ids, ``[n]``.
        scores: float32 ``[n]``.
    """

    ids: Sequence[str]
    scores: Float32


_TRIES = 8
"""Of a search while others delete."""

_DEEP = 16_384
"""A longer list is cut to the number of documents that are stored: stores make room for as many as are asked for, or
refuse a number that is too large for them."""


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

    async def collections(self) -> list[CollectionInfo]:
        """Every collection of the store, of other programs too, in any order and not counted; needs no collection.

        Raises:
            NotFound: There is no such directory.
            Unsupported: This store cannot list.
            BackendError: It cannot be reached, or the credentials do not allow it.
        """
        raise Unsupported(f"{self.name} cannot list its collections.\n  Name the one that you mean.")

    async def remarks(self) -> tuple[Remark, ...]:
        """What a user should know about the open collection."""
        return ()

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
            DocumentNotFound: An id is not stored.
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
        depths = await self._reachable({component: limit})

        async def ask() -> Ranking:
            found = await self.lists(Lists(query, depths, filter, exact))
            if not found.keys:
                return Ranking([], np.empty(0, dtype=np.float32))
            ids, scores = await self.ids(found), found.scores[component]
            order = rank(ids, scores, limit)
            return Ranking([ids[i] for i in order], scores[order])

        return await self._until_none_is_deleted(ask)

    async def score(self, component: Component, query: M3Embeddings, ids: Sequence[str]) -> Float32:
        """B20–B23. The exact score of each id, float32 ``[len(ids)]``.

        Raises:
            InvalidInput: The query is unfit, or the component is not stored.
            ModelMismatch: The query is another model's.
            DocumentNotFound: An id is not stored.
        """
        check_query(self.schema, self.collection, (component,), query)
        if not ids:
            return np.empty(0, dtype=np.float32)
        keys = [self.key(id) for id in self._checked(ids)]
        found = Candidates(keys)
        await self.complete(query, found, (component,))
        missing = set(found.missing(component))
        for id, key in zip(ids, keys, strict=True):
            if key in missing:
                raise DocumentNotFound(f"no document {id!r}.", backend=self.name, operation="score")
        return found.scores[component][found.rows(keys)]

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
        method = dataclasses.replace(method, candidates=await self._reachable(method.candidates))
        return await self._until_none_is_deleted(lambda: self._search(query, method, k, filter, exact))

    async def _reachable(self, depths: Mapping[Component, int]) -> Mapping[Component, int]:
        """The depths of lists, none of them beyond both ``_DEEP`` and the number of documents."""
        if max(depths.values()) <= _DEEP:
            return depths
        most = max(_DEEP, await self._count(None))
        return {component: min(depth, most) for component, depth in depths.items()}

    async def _until_none_is_deleted(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The first answer of which no document was deleted in the middle."""
        for _ in range(_TRIES):
            # A candidate that is deleted before it is scored is no answer, and no error either: ask again, without it.
            with contextlib.suppress(Deleted, DocumentNotFound):
                return await ask()
        raise DocumentNotFound(
            f"candidates were deleted before they were scored, {_TRIES} times in a row.\n"
            "  Repeat the search when fewer documents are being deleted.",
            backend=self.name,
            operation="search",
        )

    async def _search(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None, exact: bool
    ) -> list[ScoredId]:
        """Run a checked search; overridden by stores that limit how many run at once, or run them elsewhere."""
        return await search(self, self.schema.components, query, method, k, filter, exact)

    # -- what an adapter writes

    @abc.abstractmethod
    async def _create(self, schema: Schema) -> None:
        """Make the collection; AlreadyExists if it is there."""

    @abc.abstractmethod
    async def _open(self) -> Schema:
        """Open the collection and read its schema; CollectionNotFound if it is not there."""

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

    # -- what an adapter answers to a search; see ``search.Answers``

    settles_ties: bool = False
    """Whether a list that is cut through equal scores holds the lowest ids of them."""

    @abc.abstractmethod
    async def lists(self, ask: Lists) -> Candidates:
        """B16–B19. The union of lists, with the exact scores that they are ordered by."""

    @abc.abstractmethod
    async def complete(
        self,
        query: M3Embeddings,
        found: Candidates,
        components: Sequence[Component],
        *,
        documents: bool = False,
    ) -> None:
        """B20–B23. Add every score of these components that is not known; all documents too if that is no slower."""

    def key(self, id: str) -> Key:
        """What this store calls a document."""
        return id

    async def ids(self, found: Candidates) -> list[str]:
        """The documents' ids, in the order of the rows; overridden together with ``key``."""
        return [str(key) for key in found.keys]

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
