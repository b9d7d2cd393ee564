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
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
from anyio.from_thread import BlockingPortal

from m3_connectors.adding import AddReport, OnCut
from m3_connectors.backends.base import Schema, Storage
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
from m3_connectors.methods import Method
from m3_connectors.opening import WeightsByMethod, aconnect

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
        """See AsyncIndex.methods."""
        return self._index.methods

    def add(
        self,
        documents: Iterable[Document],
        *,
        embeddings: M3Embeddings | None = None,
        progress: Progress | None = None,
        on_cut: OnCut | None = None,
    ) -> AddReport:
        """See AsyncIndex.add."""
        adding = self._index._adding()
        # The caller's iterable is read in the caller's thread: it may hold a database cursor, or ask this index.
        for batch, vectors in adding.batches(documents, embeddings):
            adding.tell(self._loop.run(partial(adding.store, batch, vectors)), on_cut, progress)
        return adding.report

    def search(
        self,
        query: Query,
        *,
        method: Method | str = "all",
        k: int = 10,
        filter: RawFilter | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """See AsyncIndex.search."""
        call = partial(self._index.search, query, method=method, k=k, filter=filter, exact=exact)
        return self._loop.run(call)

    def search_many(
        self,
        queries: Iterable[Query],
        *,
        method: Method | str = "all",
        k: int = 10,
        filter: RawFilter | None = None,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """See AsyncIndex.search_many."""
        call = partial(self._index.search_many, queries, method=method, k=k, filter=filter, exact=exact)
        return self._loop.run(call)

    def explain(self, query: str, id: str, *, method: Method | str = "all") -> Explanation:
        """See AsyncIndex.explain."""
        return self._loop.run(partial(self._index.explain, query, id, method=method))

    def delete(self, ids: Sequence[str] | None = None, *, filter: RawFilter | None = None) -> int:
        """See AsyncIndex.delete."""
        return self._loop.run(partial(self._index.delete, ids, filter=filter))

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """See AsyncIndex.get."""
        return self._loop.run(partial(self._index.get, ids))

    def count(self, filter: RawFilter | None = None) -> int:
        """See AsyncIndex.count."""
        return self._loop.run(partial(self._index.count, filter))

    def describe(self) -> Description:
        """See AsyncIndex.describe."""
        return self._loop.run(self._index.describe)

    def optimize(self) -> None:
        """See AsyncIndex.optimize."""
        self._loop.run(self._index.optimize)

    def drop(self) -> None:
        """See AsyncIndex.drop."""
        self._loop.run(self._index.drop)
        self.close()

    def close(self) -> None:
        """Give back connections, locks and the index's thread; safe to call twice."""
        if self in _open:
            _open.discard(self)
            try:
                self._loop.run(self._index.close)
            finally:
                self._forgotten()

    def __enter__(self) -> Index:
        return self

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
    """Open a collection, or make it, at ``memory:``, ``qdrant:DIRECTORY``, ``milvus:FILE.db`` or a server's URL.

    ``aconnect``, blocking: its arguments and errors; the options of each store are in docs/servers.md.
    """
    loop = _Loop()
    try:
        opening = aconnect(
            url, collection, encoder=encoder, storage=storage, weights=weights, create=create, **options
        )
        return Index(loop.run(lambda: opening), loop)
    except BaseException:
        loop.stop()
        raise


_open: weakref.WeakSet[Index] = weakref.WeakSet()
"""Indexes not yet closed, so that the interpreter's end closes them."""


@atexit.register
def _close_all() -> None:
    for index in list(_open):
        with contextlib.suppress(Exception):
            index.close()
