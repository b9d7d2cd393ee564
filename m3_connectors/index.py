"""AsyncIndex: texts in, ranked hits out. It joins an encoder, a backend and a method."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.to_thread

from m3_connectors.adding import Adding, AddReport, OnCut
from m3_connectors.backends.base import Backend, Schema, ScoredId
from m3_connectors.backends.together import together
from m3_connectors.documents import Document, Hit
from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings, ModelInfo
from m3_connectors.errors import DocumentNotFound, InvalidInput
from m3_connectors.explanation import Explanation, explain
from m3_connectors.filters import parse_filter
from m3_connectors.methods import METHODS, Method, MethodName, Weights
from m3_connectors.reranking import Page, Reranker, check_rerank_depth
from m3_connectors.reranking import rerank as reranked
from m3_connectors.scoring import as_float16

Query = str | M3Embeddings
"""A text, or its embeddings (a batch of one)."""

RawFilter = Mapping[str, Any]
"""A filter as ``m3_connectors.filters`` reads it, such as ``{"lang": "en"}``."""

Progress = Callable[[int], None]
"""Called with the number of documents that are safely stored so far."""

_CONCURRENT_SEARCHES = 16

_log = logging.getLogger(__name__)


class Encoder(Protocol):
    """What an index needs of an encoder; ``M3Encoder`` is one."""

    @property
    def info(self) -> ModelInfo:
        """Who the model is."""

    @property
    def recommended_weights(self) -> Mapping[str, tuple[float, float, float]]:
        """Weights by method name that the model ships with; may be empty."""

    def encode(self, texts: Sequence[str], *, components: Sequence[Component] = COMPONENTS) -> M3Embeddings:
        """One row for each text."""

    def token_strings(self, text: str) -> list[str]:
        """The token of each multi-vector row of the text."""

    def id_to_token(self, id: int) -> str | None:
        """The token of an id."""


@dataclasses.dataclass(frozen=True)
class Description:
    """What a collection says about itself.

    Attributes:
        backend: Name of the store.
        collection: Name of the collection.
        schema: Model, components and storage, as recorded at creation.
        count: Documents stored.
    """

    backend: str
    collection: str
    schema: Schema
    count: int


class AsyncIndex:
    """Texts in, ranked hits out, on an event loop; made by ``aconnect``.

    Use it as an async context manager, or call ``close``. Encoding runs in a worker thread and does not
    block the loop.
    """

    def __init__(
        self, backend: Backend, encoder: Encoder | None, weights: Mapping[str, Weights] | None = None
    ) -> None:
        self._backend = backend
        self._encoder = encoder
        self._weights = weights or {}

    @property
    def schema(self) -> Schema:
        """What the collection records about itself."""
        return self._backend.schema

    @property
    def methods(self) -> Mapping[str, Method]:
        """The five methods by name, under the weights that ``search`` gives them when it takes a name.

        These are the weights given to ``connect``, else those that the model ships with, else the paper's for MIRACL.
        """
        recommended = self._encoder.recommended_weights if self._encoder else {}
        chosen: dict[str, Iterable[float]] = {**recommended, **self._weights}
        return {
            name: method.weighted(*chosen[name]) if name in chosen else method
            for name, method in METHODS.items()
        }

    async def add(
        self,
        documents: Iterable[Document],
        *,
        embeddings: M3Embeddings | None = None,
        progress: Progress | None = None,
        on_cut: OnCut | None = None,
    ) -> AddReport:
        """Store documents, replacing those whose ids are there.

        A list is checked as a whole before anything is written. Any other iterable is read, checked, encoded and
        written in batches, so its texts and vectors may take more than memory (its ids are kept, to count each once):
        an error leaves the batches before it stored. Repeat the call to go on: it changes nothing that is already
        right. The iterable is read on the event loop (by ``Index``, in the calling thread); one that waits long for
        its documents is better read in parts.

        Args:
            documents: The documents.
            embeddings: Their embeddings, row i for document i; encoded here by default.
            progress: Called after each batch with the number of documents stored so far.
            on_cut: Called with each document whose text was longer than the encoder's maximum, once it is stored: only
                the beginning of such a text is encoded. The report names the first 1,000 of them.

        Returns:
            How many were stored, which ids came twice, and which documents were cut.

        Raises:
            InvalidInput: A document or a vector is not fit to be stored, or there is no encoder.
            ModelMismatch: The embeddings are another model's than the collection's.
            BackendError: The store failed.
        """
        adding = self._adding()
        for batch, vectors in adding.batches(documents, embeddings):
            adding.tell(await adding.store(batch, vectors), on_cut, progress)
        return adding.report

    async def search(
        self,
        query: Query,
        *,
        method: Method | MethodName = "all",
        k: int = 10,
        filter: RawFilter | None = None,
        exact: bool = False,
        offset: int = 0,
        min_score: float | None = None,
        rerank: Reranker | None = None,
        rerank_depth: int = 50,
    ) -> list[Hit]:
        """The k best documents for a query.

        Args:
            query: A text, or embeddings of one text. A text that is longer than the model reads is cut: the log says
                how far, each time.
            method: A name (under the weights that ``methods`` shows) or a Method such as
                ``ALL.weighted(0.15, 0.5, 0.35)`` (exactly these weights). For a name that is a variable, give
                ``index.methods[name]``.
            k: Most hits, >= 1.
            filter: Only documents whose metadata pass, such as ``{"year": {"$gte": 2020}}``.
            exact: No approximate list in the store.
            offset: Hits to skip first, >= 0, so that ``offset=20, k=10`` is the third page of ten.
            min_score: Leave out hits whose score is lower.
            rerank: A re-ranker, such as ``CrossEncoder("BAAI/bge-reranker-v2-m3")``, that orders the best hits anew
                by its own scores. The query must be a text.
            rerank_depth: How many of the best hits are re-ranked, >= 1; never fewer than ``offset + k``.

        Returns:
            Best first, equal scores by id; each with the scores of all components stored.

        Raises:
            InvalidInput: A bad query, method, k, offset, min_score or filter, or the re-ranker returned something
                other than one finite score for each document.
            ModelMismatch: The query's embeddings are another model's.
            BackendError: The store failed.
        """
        (hits,) = await self.search_many(
            [query],
            method=method,
            k=k,
            filter=filter,
            exact=exact,
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
        offset: int = 0,
        min_score: float | None = None,
        rerank: Reranker | None = None,
        rerank_depth: int = 50,
    ) -> list[list[Hit]]:
        """The k best documents for each of many queries, which are encoded together and searched at the same time.

        Args:
            queries: Texts, or embeddings of one text each.
            method: As in ``search``; so are k, filter and exact.
            k: Most hits of each query, >= 1.
            filter: Only documents whose metadata pass.
            exact: No approximate list in the store.
            offset: Hits to skip first, as in ``search``; so are min_score, rerank and rerank_depth.
            min_score: Leave out hits whose score is lower.
            rerank: A re-ranker of the best hits.
            rerank_depth: How many of the best hits are re-ranked.

        Returns:
            The hits of each query, in the order of the queries.

        Raises:
            InvalidInput: A bad query (says which), method, k, offset, min_score or filter, or a bad re-ranker.
            ModelMismatch: The embeddings of a query are another model's.
            BackendError: The store failed.
        """
        if isinstance(queries, str | M3Embeddings) or not isinstance(queries, Iterable):
            raise InvalidInput(
                f"queries is {type(queries).__name__}: give a list, or use search for one query."
            )
        chosen, page = self._method(method), Page(k, offset, min_score)
        check_rerank_depth(rerank_depth)
        parsed, asked = parse_filter(filter), list(queries)
        texts = _texts_to_rerank(asked) if rerank else []
        depth = max(page.depth, rerank_depth) if rerank else page.depth
        vectors = await self._query_vectors(asked)
        searches = [
            partial(self._backend.search, query, chosen, depth, filter=parsed, exact=exact)
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
        """Why a document scores as it does for a query, whether or not it would be found.

        Args:
            query: A text.
            id: The document's id.
            method: Whose weights are shown, as in ``search``.

        Returns:
            The scores, the tokens that both texts share, and the nearest document token of each query token.

        Raises:
            DocumentNotFound: No such document.
            InvalidInput: No encoder, or a bad query or method.
            BackendError: The store failed.
        """
        if self._encoder is None:
            raise InvalidInput("explain needs the tokens of the texts: connect(..., encoder=...).")
        chosen = self._method(method)
        (document,) = await self._backend.fetch([id])
        if document is None:
            where = f'no document {id!r} in collection "{self._backend.collection}".'
            raise DocumentNotFound(where, backend=self._backend.name, operation="explain")
        stored = await self._backend.vectors([id])
        (vectors,) = await self._query_vectors([query])
        if self.schema.storage.multivector_dtype == "float16":
            vectors = as_float16(vectors)  # as the store scores it (B21)
        pools = self.schema.storage.pools
        return explain(self._encoder, chosen, query, vectors, document, stored, pools)

    async def delete(self, ids: Sequence[str] | None = None, *, filter: RawFilter | None = None) -> int:
        """Remove documents by id or by filter, one of the two.

        Args:
            ids: Ids of the documents; those that are not there are passed over.
            filter: Documents whose metadata pass, such as ``{"year": {"$lt": 2020}}``.

        Returns:
            How many documents were there and are removed.

        Raises:
            InvalidInput: Neither or both are given, or the filter is empty (``drop`` removes everything).
            BackendError: The store failed.
        """
        parsed = parse_filter(filter)
        if (ids is None) == (parsed is None):
            raise InvalidInput("delete takes ids or a filter that is not empty, one of the two.")
        if parsed is not None:
            return await self._backend.delete_where(parsed)
        return await self._backend.delete(_ids(ids or ()))

    async def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Documents by id.

        Args:
            ids: Ids, each any number of times.

        Returns:
            The documents in the order of their ids; None where there is none.

        Raises:
            InvalidInput: ``ids`` is no list of strings.
            BackendError: The store failed.
        """
        return await self._backend.fetch(_ids(ids))

    async def count(self, filter: RawFilter | None = None) -> int:
        """How many documents pass a filter.

        Args:
            filter: As in ``search``; without one, all documents are counted.

        Raises:
            InvalidInput: A bad filter.
            BackendError: The store failed.
        """
        return await self._backend.count(parse_filter(filter))

    async def describe(self) -> Description:
        """What the collection says about itself: its store, name, model, components, storage and number of documents.

        Raises:
            BackendError: The store failed.
        """
        backend = self._backend
        return Description(backend.name, backend.collection, backend.schema, await backend.count())

    async def optimize(self) -> None:
        """Let the store build what makes searches faster, such as a graph, and wait for it; nothing if there is none.

        Raises:
            BackendError: The store failed.
        """
        await self._backend.optimize()

    async def drop(self) -> None:
        """Remove the collection and all it holds, and close the index.

        Raises:
            BackendError: The store failed.
        """
        await self._backend.drop()
        await self.close()

    async def close(self) -> None:
        """Give back connections and locks (and of ``Index``, its thread); safe to call twice."""
        with anyio.CancelScope(shield=True):
            await self._backend.close()

    async def __aenter__(self) -> AsyncIndex:
        return self

    if not TYPE_CHECKING:  # a type checker finds this mistake by itself

        def __enter__(self) -> None:
            raise InvalidInput(
                "an AsyncIndex is no context manager for a plain with.\n"
                "  Write async with aconnect(…) as index; without an event loop, use connect."
            )

        def __exit__(self, *_: object) -> None:
            """Never comes to be called."""

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
            raise InvalidInput(f"unknown method {method!r}: use one of {', '.join(METHODS)}.") from None

    async def _query_vectors(self, queries: Sequence[Query]) -> list[M3Embeddings]:
        for i, query in enumerate(queries):
            if not isinstance(query, str | M3Embeddings):
                raise InvalidInput(
                    f"queries[{i}] is {type(query).__name__}: give a text or its M3Embeddings."
                )
        texts = [query for query in queries if isinstance(query, str)]
        encoded = iter(await self._encode(texts, self.schema.components)) if texts else iter(())
        vectors = [next(encoded) if isinstance(query, str) else query for query in queries]
        for i, query in enumerate(vectors):
            if query.truncated_count:
                _log.warning("%s", _cut_query(queries, i, query))
        return vectors

    def _adding(self) -> Adding:
        return Adding(self._backend, lambda texts: self._encode(texts, self.schema.components))

    async def _encode(self, texts: list[str], components: Sequence[Component]) -> M3Embeddings:
        if self._encoder is None:
            raise InvalidInput("this index has no encoder: connect(..., encoder=...), or give M3Embeddings.")
        encode = self._encoder.encode
        return await anyio.to_thread.run_sync(lambda: encode(texts, components=components))

    async def _hits(self, answers: list[list[ScoredId]]) -> list[list[Hit]]:
        # What came with the ranking of one query is not asked for again, nor for another.
        documents: dict[str, Document | None] = {}
        for answer in answers:
            for found in answer:
                documents[found.id] = found.document or documents.get(found.id)
        ids = [id for id, document in documents.items() if document is None]
        if ids:
            documents |= zip(ids, await self._backend.fetch(ids), strict=True)
        # A document that was deleted between ranking and fetching is no hit any more.
        return [
            [
                Hit(document, found.score, found.scores)
                for found in answer
                if (document := documents[found.id]) is not None
            ]
            for answer in answers
        ]


def _cut_query(queries: Sequence[Query], i: int, vectors: M3Embeddings) -> str:
    which = "the query" if len(queries) == 1 else f"queries[{i}]"
    if vectors.token_counts is None or vectors.kept_token_counts is None:
        return f"{which} is longer than the model reads: its end is not searched for."
    whole, kept = int(vectors.token_counts[0]), int(vectors.kept_token_counts[0])
    return (
        f"{which} has {whole:,} tokens, and the model reads {kept:,}: the last {whole - kept:,} "
        f"({(whole - kept) / whole:.0%}) are not searched for."
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
        raise InvalidInput(f"ids is {ids!r}: give a list of strings.")
    return list(ids)
