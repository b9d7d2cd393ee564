"""AsyncIndex stores and searches documents: it combines an encoder, a backend and a method."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio
import anyio.to_thread

from m3_connectors.adding import AddReport, AddTally, batches
from m3_connectors.backends.base import Backend, Schema, ScoredId
from m3_connectors.backends.checks import check_components, check_model
from m3_connectors.backends.scanning import document_pages, flat, id_pages, parts
from m3_connectors.backends.together import together
from m3_connectors.backup import ExportReport, ImportReport, export, restore
from m3_connectors.completing import ComponentWriter
from m3_connectors.documents import Document, Hit
from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings, ModelInfo
from m3_connectors.errors import DocumentNotFound, InvalidInput
from m3_connectors.explanation import Explanation, explain
from m3_connectors.filters import parse_filter
from m3_connectors.grouping import GroupBy, check_group_by
from m3_connectors.methods import METHODS, Method, MethodName, Weights
from m3_connectors.reranking import Page, Reranker, check_rerank_depth
from m3_connectors.reranking import rerank as reranked
from m3_connectors.writing import DocumentWriter, Encode, OnCut

Query = str | M3Embeddings
"""A text, or its embeddings (a batch of one)."""

RawFilter = Mapping[str, Any]
"""A filter as ``m3_connectors.filters`` reads it, such as ``{"lang": "en"}``."""

Progress = Callable[[int], None]
"""Called after each batch with the number of documents stored so far."""

W = TypeVar("W", bound=DocumentWriter)

_CONCURRENT_SEARCHES = 16

_log = logging.getLogger(__name__)


class Encoder(Protocol):
    """The methods of an encoder that an index uses; ``M3Encoder`` has them."""

    @property
    def info(self) -> ModelInfo:
        """The identity of the model."""

    @property
    def recommended_weights(self) -> Mapping[str, tuple[float, float, float]]:
        """The weights by method name that are distributed with the model; may be empty."""

    def encode(self, texts: Sequence[str], *, components: Sequence[Component] = COMPONENTS) -> M3Embeddings:
        """Return one row for each text."""

    def token_strings(self, text: str) -> list[str]:
        """Return the token of each multi-vector row of the text."""

    def id_to_token(self, id: int) -> str | None:
        """Return the token of an id, or None if there is no such id."""


@dataclasses.dataclass(frozen=True)
class Description:
    """The properties of a collection.

    Attributes:
        backend: The name of the store.
        collection: The name of the collection.
        schema: The model, components and storage that were recorded when it was created.
        count: The number of documents stored.
    """

    backend: str
    collection: str
    schema: Schema
    count: int


class AsyncIndex:
    """An open collection: add documents and search them, on an event loop. Created by ``aconnect``.

    Use it as an async context manager, or call ``close``. Encoding runs in a worker thread, so it does not
    block the event loop.
    """

    def __init__(
        self, backend: Backend, encoder: Encoder | None, weights: Mapping[str, Weights] | None = None
    ) -> None:
        self._backend = backend
        self._encoder = encoder
        self._weights = weights or {}

    def __repr__(self) -> str:
        return described(self, self._backend)

    @property
    def schema(self) -> Schema:
        """What the collection records about itself."""
        return self._backend.schema

    @property
    def methods(self) -> Mapping[str, Method]:
        """The five methods by name, with the weights that ``search`` uses when it is given a name.

        These are the weights passed to ``connect``, otherwise those distributed with the model, otherwise the
        paper's weights for MIRACL.
        """
        recommended = self._encoder.recommended_weights if self._encoder else {}
        chosen: dict[str, Iterable[float]] = {**recommended, **self._weights}
        return {
            name: method.weighted(*chosen[name]) if name in chosen else method
            for name, method in METHODS.items()
        }

    def use_encoder(self, encoder: Encoder) -> None:
        """Compute the embeddings of texts with this encoder from now on.

        Raises:
            ModelMismatch: The collection was written by a different model than the encoder's.
        """
        check_model(self.schema.model, self._backend.collection, encoder.info, what="this encoder is")
        self._encoder = encoder

    async def add(
        self,
        documents: Iterable[Document],
        *,
        embeddings: M3Embeddings | None = None,
        progress: Progress | None = None,
        on_cut: OnCut | None = None,
    ) -> AddReport:
        """Store documents, replacing existing documents with the same ids.

        A list is checked completely before anything is written. Any other iterable is read, checked, encoded
        and written in batches, so its texts and vectors may exceed memory (only the ids are kept, to count
        each once). After an error, the batches before it remain stored. Repeat the call to continue: it does
        not change what is already correct. ``AsyncIndex`` reads the iterable on the event loop, ``Index`` in
        the calling thread. If the iterable waits long for its documents, read it in parts.

        Args:
            documents: The documents to store.
            embeddings: Their embeddings, row i for document i; by default, the encoder computes them.
            progress: Called after each batch with the number of documents stored so far.
            on_cut: Called with each document whose text was longer than the encoder's maximum, after it is
                stored: only the beginning of such a text is encoded. The report lists the first 1,000.

        Returns:
            A report: how many documents were stored, which ids were repeated, which texts were truncated.

        Raises:
            InvalidInput: A document or a vector cannot be stored, or there is no encoder.
            ModelMismatch: The embeddings come from a different model than the collection's.
            BackendError: The store failed or refused the operation.
        """
        adding, tally = begin_add(self, DocumentWriter), AddTally(on_cut, progress)
        await adding.run(batches(self._backend, documents, embeddings), tally.tell)
        return tally.report(adding.encoding_seconds)

    async def add_component(
        self, component: Component, *, progress: Progress | None = None, on_cut: OnCut | None = None
    ) -> AddReport:
        """Add a component to a collection that was created without it, from the stored texts.

        The stored texts are encoded again, for this component only (and for compact or pooled multi-vectors, which
        would lose more if they were stored a second time). Until all documents have it, searches that need it are
        refused, all others work as before, and ``add`` stores it with every document. After an error or an
        interruption, the same call goes on with the documents that lack it. If all have it, nothing is done.

        Args:
            component: ``"multivector"`` or ``"sparse"``.
            progress: Called after each batch with the number of documents completed by this call.
            on_cut: As in ``add``.

        Returns:
            A report: to how many documents this call added the component, and which texts were truncated.

        Raises:
            InvalidInput: There is no encoder, no such component, or another component is being added.
            Unsupported: The store cannot add a component to a collection; nothing was changed.
            BackendError: The store failed or refused the operation.
        """
        completing, tally = begin_add_component(self, component), AddTally(on_cut, progress)
        while (stored := await completing.step()) is not None:
            tally.tell(stored)
        return completing.report(tally)

    async def search(
        self,
        query: Query,
        *,
        method: Method | MethodName = "all",
        k: int = 10,
        filter: RawFilter | None = None,
        exact: bool = False,
        group_by: GroupBy | None = None,
        offset: int = 0,
        min_score: float | None = None,
        rerank: Reranker | None = None,
        rerank_depth: int = 50,
    ) -> list[Hit]:
        """Return the k best documents for a query.

        Args:
            query: A text, or embeddings of one text. A text that is longer than the model's maximum is
                truncated, and a warning is logged each time.
            method: A name (with the weights that ``methods`` shows) or a Method such as
                ``ALL.weighted(0.15, 0.5, 0.35)`` (exactly these weights). For a name in a variable, use
                ``index.methods[name]``.
            k: The maximum number of hits, >= 1.
            filter: Search only documents whose metadata match, such as ``{"year": {"$gte": 2020}}``.
            exact: Whether the store must search exactly, without its approximate index.
            group_by: ``"parent"`` returns the k best parents instead of the k best chunks: of the chunks of one
                document, only the best is a hit, whose ``document.passage`` says where it is. A document that was
                not cut is its own parent. Chunks that are not among the method's candidates do not count, as
                without groups; if the candidates belong to fewer than k parents, those of others are added.
            offset: The number of hits to skip first, >= 0: ``offset=20, k=10`` is the third page of ten.
            min_score: Omit hits with a lower score.
            rerank: A re-ranker, such as ``CrossEncoder("BAAI/bge-reranker-v2-m3")``, that orders the best hits
                (with ``group_by``, the best chunk of each parent) again by its own scores. The query must be a text.
            rerank_depth: How many of the best hits are re-ranked, >= 1; never fewer than ``offset + k``.

        Returns:
            The hits, best first, equal scores by id; each has the scores of all components stored.

        Raises:
            InvalidInput: The query, method, k, group_by, offset, min_score or filter is not valid, or the re-ranker
                did not return one finite score for each document.
            ModelMismatch: The embeddings of the query come from a different model.
            BackendError: The store failed or refused the operation.
        """
        (hits,) = await self.search_many(
            [query],
            method=method,
            k=k,
            filter=filter,
            exact=exact,
            group_by=group_by,
            offset=offset,
            min_score=min_score,
            rerank=rerank,
            rerank_depth=rerank_depth,
        )
        return hits

    async def search_many(
        self,
        queries: Iterable[Query],
        *,
        method: Method | MethodName = "all",
        k: int = 10,
        filter: RawFilter | None = None,
        exact: bool = False,
        group_by: GroupBy | None = None,
        offset: int = 0,
        min_score: float | None = None,
        rerank: Reranker | None = None,
        rerank_depth: int = 50,
    ) -> list[list[Hit]]:
        """Return the k best documents for each of many queries, encoded together and searched concurrently.

        Args:
            queries: Texts, or embeddings of one text each.
            method: As in ``search``.
            k: The maximum number of hits of each query, >= 1.
            filter: As in ``search``.
            exact: As in ``search``.
            group_by: As in ``search``.
            offset: As in ``search``.
            min_score: As in ``search``.
            rerank: As in ``search``; every query must be a text.
            rerank_depth: As in ``search``.

        Returns:
            The hits of each query, in the order of the queries.

        Raises:
            InvalidInput: A query (the message says which), the method, k, group_by, offset, min_score or the filter
                is not valid, or the re-ranker did not return one finite score for each document.
            ModelMismatch: The embeddings of a query come from a different model.
            BackendError: The store failed or refused the operation.
        """
        if isinstance(queries, str | M3Embeddings) or not isinstance(queries, Iterable):
            raise InvalidInput(
                f"queries is {type(queries).__name__}; it must be a list of queries.\n"
                "  Use search for one query."
            )
        chosen, page = self._method(method), Page(k, offset, min_score)
        # Before anything is encoded.
        check_components(self.schema, self._backend.collection, chosen.components, f'method "{chosen.name}"')
        check_rerank_depth(rerank_depth)
        check_group_by(group_by)
        parsed, asked = parse_filter(filter), list(queries)
        texts = _texts_to_rerank(asked) if rerank else []
        depth = max(page.depth, rerank_depth) if rerank else page.depth
        vectors = await self._query_vectors(asked)
        searches = [
            partial(self._backend.search, query, chosen, depth, filter=parsed, exact=exact, group_by=group_by)
            for query in vectors
        ]
        answers = await together(searches, at_once=_CONCURRENT_SEARCHES)
        ranked = await self._hits(answers)
        if rerank:
            # One after another: a model takes all cores for each.
            for i, text in enumerate(texts):
                ranked[i] = await anyio.to_thread.run_sync(reranked, rerank, text, ranked[i])
        return [page.cut(hits) for hits in ranked]

    async def explain(self, query: str, id: str, *, method: Method | MethodName = "all") -> Explanation:
        """Explain the score of a document for a query, whether or not a search would find it.

        Args:
            query: A text.
            id: The document's id.
            method: The method whose weights are used, as in ``search``.

        Returns:
            The scores, the tokens that both texts share, and for each query token the most similar document
            token.

        Raises:
            DocumentNotFound: There is no document with this id.
            InvalidInput: There is no encoder, or the query or method is not valid.
            BackendError: The store failed or refused the operation.
        """
        if self._encoder is None:
            raise InvalidInput(
                "explain needs an encoder, and this index has none.\n  Use connect(..., encoder=...)."
            )
        chosen = self._method(method)
        check_components(self.schema, self._backend.collection, chosen.components, f'method "{chosen.name}"')
        (document,) = await self._backend.fetch([id])
        if document is None:
            message = (
                f'there is no document {id!r} in collection "{self._backend.collection}".\n'
                "  Check the id; search returns the ids of the documents."
            )
            raise DocumentNotFound(message, backend=self._backend.name, operation="explain")
        stored = await self._backend.vectors([id])
        (vectors,) = await self._query_vectors([query])
        storage = self.schema.storage
        vectors = self.schema.precision.rounded_query(vectors)  # as the store does (B21)
        return explain(self._encoder, chosen, query, vectors, document, stored, storage.pools)

    async def delete(self, ids: Sequence[str] | None = None, *, filter: RawFilter | None = None) -> int:
        """Remove documents, either by id or by filter.

        Args:
            ids: The ids of the documents to remove; ids that do not exist are ignored.
            filter: Remove the documents whose metadata match, such as ``{"year": {"$lt": 2020}}``.

        Returns:
            The number of documents that were removed.

        Raises:
            InvalidInput: Neither or both are given, or the filter is empty (``drop`` removes everything).
            BackendError: The store failed or refused the operation.
        """
        parsed = parse_filter(filter)
        if (ids is None) == (parsed is None):
            given = "neither" if ids is None else "both"
            raise InvalidInput(
                f"delete needs either ids or a non-empty filter, but got {given}.\n"
                "  Use drop to remove everything."
            )
        if parsed is not None:
            return await self._backend.delete_where(parsed)
        return await self._backend.delete(_ids(ids or ()))

    async def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Return documents by id.

        Args:
            ids: The ids, in any order; an id may be repeated.

        Returns:
            The document of each id, in the order of the ids; None if it does not exist.

        Raises:
            InvalidInput: ``ids`` is not a list of strings.
            BackendError: The store failed or refused the operation.
        """
        return await self._backend.fetch(_ids(ids))

    async def count(self, filter: RawFilter | None = None) -> int:
        """Return the number of documents that match a filter.

        Args:
            filter: As in ``search``; without a filter, all documents are counted.

        Raises:
            InvalidInput: The filter is not valid.
            BackendError: The store failed or refused the operation.
        """
        return await self._backend.count(parse_filter(filter))

    def scan_ids(self, filter: RawFilter | None = None) -> AsyncIterator[str]:
        """Yield the id of every document that matches a filter, once, in any order.

        The store is read page by page, so any number of documents takes the same memory. A document that is stored
        before the scan begins, and neither replaced nor deleted until it ends, is yielded once; one that is written
        meanwhile is yielded once or not at all.

        Args:
            filter: As in ``search``; without a filter, all documents are scanned.

        Raises:
            InvalidInput: The filter is not valid.
            BackendError: The store failed or refused the operation.
        """
        return flat(id_pages(self._backend, parse_filter(filter)))

    def scan(self, filter: RawFilter | None = None) -> AsyncIterator[Document]:
        """Yield every document that matches a filter, once, in any order.

        As ``scan_ids``, with texts and metadata. A document that is replaced during the scan is yielded as it is at
        one moment of it.

        Args:
            filter: As in ``search``; without a filter, all documents are scanned.

        Raises:
            InvalidInput: The filter is not valid.
            BackendError: The store failed or refused the operation.
        """
        return flat(document_pages(self._backend, parse_filter(filter)))

    def scan_embeddings(
        self, filter: RawFilter | None = None
    ) -> AsyncIterator[tuple[list[Document], M3Embeddings]]:
        """Yield every document that matches a filter with its stored vectors, once, in parts of bounded size.

        As ``scan``. A document always comes with the vectors of the same version of it. Dense and sparse vectors are
        float32; multi-vectors are as the storage precision reads them, and pooled if the storage pools them.

        Args:
            filter: As in ``search``; without a filter, all documents are scanned.

        Returns:
            Documents, and their embeddings in the same order: at most 32 MiB of vectors, or a single document.

        Raises:
            InvalidInput: The filter is not valid.
            Busy: Other clients replace the same documents again and again while they are read.
            BackendError: The store failed or refused the operation.
        """
        return parts(self._backend, parse_filter(filter))

    async def describe(self) -> Description:
        """Return the collection's store, name, model, components, storage and number of documents.

        Raises:
            BackendError: The store failed or refused the operation.
        """
        backend = self._backend
        return Description(backend.name, backend.collection, backend.schema, await backend.count())

    async def optimize(self) -> None:
        """Make the store build what speeds up searches, such as a graph, and wait for it; may do nothing.

        Raises:
            BackendError: The store failed or refused the operation.
        """
        await self._backend.optimize()

    async def export(
        self, folder: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> ExportReport:
        """Write all documents with their vectors to a folder of Parquet files: a backup, or a copy for another store.

        The folder has the vectors as the collection stores them; ``import_`` puts them into any store, without the
        model. An earlier export in the folder is replaced when this one is complete. Needs pyarrow (the extra
        ``parquet``).

        Args:
            folder: The folder, which is created. It must be empty, or hold an export of the same collection.
            progress: Called with the number of documents written so far, on the event loop.

        Raises:
            InvalidInput: The folder has other files, or embeddings of another model or storage.
            MissingDependency: pyarrow is not installed.
            BackendError: The store failed or refused the operation.
        """
        return await export(self._backend, self.scan_embeddings(), folder, progress)

    async def import_(
        self, folder: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> ImportReport:
        """Store the documents of a folder that ``export`` or ``m3 ingest --save-embeddings`` wrote, without a model.

        With the same precision, the collection gets the same vectors, bit for bit, and every search the same result.
        Documents with the same ids are replaced. Repeat the call to continue after an error.

        Args:
            folder: The folder.
            progress: Called with the number of documents stored so far, on the event loop.

        Returns:
            A report: how many documents were stored, and what is different from what was saved, such as the precision.

        Raises:
            InvalidInput: A file is missing, damaged or of another version, the folder is incomplete, or it lacks a
                component that the collection stores.
            ModelMismatch: The folder's embeddings come from a different model than the collection's.
            MissingDependency: pyarrow is not installed.
            BackendError: The store failed or refused the operation.
        """
        return await restore(self._backend, folder, progress)

    async def drop(self) -> None:
        """Delete the collection with all its documents, and close the index.

        Raises:
            BackendError: The store failed or refused the operation.
        """
        await self._backend.drop()
        await self.close()

    async def close(self) -> None:
        """Release connections and locks (and the thread of an ``Index``); safe to call more than once."""
        with anyio.CancelScope(shield=True):
            await self._backend.close()

    async def __aenter__(self) -> AsyncIndex:
        return self

    if not TYPE_CHECKING:  # without these methods, a type checker reports the mistake

        def __enter__(self) -> None:
            raise InvalidInput(
                "an AsyncIndex cannot be used in a plain with statement.\n"
                "  Write async with aconnect(…) as index, or use connect if there is no event loop."
            )

        def __exit__(self, *_: object) -> None:
            """Never called, because ``__enter__`` raises."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _method(self, method: Method | MethodName) -> Method:
        if isinstance(method, Method):
            return method
        try:
            return self.methods[method]
        except (KeyError, TypeError):
            raise InvalidInput(f"unknown method {method!r}.\n  Use one of {', '.join(METHODS)}.") from None

    async def _query_vectors(self, queries: Sequence[Query]) -> list[M3Embeddings]:
        for i, query in enumerate(queries):
            if not isinstance(query, str | M3Embeddings):
                raise InvalidInput(
                    f"queries[{i}] is {type(query).__name__}; it must be a string or M3Embeddings.\n"
                    "  Pass the text of the query, or what M3Encoder.encode returns for it."
                )
        texts = [query for query in queries if isinstance(query, str)]
        encoded = iter(await self._encode(texts, self.schema.components)) if texts else iter(())
        vectors = [next(encoded) if isinstance(query, str) else query for query in queries]
        for i, query in enumerate(vectors):
            if query.truncated_count:
                _log.warning("%s", _cut_query(queries, i, query))
        return vectors

    async def _encode(self, texts: list[str], components: Sequence[Component]) -> M3Embeddings:
        encode = self._check_encoder().encode
        return await anyio.to_thread.run_sync(lambda: encode(texts, components=components))

    def _check_encoder(self) -> Encoder:
        if self._encoder is None:
            raise InvalidInput(
                "this index has no encoder.\n  Use connect(..., encoder=...), or pass M3Embeddings."
            )
        return self._encoder

    async def _hits(self, answers: list[list[ScoredId]]) -> list[list[Hit]]:
        # Documents that a search already returned, for this query or another, are not fetched again.
        documents: dict[str, Document | None] = {}
        for answer in answers:
            for found in answer:
                documents[found.id] = found.document or documents.get(found.id)
        ids = [id for id, document in documents.items() if document is None]
        if ids:
            documents |= zip(ids, await self._backend.fetch(ids), strict=True)
        # A document that was deleted between ranking and fetching is not a hit.
        return [
            [
                Hit(document, found.score, found.scores)
                for found in answer
                if (document := documents[found.id]) is not None
            ]
            for answer in answers
        ]


def described(index: object, backend: Backend) -> str:
    """Return the repr of an index: its store, collection, components and model."""
    what = f'{type(index).__name__} of {backend.name} collection "{backend.collection}"'
    schema = backend._schema
    if schema is None:
        return f"<{what}, closed>"
    adding = f" (adding {schema.adding})" if schema.adding else ""
    return f"<{what}: {', '.join(schema.components)}{adding}; {schema.model}>"


def begin_add(index: AsyncIndex, kind: Callable[[Backend, Encode], W]) -> W:
    """Return a writer into a collection, for callers that read the documents themselves."""
    return kind(index._backend, lambda texts: index._encode(texts, index.schema.written))


def begin_add_component(index: AsyncIndex, component: Component) -> ComponentWriter:
    """Return the writer of one ``add_component`` call, for callers that run its steps themselves."""
    return ComponentWriter(index._backend, component, index._check_encoder())


def encoder_in(index: AsyncIndex) -> Encoder | None:
    """Return the encoder of an index, if it has one."""
    return index._encoder


def _cut_query(queries: Sequence[Query], i: int, vectors: M3Embeddings) -> str:
    which = "the query" if len(queries) == 1 else f"queries[{i}]"
    if vectors.token_counts is None or vectors.kept_token_counts is None:
        return f"{which} is longer than the model's maximum: its end was ignored."
    whole, kept = int(vectors.token_counts[0]), int(vectors.kept_token_counts[0])
    return (
        f"{which} has {whole:,} tokens, but the model reads at most {kept:,}: the last {whole - kept:,} "
        f"({(whole - kept) / whole:.0%}) were ignored."
    )


def _texts_to_rerank(queries: Sequence[Query]) -> list[str]:
    for i, query in enumerate(queries):
        if not isinstance(query, str):
            raise InvalidInput(
                f"queries[{i}] is {type(query).__name__}; a re-ranker reads the query's text.\n"
                "  Give the query as a text, or search without rerank."
            )
    return [query for query in queries if isinstance(query, str)]


def _ids(ids: Sequence[str]) -> list[str]:
    if not isinstance(ids, Iterable) or isinstance(ids, str) or not all(isinstance(id, str) for id in ids):
        raise InvalidInput(f"ids is {ids!r}; it must be a list of strings.\n  Use [id] for one document.")
    return list(ids)
