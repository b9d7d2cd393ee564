"""The contract between an index and a store, in numbered clauses that ``testing.BackendConformance`` tests.

Collection
 B1  ``create`` makes an empty collection that records its schema; a second ``create`` raises AlreadyExists.
 B2  ``open`` returns the schema that was given to ``create``; if the collection does not exist it raises
     CollectionNotFound.
 B3  ``drop`` removes the collection and its content; afterwards ``open`` raises CollectionNotFound and
     ``create`` works.
 B4  After ``close`` and a new ``open``, everything acknowledged before is still stored (persistent stores).
 B5  Calls on one backend may run concurrently; each returns what it would return if it ran alone.
Writing
 B6  ``upsert`` stores documents with all components of the schema; when it returns, every read sees them.
 B7  ``upsert`` of a stored id replaces text, metadata and all vectors; repeating a call changes nothing.
 B8  Bad vectors (NaN, infinity, values so large that scores overflow, wrong width, no multi-vector row, sparse
     weights <= 0, another model's) raise InvalidInput or ModelMismatch, and nothing of the call is stored.
 B9  ``delete`` removes the stored ids and returns their number; unknown ids are not an error.
 B10 ``delete_where`` removes exactly the documents that pass the filter and returns their number.
Reading
 B11 ``fetch`` returns documents in the order of the ids, None for unknown ids; text and metadata are
 unchanged.
 B12 ``vectors`` returns vectors in the order of the ids: dense and sparse in float32, multi-vectors as the
     storage precision reads them.
 B13 ``count`` counts the documents that pass a filter, or all documents without one.
 B14 Ids are any Unicode of 1 to 512 bytes and are never confused with each other or with query syntax.
 B15 ``scan_ids`` yields every stored id once, in any order.
Candidates
 B16 ``candidates("dense", exact=True)`` is the true top list by s_dense, best first, with exact scores;
     of documents with equal scores at the cut, any may be listed.
 B17 ``candidates("dense")`` and a search without ``exact`` may be approximate in which documents are listed,
     never in the scores, whatever index or quantisation the operator chose: they are those of B20 and of
     ``score``.
 B18 ``candidates("sparse")`` is the true top list by s_lex among documents that share a token with the query.
 B19 A filter is applied before the cut: the list has ``limit`` entries if that many documents pass (and, for
     sparse, share a token).
Scores
 B20 ``score`` is exact for each component, in the order of the ids; a document without a shared token scores
 0.
 B21 Multi-vector scores are those of the rounded query and the rounded rows, as the storage's precision defines them
     (``backends.precision``), within 1e-5 for rows of length 1.
 B22 A document of 8,191 rows is scored exactly, or was refused or pooled as the storage says; for a pooled
     document, ``vectors`` returns the pooled rows, and these are scored exactly.
 B23 ``score`` of an id that is not stored raises DocumentNotFound.
Search
 B24 ``search`` equals the reference for every method and any weights: same ids, same order, scores within
 1e-5.
 B25 Every hit has the scores of all stored components; equal fused scores are ordered by id.
 B26 An empty collection, a filter that no document passes and a query that shares no token are not errors.
 B27 ``k`` beyond the paper's depths deepens the lists, so that k hits are returned if that many exist.
Adding a component
 B28 While ``record`` says that a component is being added, writes store it, reads and searches ignore it, and
     ``lacking`` returns documents that are stored without it. ``rewrite`` replaces the vectors of the documents that
     are still as given, and changes no document that was replaced or deleted meanwhile. Once ``record`` says that the
     component is stored, the collection equals one that was created with it.
Scanning
 B29 ``passing_ids`` yields the id of each document that passes a filter once, in any order and in bounded memory. A
     document that is stored before the scan begins, and neither replaced nor deleted until it ends, is among them,
     whatever is written meanwhile. ``present`` returns those of the ids that are stored.
Groups
 B30 ``search(group_by="parent")`` returns k parents if that many pass the filter and can be listed, each once with its
     best candidate: the same as the reference.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, TypeVar

import anyio.to_thread
import numpy as np

from m3_connectors.backends.capabilities import Capability, Remark, ServerInfo, require
from m3_connectors.backends.checks import check_filter, check_found, check_query, check_stored
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.pooling import long_documents, pool_long
from m3_connectors.backends.scanning import passing_by_reading
from m3_connectors.backends.schema import ADDABLE, Schema, Storage
from m3_connectors.backends.together import together
from m3_connectors.documents import Document, check_documents, check_id
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import DocumentNotFound, InvalidInput, Unsupported
from m3_connectors.filters import Filter
from m3_connectors.grouping import GroupBy, best_of_parents, check_group_by
from m3_connectors.methods import Method, rank
from m3_connectors.reranking import check_count
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


QUERIES_AT_ONCE = 8
"""The number of queries that are sent to a store at a time if there are many of them."""

_TRIES = 8
"""The number of tries of a search while other clients delete documents."""

_DEEP = 16_384
"""A longer list is cut to the number of documents that are stored: stores make room for as many as are asked for, or
refuse a number that is too large for them."""


class Backend(abc.ABC):
    """One collection in one store; all calls are coroutines on one event loop.

    The public methods check their input and then call the method of the same name with an underscore, which
    an adapter implements: an adapter receives valid input only, and nothing invalid reaches a store.
    """

    name: ClassVar[str]
    """The short name, as used in errors and URLs."""

    collection: str
    """Name of the collection."""

    capabilities: frozenset[Capability]
    """The features that this store supports; others are refused. An open collection may support fewer."""

    addable: ClassVar[tuple[Component, ...]] = ADDABLE
    """The components that can be added to a collection, with ``Capability.ADD_COMPONENT``."""

    _schema: Schema | None = None

    @property
    def schema(self) -> Schema:
        """The schema that the open collection records."""
        if self._schema is None:
            raise InvalidInput(
                f"{self.name} collection {self.collection!r} is not open.\n  Await open() or create() first."
            )
        return self._schema

    # -- the collection

    async def create(self, schema: Schema) -> None:
        """B1. Create an empty collection and open it.

        Raises:
            AlreadyExists: The collection exists.
            Unsupported: The store cannot hold this precision of multi-vectors; nothing was created.
        """
        if schema.precision.is_compact:
            require(self.name, self.capabilities, [Capability.COMPACT])
        await self._create(schema)
        self._schema = schema

    async def open(self) -> Schema:
        """B2. Open the collection and return its schema."""
        self._schema = await self._open()
        return self._schema

    async def drop(self) -> None:
        """B3. Remove the collection; it is not an error if it does not exist."""
        await self._drop()
        self._schema = None

    @abc.abstractmethod
    async def close(self) -> None:
        """B4. Release the resources of the adapter; safe to call twice."""

    async def optimize(self) -> None:  # noqa: B027 (most stores do this themselves)
        """Build what makes searches faster, such as a graph, or wait until the store has built it."""

    async def server(self) -> ServerInfo:
        """Return what the store is and what is wrong with it; needs no collection.

        Raises:
            BackendError: The store cannot be reached, or refuses the credentials.
        """
        return ServerInfo(self.name)

    async def collections(self) -> list[CollectionInfo]:
        """Return all collections of the store, also of other programs, in any order, without opening one.

        Raises:
            NotFound: The directory does not exist.
            Unsupported: This store cannot list its collections.
            BackendError: The store cannot be reached, or the credentials do not allow the call.
        """
        raise Unsupported(
            f"{self.name} cannot list its collections.\n  Name the collection that you want to use."
        )

    async def remarks(self) -> tuple[Remark, ...]:
        """Return what a user should know about the open collection."""
        return ()

    # -- writing

    async def upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """B6–B8. Store documents with their embeddings, row i for document i; all ids must differ.

        Long documents are pooled here if the schema says so, so that all stores receive the same rows.

        Raises:
            InvalidInput: The documents or vectors cannot be stored; nothing was stored.
            ModelMismatch: The vectors come from another model; nothing was stored.
        """
        documents, embeddings = await self._prepared(documents, embeddings)
        if documents:
            await self._upsert(documents, embeddings)

    async def restore(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """B6–B8. Store documents with embeddings that a collection returned: as ``upsert``, without pooling them again.

        Raises:
            InvalidInput: The documents or vectors cannot be stored; nothing was stored.
            ModelMismatch: The vectors come from another model; nothing was stored.
        """
        documents, embeddings = self._checked_write(documents, embeddings)
        if documents:
            await self._upsert(documents, embeddings)

    async def _prepared(
        self, documents: Sequence[Document], embeddings: M3Embeddings
    ) -> tuple[Sequence[Document], M3Embeddings]:
        """Return checked documents, and their embeddings as a store receives them."""
        documents, embeddings = self._checked_write(documents, embeddings)
        storage = self.schema.storage
        if long_documents(storage, embeddings).any():
            # In a thread, because pooling takes half a second for 8,191 rows.
            embeddings = await anyio.to_thread.run_sync(pool_long, storage, embeddings)
        return documents, embeddings

    def _checked_write(
        self, documents: Sequence[Document], embeddings: M3Embeddings
    ) -> tuple[Sequence[Document], M3Embeddings]:
        documents = check_documents(documents)
        if len({document.id for document in documents}) < len(documents):
            raise InvalidInput(
                "two documents of one upsert have the same id.\n  Keep only the last document of each id."
            )
        return documents, check_stored(self.schema, self.collection, len(documents), embeddings)

    async def delete(self, ids: Sequence[str]) -> int:
        """B9. Remove documents by id; return how many were stored."""
        return await self._delete(self._checked(ids)) if ids else 0

    async def delete_where(self, filter: Filter) -> int:
        """B10. Remove the documents that pass the filter; return how many there were."""
        check_filter(self.schema, self.collection, filter)
        return await self._delete_where(filter)

    # -- adding a component to the documents that are stored

    async def renew(self) -> None:
        """Use what the collection records now: another process may add a component."""
        if await self._recorded() != self.schema:
            await self.open()

    async def record(self, schema: Schema) -> None:
        """B28. Replace the recorded schema, once the store has the fields for its components; may be repeated.

        Raises:
            Unsupported: The store cannot add a component to a collection; nothing was changed.
        """
        self._require(Capability.ADD_COMPONENT, asked=True)
        await self._record(schema)
        self._schema = schema

    async def lacking(self, component: Component, limit: int) -> list[Document]:
        """B28. Return documents that are stored without a component, ``limit`` of them if there are as many."""
        self._require(Capability.ADD_COMPONENT, asked=True)
        return await self._lacking(component, limit)

    async def rewrite(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """B28. Replace the vectors of those documents that are still stored as given; skip the others.

        Raises:
            InvalidInput: The vectors cannot be stored; nothing was changed.
        """
        self._require(Capability.ADD_COMPONENT, asked=True)
        documents, embeddings = await self._prepared(documents, embeddings)
        if documents:
            await self._rewrite(documents, embeddings)

    async def _recorded(self) -> Schema:
        """Return what the collection records now; a store that one process has open alone need not ask."""
        return self.schema

    async def _record(self, schema: Schema) -> None:
        """B28: create the missing fields of ``schema.written``, then replace the record."""
        raise NotImplementedError

    async def _lacking(self, component: Component, limit: int) -> list[Document]:
        """B28."""
        raise NotImplementedError

    async def _rewrite(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """B28: as ``_upsert``, for each document atomically with the comparison."""
        raise NotImplementedError

    # -- reading

    async def fetch(self, ids: Sequence[str]) -> list[Document | None]:
        """B11. Return documents by id."""
        return await self._fetch(self._checked(ids)) if ids else []

    async def present(self, ids: Sequence[str]) -> set[str]:
        """B29. Return those of the ids that are stored."""
        return await self._present(list(dict.fromkeys(self._checked(ids)))) if ids else set()

    async def vectors(self, ids: Sequence[str]) -> M3Embeddings:
        """B12. Return the stored vectors of these ids, at least one.

        Raises:
            InvalidInput: The list of ids is empty.
            DocumentNotFound: An id is not stored.
        """
        if not ids:
            raise InvalidInput("vectors was called with no ids.\n  Pass at least one id.")
        return await self._vectors(self._checked(ids))

    async def count(self, filter: Filter | None = None) -> int:
        """B13. Return the number of documents that pass the filter."""
        check_filter(self.schema, self.collection, filter)
        return await self._count(filter)

    @abc.abstractmethod
    def scan_ids(self) -> AsyncIterator[str]:
        """B15. Yield every stored id once."""

    async def passing_ids(self, filter: Filter | None = None) -> AsyncGenerator[str, None]:
        """B29. Yield the id of each document that passes a filter once, in any order."""
        check_filter(self.schema, self.collection, filter)
        ids = self.scan_ids() if filter is None else self._passing_ids(filter)
        try:
            async for id in ids:
                yield id
        finally:
            if isinstance(ids, AsyncGenerator):
                await ids.aclose()

    def _passing_ids(self, filter: Filter) -> AsyncIterator[str]:
        """B29; a store that lists them itself overrides it."""
        return passing_by_reading(self, self.scan_ids(), filter)

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
        """B16–B19. Return the best documents by one component, dense or sparse.

        Raises:
            InvalidInput: The component cannot list candidates, ``limit`` < 1, or the query is not valid.
            ModelMismatch: The query comes from another model.
        """
        if component not in ("dense", "sparse"):
            raise InvalidInput(f"{component!r} cannot list candidates.\n  Use 'dense' or 'sparse'.")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InvalidInput(f"limit is {limit!r}.\n  Pass a whole number >= 1.")
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
        """B20–B23. Return the exact score of each id, float32 ``[len(ids)]``.

        Raises:
            InvalidInput: The query is not valid, or the component is not stored.
            ModelMismatch: The query comes from another model.
            DocumentNotFound: An id is not stored.
        """
        check_query(self.schema, self.collection, (component,), query)
        if not ids:
            return np.empty(0, dtype=np.float32)
        keys = [self.key(id) for id in self._checked(ids)]
        found = Candidates(keys)
        await self.complete(query, found, (component,))
        known = set(found.keys).difference(found.missing(component))
        check_found(ids, keys, known, self.name, "score")
        return found.scores[component][found.rows(keys)]

    async def score_many(
        self, component: Component, queries: M3Embeddings, ids: Sequence[Sequence[str]]
    ) -> list[Float32]:
        """B20–B23 for several queries: return the exact scores of ``ids[i]`` for query i.

        Args:
            component: The component.
            queries: Any number of texts.
            ids: Stored ids for each of them.

        Returns:
            float32 ``[len(ids[i])]`` for each query.

        Raises:
            InvalidInput: A query is not valid, or the component is not stored.
            ModelMismatch: The queries come from another model.
            DocumentNotFound: An id is not stored.
        """
        for query in queries:
            check_query(self.schema, self.collection, (component,), query)
        return await self._score_many(component, queries, [self._checked(each) for each in ids])

    async def search(
        self,
        query: M3Embeddings,
        method: Method,
        k: int,
        *,
        filter: Filter | None = None,
        exact: bool = False,
        group_by: GroupBy | None = None,
    ) -> list[ScoredId]:
        """B24–B27, B30. Return the k best documents by a method.

        Args:
            query: One text, with at least the components of the method.
            method: Candidate lists and weights.
            k: The largest number of hits, >= 1.
            filter: Only documents that pass it are returned.
            exact: Use no approximate list; slower, for evaluation.
            group_by: ``"parent"`` returns only the best hit of each parent (``grouping``), with its document.

        Raises:
            InvalidInput: ``k`` < 1, ``group_by`` is unknown, or the query lacks a component, is not finite or has a
                wrong width.
            ModelMismatch: The query comes from another model.
        """
        k = check_count("k", k, least=1)
        check_group_by(group_by)
        self._require(Capability.EXACT, asked=exact)
        check_query(self.schema, self.collection, method.components, query, f'method "{method.name}"')
        check_filter(self.schema, self.collection, filter)

        async def ask(depth: int, passing: Filter | None) -> list[ScoredId]:
            return await self._ranked(query, method, depth, passing, exact)

        if group_by is None:
            return await ask(k, filter)
        return await best_of_parents(ask, self.fetch, k, min(method.candidates.values()), filter)

    async def _ranked(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None, exact: bool
    ) -> list[ScoredId]:
        method = method.deep_enough(k)
        depths = await self._reachable(method.candidates)
        if depths is not method.candidates:
            method = dataclasses.replace(method, candidates=depths)
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
            # A candidate that is deleted before it is scored is not a hit and not an error: search again
            # without it.
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
        """Run a checked search; stores override it to limit concurrent searches, or to use a thread."""
        return await search(self, self.schema.components, query, method, k, filter, exact)

    # -- what an adapter implements

    @abc.abstractmethod
    async def _create(self, schema: Schema) -> None:
        """Create the collection; raise AlreadyExists if it exists."""

    @abc.abstractmethod
    async def _open(self) -> Schema:
        """Open the collection and read its schema; raise CollectionNotFound if it does not exist."""

    @abc.abstractmethod
    async def _drop(self) -> None:
        """Remove the collection if it exists."""

    @abc.abstractmethod
    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """Store checked documents; at least one, with distinct ids."""

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

    async def _present(self, ids: Sequence[str]) -> set[str]:
        """B29, at least one id, all distinct; a store that need not read the documents overrides it."""
        found = await self._fetch(ids)
        return {id for id, document in zip(ids, found, strict=True) if document is not None}

    async def _score_many(
        self, component: Component, queries: M3Embeddings, ids: Sequence[Sequence[str]]
    ) -> list[Float32]:
        """``score_many``; a store that computes scores itself overrides it to share work among queries."""
        calls = [partial(self.score, component, *each) for each in zip(queries, ids, strict=True)]
        return await together(calls, at_once=QUERIES_AT_ONCE)

    # -- what an adapter implements for a search; see ``search.Answers``

    settles_ties: bool = False
    """Whether a list that is cut among equal scores keeps the lowest of their ids."""

    @abc.abstractmethod
    async def lists(self, ask: Lists) -> Candidates:
        """B16–B19. Return the union of lists, with the exact scores that they are ordered by."""

    @abc.abstractmethod
    async def complete(
        self,
        query: M3Embeddings,
        found: Candidates,
        components: Sequence[Component],
        *,
        documents: bool = False,
    ) -> None:
        """B20–B23. Add all missing scores of these components, and all documents if that is not slower."""

    def key(self, id: str) -> Key:
        """Return the key that this store uses for a document."""
        return id

    async def ids(self, found: Candidates) -> list[str]:
        """Return the ids of the documents, in the order of the rows; override it together with ``key``."""
        return [str(key) for key in found.keys]

    def _require(self, capability: Capability, *, asked: bool) -> None:
        """Raise Unsupported if the capability is requested and not supported."""
        if asked:
            require(f'{self.name} collection "{self.collection}"', self.capabilities, [capability])

    def _check_open(self) -> None:
        _ = self.schema

    def _checked(self, ids: Sequence[str]) -> list[str]:
        self._check_open()
        for i, id in enumerate(ids):
            check_id(id, f"ids[{i}]")
        return list(ids)
