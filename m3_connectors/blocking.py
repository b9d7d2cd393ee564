"""Index: the blocking counterpart of AsyncIndex, for code without an event loop."""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.from_thread import BlockingPortal

from m3_connectors.adding import AddReport, AddTally, batches
from m3_connectors.backends.base import Backend, Schema, Storage
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.backends.scanning import document_pages, id_pages, parts
from m3_connectors.backup import ExportReport, ImportReport
from m3_connectors.documents import Document, Hit
from m3_connectors.embeddings import Component, M3Embeddings, ModelInfo
from m3_connectors.errors import InvalidInput
from m3_connectors.event_loop import Call, LentLoop, Loop, interrupted
from m3_connectors.explanation import Explanation
from m3_connectors.filters import Filter, parse_filter
from m3_connectors.grouping import GroupBy
from m3_connectors.index import (
    AsyncIndex,
    Description,
    Encoder,
    Progress,
    Query,
    RawFilter,
    W,
    begin_add,
    begin_add_component,
    described,
)
from m3_connectors.listing import alist_collections
from m3_connectors.methods import Method, MethodName
from m3_connectors.opening import WeightsByMethod, aconnect
from m3_connectors.reranking import Reranker
from m3_connectors.writing import BATCHES_AT_ONCE, DocumentWriter, Encode, OnCut, Stored

T = TypeVar("T")


