"""Index: the calls of AsyncIndex, blocking, for code without an event loop."""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel
from anyio.from_thread import BlockingPortal

from m3_connectors.adding import AddReport, OnCut
from m3_connectors.backends.base import Schema, Storage
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.documents import Document, Hit
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import InvalidInput
from m3_connectors.explanation import Explanation
from m3_connectors.index import (
    AsyncIndex,
    Description,
    Encoder,
    Progress,
    Query,
    RawFilter,
)
from m3_connectors.listing import alist_collections
from m3_connectors.methods import Method, MethodName
from m3_connectors.opening import WeightsByMethod, aconnect
from m3_connectors.reranking import Reranker

T = TypeVar("T")


class _Loop:
    """An event loop in a daemon thread, so that an index that was never closed cannot hold up the interpreter's end."""

    def __init__(self) -> None:
        ready: Future[BlockingPortal] = Future()
        self._thread = threading.Thread(
            target=anyio.run, args=(self._serve, ready), name="m3-index", daemon=True
        )
        self._thread.start()
        self._portal = ready.result()

    @staticmethod
    async def _serve(ready: Future[BlockingPortal]) -> None:
        async with BlockingPortal() as portal:
            ready.set_result(portal)
            await portal.sleep_until_stopped()

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        if not self._thread.is_alive():
            raise InvalidInput("this index is closed: connect again.")
        over = threading.Event()
        abandoned = False
        scope: anyio.CancelScope | None = None

        async def watched() -> T:
            nonlocal scope
            try:
                with anyio.CancelScope() as scope:
                    if abandoned:
                        scope.cancel()
                    await anyio.lowlevel.checkpoint()
                    return await call()
            finally:
                over.set()
            raise InvalidInput("the call was interrupted.")  # nobody waits for it any more

        def abandon() -> bool:
            """In the loop's thread: from now on the call ends, or does not begin; whether it has begun."""
            nonlocal abandoned
            abandoned = True
            if scope is not None:
                scope.cancel()
            return scope is not None

        try:
            return self._portal.start_task_soon(watched).result()
        except KeyboardInterrupt:
            # The call must not go on behind the caller's back, even where Ctrl-C came while it was handed over: cancel
            # it and wait until it has let go. What runs in a thread (encoding a batch) runs to its end first; a second
            # Ctrl-C does not wait for it.
            if self._portal.call(abandon):
                over.wait()
            raise

    def stop(self) -> None:
        """End the loop; from its own thread (a collected index) without waiting for the end."""
        if self._thread.is_alive():
            self._portal.start_task_soon(self._portal.stop)
            if threading.current_thread() is not self._thread:
                self._thread.join()