class Index:
    """An open collection: add documents and search them. Created by ``connect``.

    Use it as a context manager, or call ``close``. Each method runs the AsyncIndex method of the same name on
    the index's own event loop; several threads may call it at the same time.
    """

    def __init__(self, index: AsyncIndex, loop: Loop) -> None:
        self._index = index
        self._loop = loop
        _open.add(self)
        # If an index is collected without close(), its thread is stopped too.
        self._forgotten = weakref.finalize(self, loop.stop)
        self._forgotten.atexit = False

    def __repr__(self) -> str:
        return described(self, self._index._backend)

    @property
    def schema(self) -> Schema:
        """What the collection records about itself."""
        return self._index.schema

    @property
    def methods(self) -> Mapping[str, Method]:
        """The five methods by name, with the weights that ``search`` uses when it is given a name.

        These are the weights passed to ``connect``, otherwise those distributed with the model, otherwise the
        paper's weights for MIRACL.
        """
        return self._index.methods

    def use_encoder(self, encoder: Encoder) -> None:
        """Compute the embeddings of texts with this encoder from now on.

        Raises:
            ModelMismatch: The collection was written by a different model than the encoder's.
        """
        self._index.use_encoder(encoder)

    def add(
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
        adding, tally = begin_add(self._index, DocumentWriter), AddTally(on_cut, progress)
        # The caller's iterable is read in the caller's thread: it may use a database cursor, or this index.
        for stored in store_batches(self, adding, batches(self._index._backend, documents, embeddings)):
            tally.tell(stored)
        return tally.report(adding.encoding_seconds)

    def add_component(
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
        completing, tally = begin_add_component(self._index, component), AddTally(on_cut, progress)
        # The callbacks run in the caller's thread, as those of ``add`` do.
        while (stored := self._loop.run(completing.step)) is not None:
            tally.tell(stored)
        return completing.report(tally)

    def search(
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
        return self._loop.run(
            partial(
                self._index.search,
                query,
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
        )

    def search_many(
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
        return self._loop.run(
            partial(
                self._index.search_many,
                queries,
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
        )

    def explain(self, query: str, id: str, *, method: Method | MethodName = "all") -> Explanation:
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
        return self._loop.run(partial(self._index.explain, query, id, method=method))

    def delete(self, ids: Sequence[str] | None = None, *, filter: RawFilter | None = None) -> int:
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
        return self._loop.run(partial(self._index.delete, ids, filter=filter))

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Return documents by id.

        Args:
            ids: The ids, in any order; an id may be repeated.

        Returns:
            The document of each id, in the order of the ids; None if it does not exist.

        Raises:
            InvalidInput: ``ids`` is not a list of strings.
            BackendError: The store failed or refused the operation.
        """
        return self._loop.run(partial(self._index.get, ids))

    def count(self, filter: RawFilter | None = None) -> int:
        """Return the number of documents that match a filter.

        Args:
            filter: As in ``search``; without a filter, all documents are counted.

        Raises:
            InvalidInput: The filter is not valid.
            BackendError: The store failed or refused the operation.
        """
        return self._loop.run(partial(self._index.count, filter))

    def scan_ids(self, filter: RawFilter | None = None) -> Iterator[str]:
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
        return chain.from_iterable(self._scanned(id_pages, filter))

    def scan(self, filter: RawFilter | None = None) -> Iterator[Document]:
        """Yield every document that matches a filter, once, in any order.

        As ``scan_ids``, with texts and metadata. A document that is replaced during the scan is yielded as it is at
        one moment of it.

        Args:
            filter: As in ``search``; without a filter, all documents are scanned.

        Raises:
            InvalidInput: The filter is not valid.
            BackendError: The store failed or refused the operation.
        """
        return chain.from_iterable(self._scanned(document_pages, filter))

    def scan_embeddings(
        self, filter: RawFilter | None = None
    ) -> Iterator[tuple[list[Document], M3Embeddings]]:
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
        return self._scanned(parts, filter)

    def describe(self) -> Description:
        """Return the collection's store, name, model, components, storage and number of documents.

        Raises:
            BackendError: The store failed or refused the operation.
        """
        return self._loop.run(self._index.describe)

    def optimize(self) -> None:
        """Make the store build what speeds up searches, such as a graph, and wait for it; may do nothing.

        Raises:
            BackendError: The store failed or refused the operation.
        """
        self._loop.run(self._index.optimize)

    def export(self, folder: str | os.PathLike[str], *, progress: Progress | None = None) -> ExportReport:
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
        return self._loop.run(partial(self._index.export, folder, progress=progress))

    def import_(self, folder: str | os.PathLike[str], *, progress: Progress | None = None) -> ImportReport:
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
        return self._loop.run(partial(self._index.import_, folder, progress=progress))

    def drop(self) -> None:
        """Delete the collection with all its documents, and close the index.

        Raises:
            BackendError: The store failed or refused the operation.
        """
        self._loop.run(self._index.drop)
        self.close()

    def close(self) -> None:
        """Release connections and locks (and the thread of an ``Index``); safe to call more than once."""
        if self in _open:
            _open.discard(self)
            try:
                self._loop.run(self._index.close)
            finally:
                self._forgotten()

    def _scanned(
        self, scan: Callable[[Backend, Filter | None], AsyncGenerator[T, None]], filter: RawFilter | None
    ) -> Iterator[T]:
        return self._loop.each(scan(self._index._backend, parse_filter(filter)))

    def __enter__(self) -> Index:
        return self

    if not TYPE_CHECKING:  # without these methods, a type checker reports the mistake

        def __aenter__(self) -> None:
            raise InvalidInput(
                "connect returns an Index, which is blocking and cannot be used in async with.\n"
                "  Write with connect(…) as index, or async with aconnect(…) as index."
            )

        def __aexit__(self, *_: object) -> None:
            """Never called, because ``__aenter__`` raises."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def writer_of(index: Index, kind: Callable[[Backend, Encode], W]) -> W:
    """Return a writer into the collection of an index, for ``store_batches``."""
    return begin_add(index._index, kind)


def encoder_of(index: Index) -> Encoder:
    """Return the encoder of an index.

    Raises:
        InvalidInput: It has none.
    """
    return index._index._check_encoder()


async def in_thread(index: AsyncIndex, call: Callable[[Index], T]) -> T:
    """Run blocking code in a worker thread and return its result; its calls of the index run on this loop.

    If this is cancelled, so are those calls, and the next one fails (``check_wanted`` says so as well).
    """

    async def watch() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            loop.abandon()

    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope(shield=True):
            async with BlockingPortal() as portal:
                loop = LentLoop(portal)
                tasks.start_soon(watch)
                lent = Index(index, loop)
                _open.discard(lent)
                lent._forgotten.detach()
                try:
                    # Its calls need threads too (to encode): it must not hold one of those that all share.
                    result = await anyio.to_thread.run_sync(call, lent, limiter=anyio.CapacityLimiter(1))
                except Exception as error:  # noqa: BLE001 (raised below; the portal would wrap it)
                    failure = error
        tasks.cancel_scope.cancel()
    await anyio.lowlevel.checkpoint_if_cancelled()
    if failure is not None:
        raise failure
    return result


def check_wanted(index: Index) -> None:
    """Raise InvalidInput if the call that waits for this worker thread was cancelled."""
    if isinstance(index._loop, LentLoop) and index._loop.is_abandoned:
        raise interrupted()


def run_on(index: Index, call: Callable[[], Awaitable[T]]) -> T:
    """Run a call on the loop of an index and return its result."""
    return index._loop.run(call)


def async_index_of(index: Index) -> AsyncIndex:
    """Return the AsyncIndex whose calls an index runs; they must be awaited on the loop of the index."""
    return index._index


async def awaited_on(index: Index, call: Callable[[], Awaitable[T]]) -> T:
    """Run a call on the loop of an index, and await its result on another loop; it is cancelled with the caller."""
    running = index._loop.call(call)
    running.start()
    try:
        return await anyio.to_thread.run_sync(running.result, abandon_on_cancel=True)
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(running.abandon)
        raise


def store_batches(
    index: Index,
    adding: DocumentWriter,
    batches: Iterator[tuple[Sequence[Document], M3Embeddings | None]],
    *,
    before: Callable[[Sequence[Document]], object] = lambda _: None,
) -> Iterator[Stored]:
    """Yield each batch when the store has acknowledged it, in their order.

    While batches are encoded and written, the next one is read, in the caller's thread. If the caller is interrupted,
    the batches under way are cancelled; if reading fails, they are stored first.

    Args:
        index: The open collection.
        adding: A writer into it.
        batches: The documents, and their embeddings if they are not to be encoded.
        before: Called with each batch before it is encoded.
    """
    running: deque[Call[Stored]] = deque()
    failure: Exception | None = None
    try:
        while True:
            following = None
            try:
                following = next(batches, None)
            except Exception as error:  # noqa: BLE001 (raised below, after what is running has been told)
                failure = error
            while running and (following is None or len(running) == BATCHES_AT_ONCE or running[0].is_over):
                yield running[0].result()
                running.popleft()
            if failure is not None:
                raise failure
            if following is None:
                return
            before(following[0])
            running.append(index._loop.call(adding.enter(*following)))
            running[-1].start()
    except BaseException:
        for call in reversed(running):  # those that wait for another first, so that they do not begin
            call.abandon()
        raise


def scan_chosen(
    index: Index, choose: Callable[[list[Document]], list[Document]]
) -> Iterator[tuple[list[Document], M3Embeddings]]:
    """Yield what ``Index.scan_embeddings`` does, but only the documents that ``choose`` returns of each page.

    Args:
        index: The open collection.
        choose: Called in the thread of the index, while the caller waits.
    """
    return index._loop.each(parts(index._index._backend, None, choose))


def present(index: Index, ids: Sequence[str]) -> set[str]:
    """Return those of the ids that are stored."""
    return index._loop.run(partial(index._index._backend.present, ids))


def connect(
    url: str,
    collection: str = DEFAULT_COLLECTION,
    *,
    encoder: Encoder | None = None,
    storage: Storage | None = None,
    weights: WeightsByMethod | None = None,
    create: bool = True,
    model: ModelInfo | None = None,
    **options: Any,
) -> Index:
    """Open or create a collection: ``index = connect(…)`` or ``with connect(…) as index``.

    Args:
        url: The URL of the store: ``memory:``, ``qdrant:DIRECTORY``, ``milvus:FILE.db``, or a server at
            ``qdrant+http(s)://``, ``milvus+http(s)://`` or ``elasticsearch+http(s)://HOST:PORT``.
        collection: The name of the collection.
        encoder: Computes the embeddings of texts; without it, pass embeddings to ``add`` and ``search``.
        storage: How a new collection stores its vectors, and which of the three components; an existing
            collection must have the same storage.
        weights: A weights file, as ``m3 tune`` writes it, or weights by method name. Methods given by name
            use these weights instead of the model's.
        create: Whether to create the collection if it does not exist (this needs an encoder or a model, which is
            recorded). If several callers start at the same time, one creates it and the others open it.
        model: The model of the embeddings that the collection takes, if there is no encoder.
        **options: The options of the store, such as ``api_key``, ``ca_certs``, ``timeout_seconds`` or
            ``refresh``; docs/servers.md lists them. Unknown options are refused.

    Raises:
        CollectionNotFound: The collection does not exist, and ``create`` is false or there is no encoder.
        ModelMismatch: The collection was written by a different model than the encoder's.
        InvalidInput: The URL, collection name, weights file or an option is not valid.
        Unsupported: An option belongs to other stores.
        MissingDependency: The store's client is not installed.
        FileNotFoundError: The weights file does not exist.
        BackendError: The store failed or refused the operation.
    """
    loop = Loop()
    try:
        opened = partial(
            aconnect,
            url,
            collection,
            encoder=encoder,
            storage=storage,
            weights=weights,
            create=create,
            model=model,
            **options,
        )
        return Index(loop.run(opened), loop)
    except BaseException:
        loop.stop()
        raise


def list_collections(url: str, **options: Any) -> list[CollectionInfo]:
    """Return the collections of a store, by name: the blocking counterpart of ``alist_collections``.

    The collections of m3-connectors are opened one after the other to count their documents. One that cannot
    be opened (for example, because another process has it open) is listed with its problem. The collections
    of other programs are listed, but never opened.

    Args:
        url: The URL of the store, as for ``connect``. ``memory:`` has no collections to list: they exist only
            as long as their index.
        **options: The options of the store, as for ``connect``.

    Raises:
        NotFound: The directory does not exist.
        InvalidInput: The URL or an option is not valid.
        Unsupported: An option belongs to other stores, or the store cannot list its collections.
        MissingDependency: The store's client is not installed.
        BackendError: The store failed, or the credentials do not permit listing.
    """
    loop = Loop()
    try:
        return loop.run(partial(alist_collections, url, **options))
    finally:
        loop.stop()


_open: weakref.WeakSet[Index] = weakref.WeakSet()
"""The open indexes; they are closed when the interpreter exits."""


@atexit.register
def _close_all() -> None:
    for index in list(_open):
        with contextlib.suppress(Exception):
            index.close()