class Index:
    """Texts in, ranked hits out; made by ``connect``.

    Use it as a context manager, or call ``close``. Every call is AsyncIndex's of the same name, run on the
    index's own event loop; several threads may call at the same time.
    """

    def __init__(self, index: AsyncIndex, loop: _Loop) -> None:
        self._index = index
        self._loop = loop
        _open.add(self)
        # An index that is forgotten without close() takes its thread with it.
        self._forgotten = weakref.finalize(self, loop.stop)
        self._forgotten.atexit = False

    @property
    def schema(self) -> Schema:
        """What the collection records about itself."""
        return self._index.schema

    @property
    def methods(self) -> Mapping[str, Method]:
        """The five methods by name, under the weights that ``search`` gives them when it takes a name.

        These are the weights given to ``connect``, else those that the model ships with, else the paper's for MIRACL.
        """
        return self._index.methods

    def add(
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
        adding = self._index._adding()
        # The caller's iterable is read in the caller's thread: it may hold a database cursor, or ask this index.
        for batch, vectors in adding.batches(documents, embeddings):
            adding.tell(self._loop.run(partial(adding.store, batch, vectors)), on_cut, progress)
        return adding.report

    def search(
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
        return self._loop.run(
            partial(
                self._index.search,
                query,
                method=method,
                k=k,
                filter=filter,
                exact=exact,
                offset=offset,
                min_score=min_score,
                rerank=rerank,
                rerank_depth=rerank_depth,
            )
        )

    def search_many(
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
        return self._loop.run(
            partial(
                self._index.search_many,
                queries,
                method=method,
                k=k,
                filter=filter,
                exact=exact,
                offset=offset,
                min_score=min_score,
                rerank=rerank,
                rerank_depth=rerank_depth,
            )
        )

    def explain(self, query: str, id: str, *, method: Method | MethodName = "all") -> Explanation:
        """Why a document scores as it does for a query, whether or not it would be found.

        Args:
            query: A text.
            id: The document's id.
            method: Whose weights are shown, as in ``search``.

        Returns:
            The scores, the tokens that both texts share, and the nearest document token of each query token.

        Raises:
            NotFound: No such document.
            InvalidInput: No encoder, or a bad query or method.
            BackendError: The store failed.
        """
        return self._loop.run(partial(self._index.explain, query, id, method=method))

    def delete(self, ids: Sequence[str] | None = None, *, filter: RawFilter | None = None) -> int:
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
        return self._loop.run(partial(self._index.delete, ids, filter=filter))

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Documents by id.

        Args:
            ids: Ids, each any number of times.

        Returns:
            The documents in the order of their ids; None where there is none.

        Raises:
            InvalidInput: ``ids`` is no list of strings.
            BackendError: The store failed.
        """
        return self._loop.run(partial(self._index.get, ids))

    def count(self, filter: RawFilter | None = None) -> int:
        """How many documents pass a filter.

        Args:
            filter: As in ``search``; without one, all documents are counted.

        Raises:
            InvalidInput: A bad filter.
            BackendError: The store failed.
        """
        return self._loop.run(partial(self._index.count, filter))

    def describe(self) -> Description:
        """What the collection says about itself: its store, name, model, components, storage and number of documents.

        Raises:
            BackendError: The store failed.
        """
        return self._loop.run(self._index.describe)

    def optimize(self) -> None:
        """Let the store build what makes searches faster, such as a graph, and wait for it; nothing if there is none.

        Raises:
            BackendError: The store failed.
        """
        self._loop.run(self._index.optimize)

    def drop(self) -> None:
        """Remove the collection and all it holds, and close the index.

        Raises:
            BackendError: The store failed.
        """
        self._loop.run(self._index.drop)
        self.close()

    def close(self) -> None:
        """Give back connections and locks (and of ``Index``, its thread); safe to call twice."""
        if self in _open:
            _open.discard(self)
            try:
                self._loop.run(self._index.close)
            finally:
                self._forgotten()

    def __enter__(self) -> Index:
        return self

    if not TYPE_CHECKING:  # a type checker finds this mistake by itself

        def __aenter__(self) -> None:
            raise InvalidInput(
                "connect gives an Index, whose calls block: it is no context manager for async with.\n"
                "  Write with connect(…) as index, or async with aconnect(…) as index."
            )

        def __aexit__(self, *_: object) -> None:
            """Never comes to be called."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(
    url: str,
    collection: str = DEFAULT_COLLECTION,
    *,
    encoder: Encoder | None = None,
    storage: Storage | None = None,
    weights: WeightsByMethod | None = None,
    create: bool = True,
    **options: Any,
) -> Index:
    """Open a collection, or make it: ``index = connect(…)`` or ``with connect(…) as index``.

    Args:
        url: Where it is: ``memory:``, ``qdrant:DIRECTORY``, ``milvus:FILE.db``, or a server's
            ``qdrant+http(s)://``, ``milvus+http(s)://`` or ``elasticsearch+http(s)://HOST:PORT``.
        collection: Its name there.
        encoder: Turns texts into vectors; without one, give embeddings to ``add`` and ``search``.
        storage: How a new collection keeps its vectors; an existing one must have been made so.
        weights: A weights file such as ``m3 tune`` writes, or weights by method name: what a method by name uses
            then, instead of the model's own.
        create: Make the collection if it is not there (needs an encoder, whose model it records). Of several that
            start at the same time one makes it, and the others open it.
        **options: The store's own, such as ``api_key``, ``ca_certs``, ``timeout_seconds`` or ``refresh``: all are in
            docs/servers.md. Unknown ones are refused.

    Raises:
        NotFound: No such collection, and ``create`` is false or there is no encoder.
        ModelMismatch: The collection was written by another model than the encoder's.
        InvalidInput: An unusable URL, collection name, weights file or option.
        Unsupported: An option that only other stores take.
        MissingDependency: The store's client is not installed.
        FileNotFoundError: There is no such weights file.
        BackendError: The store failed.
    """
    loop = _Loop()
    try:
        opened = partial(
            aconnect,
            url,
            collection,
            encoder=encoder,
            storage=storage,
            weights=weights,
            create=create,
            **options,
        )
        return Index(loop.run(opened), loop)
    except BaseException:
        loop.stop()
        raise


def list_collections(url: str, **options: Any) -> list[CollectionInfo]:
    """The collections of a store, by name: ``alist_collections``, blocking.

    Those of m3-connectors are opened one after the other to count their documents; one that cannot be opened (it is
    open in another process, say) is listed with its problem. Those of other programs are listed and never opened.

    Args:
        url: The store, as ``connect`` takes it. ``memory:`` holds nothing: it lives as long as its index.
        **options: The store's own, as ``connect`` takes them.

    Raises:
        NotFound: There is no such directory.
        InvalidInput: An unusable URL or option.
        Unsupported: An option that only other stores take, or a store that cannot list.
        MissingDependency: The store's client is not installed.
        BackendError: The store failed, or the credentials do not allow listing.
    """
    loop = _Loop()
    try:
        return loop.run(partial(alist_collections, url, **options))
    finally:
        loop.stop()


_open: weakref.WeakSet[Index] = weakref.WeakSet()
"""Indexes not yet closed, so that the interpreter's end closes them."""


@atexit.register
def _close_all() -> None:
    for index in list(_open):
        with contextlib.suppress(Exception):
            index.close()
