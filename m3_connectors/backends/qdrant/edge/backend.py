"""The Qdrant engine in this process (Qdrant Edge), with its data in a directory: no server, exact scores."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import anyio.to_thread
import numpy as np
import qdrant_edge as engine

from m3_connectors.backends.base import Backend, Candidates, Lists, Schema, ScoredId
from m3_connectors.backends.capabilities import Capability, Remark, ServerInfo, refuse_unknown
from m3_connectors.backends.checks import check_found
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.qdrant.edge.collection import collections_in
from m3_connectors.backends.qdrant.edge.connection import Shard
from m3_connectors.backends.qdrant.edge.errors import BACKEND
from m3_connectors.backends.qdrant.edge.filters import edge_filter
from m3_connectors.backends.qdrant.edge.row_file import RowFile
from m3_connectors.backends.qdrant.edge.rows import (
    ID,
    DamagedRows,
    Layout,
    PointId,
    document_of,
    payloads,
    point_id,
    stored,
    vectors,
)
from m3_connectors.backends.qdrant.edge.searching import EdgeAnswers, at_once, key_of
from m3_connectors.backends.urls import redacted
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, M3Embeddings
from m3_connectors.errors import Corrupt, InvalidInput
from m3_connectors.filters import Filter
from m3_connectors.methods import Method
from m3_connectors.search import Key, search

T = TypeVar("T")

_BATCH_BYTES = 8 * 2**20
"""Vectors and text in one write; limits the memory of Python's lists of floats, and the duration of one
call."""

_WRITE_FACTOR = 3
"""The disk space that a write may need, relative to its size: in the log, in the storage, and for
overhead."""

_DELETION_BYTES = 64
"""What the deletion of one document adds to the log."""

_REMARKABLE_BYTES = 10**6
"""The smallest space of deleted documents that is reported."""

_PAGE = 1000


class EdgeBackend(Backend):
    """One collection in ``DIRECTORY/COLLECTION``, open in one process at a time.

    Args:
        directory: The directory of the collections; created with the first of them.
        collection: The name of the collection.
    """

    name: ClassVar[str] = BACKEND
    capabilities = frozenset(
        {Capability.PERSISTENT, Capability.EXACT, Capability.COMPACT, Capability.ADD_COMPONENT}
    )
    settles_ties = True
    addable = ("multivector",)  # a text without tokens has no sparse vector, so it would lack it for ever

    def __init__(self, directory: str | os.PathLike[str], collection: str = "documents") -> None:
        self.directory = Path(directory)
        self.collection = collection
        self._shard: Shard | None = None

    @classmethod
    def from_url(cls, url: str, collection: str, options: Mapping[str, Any]) -> EdgeBackend:
        """Return the backend of ``qdrant:DIRECTORY``, which takes no options.

        Raises:
            InvalidInput: The URL has no directory, or an option is unknown.
            Unsupported: The option belongs to other stores.
        """
        directory = url.removeprefix("qdrant:")
        if not directory or directory.startswith("//"):
            raise InvalidInput(
                f"{redacted(url)!r} does not name a directory.\n  Use qdrant:DIRECTORY, such as qdrant:./data.\n"
                "  A server is qdrant+http://HOST:6333."
            )
        refuse_unknown("qdrant:DIRECTORY", cls.capabilities, options)
        return cls(Path(directory).expanduser(), collection)

    async def server(self) -> ServerInfo:
        version = importlib.metadata.version("qdrant-edge-py")
        return ServerInfo(str(self.directory), version, {"engine": "Qdrant Edge in this process"})

    async def optimize(self) -> None:
        """Build the dense graph (HNSW) and rewrite the data without deleted and replaced documents.

        Before that every dense list is an exact scan. Afterwards lists are approximate unless ``exact`` is
        True, and faster for large collections. The engine blocks the whole process in the meantime, for a few
        milliseconds per document, and needs as much free disk space as the collection takes. The graph is
        lost when the space of deleted documents is reclaimed, which happens automatically once they take half
        of the data.

        Raises:
            StorageFull: There is less free disk space than that; nothing was changed.
        """
        shard = self._opened()
        shard.check_space(shard.size_bytes(), "optimize")

        await self._run("optimize", shard.optimize)

    async def collections(self) -> list[CollectionInfo]:
        return await anyio.to_thread.run_sync(collections_in, self.directory)

    async def remarks(self) -> tuple[Remark, ...]:
        usage = await self._run("describe", self._opened().usage)
        if usage.reclaimable_bytes < _REMARKABLE_BYTES:
            return ()
        megabytes, all_megabytes = usage.reclaimable_bytes / 1e6, usage.all_bytes / 1e6
        what = (
            f"about {megabytes:,.0f} of {all_megabytes:,.0f} MB can be reclaimed "
            f"({usage.deleted:,} deleted documents, {usage.live:,} live)"
        )
        remedy = (
            "This happens automatically once half is deleted, in a program that keeps the index open and "
            "writes. Call Index.optimize() to do it now."
        )
        return (Remark(what, remedy, is_problem=False),)

    # -- the collection

    async def _create(self, schema: Schema) -> None:
        self._shard = await anyio.to_thread.run_sync(Shard.create, self.directory, self.collection, schema)

    async def _open(self) -> Schema:
        if self._shard is None:
            self._shard = await anyio.to_thread.run_sync(Shard.open, self.directory, self.collection)
        return self._shard.layout.schema

    async def _drop(self) -> None:
        await self.close()
        await anyio.to_thread.run_sync(Shard.drop, self.directory, self.collection)

    async def close(self) -> None:
        shard, self._shard, self._schema = self._shard, None, None
        if shard is not None:
            await shard.close()

    # -- writing

    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        shard = self._opened()
        shard.layout.check_rows(documents, embeddings)
        batches = list(_batches(shard.layout, documents, embeddings))
        shard.check_space(_WRITE_FACTOR * sum(size_bytes for _, _, size_bytes in batches), "upsert")
        for start, stop, size_bytes in batches:
            await self._write(documents[start:stop], embeddings[start:stop], size_bytes)

    async def _write(
        self,
        documents: Sequence[Document],
        embeddings: M3Embeddings,
        size_bytes: int,
        *,
        only_if_same: bool = False,
    ) -> None:
        shard = self._opened()

        def write(edge: engine.EdgeShard) -> None:
            shard.check_space(_WRITE_FACTOR * size_bytes, "upsert")
            chosen, vectors = documents, embeddings
            if only_if_same:
                there = payloads(edge, [point_id(document.id) for document in documents])
                same = [
                    i
                    for i, document in enumerate(documents)
                    if (payload := there.get(point_id(document.id))) and document_of(payload) == document
                ]
                if not same:
                    return
                chosen = [documents[i] for i in same]
                vectors = M3Embeddings.concatenate([embeddings[i] for i in same])
            blobs = shard.layout.blobs(vectors)

            def operation(rows: RowFile) -> engine.UpdateOperation:
                points = shard.layout.points(chosen, vectors, rows.append(blobs))
                return engine.UpdateOperation.upsert_points(points)

            shard.update(edge, operation, len(chosen), size_bytes)

        await self._run("upsert", write)

    # -- adding a component

    async def _record(self, schema: Schema) -> None:
        shard = self._opened()
        await self._run("add a component", lambda edge: shard.alter(edge, schema))

    async def _lacking(self, component: Component, limit: int) -> list[Document]:
        without = self._opened().layout.lacking(component)
        request = engine.ScrollRequest(limit=limit, filter=without, with_payload=True, with_vector=False)
        records, _ = await self._run("add a component", functools.partial(_scroll, request))
        return [document_of(record.payload or {}) for record in records]

    async def _rewrite(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        shard = self._opened()
        shard.layout.check_rows(documents, embeddings)
        for start, stop, size_bytes in _batches(shard.layout, documents, embeddings):
            await self._write(documents[start:stop], embeddings[start:stop], size_bytes, only_if_same=True)

    # -- deleting

    async def _delete(self, ids: Sequence[str]) -> int:
        shard, points = self._opened(), [point_id(id) for id in dict.fromkeys(ids)]

        def delete(edge: engine.EdgeShard) -> int:
            there = stored(edge, points)
            if there:
                operation = engine.UpdateOperation.delete_points(list(there))
                shard.update(edge, lambda _: operation, len(there), _DELETION_BYTES * len(there))
            return len(there)

        return await self._run("delete", delete)

    async def _delete_where(self, filter: Filter) -> int:
        shard, condition = self._opened(), edge_filter(filter)

        def delete(edge: engine.EdgeShard) -> int:
            there = edge.count(engine.CountRequest(exact=True, filter=condition))
            if there:
                operation = engine.UpdateOperation.delete_points_by_filter(condition)
                shard.update(edge, lambda _: operation, there, _DELETION_BYTES * there)
            return there

        return await self._run("delete", delete)

    # -- reading

    async def _fetch(self, ids: Sequence[str]) -> list[Document | None]:
        points = [point_id(id) for id in ids]
        found = await self._run("fetch", lambda edge: payloads(edge, points))
        return [document_of(found[point]) if point in found else None for point in points]

    async def _present(self, ids: Sequence[str]) -> set[str]:
        points = [point_id(id) for id in ids]
        there = await self._run("fetch", lambda edge: stored(edge, points))
        return {id for id, point in zip(ids, points, strict=True) if point in there}

    async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
        points = [point_id(id) for id in ids]
        shard = self._opened()

        def read(edge: engine.EdgeShard) -> M3Embeddings:
            found = vectors(edge, points, shard.layout, shard.rows)
            check_found(ids, points, found, BACKEND, "vectors")
            return shard.layout.embeddings([found[point] for point in points])

        return await self._run("vectors", read)

    async def _count(self, filter: Filter | None) -> int:
        request = engine.CountRequest(exact=True, filter=_condition(filter))
        return await self._run("count", lambda edge: edge.count(request))

    def scan_ids(self) -> AsyncIterator[str]:
        return self._passing_ids(None)

    async def _passing_ids(self, filter: Filter | None) -> AsyncIterator[str]:
        offset: PointId | None = None
        while True:
            request = engine.ScrollRequest(
                offset=offset, limit=_PAGE, filter=_condition(filter), with_payload=[ID], with_vector=False
            )
            records, offset = await self._run("scan", functools.partial(_scroll, request))
            for record in records:
                yield (record.payload or {})[ID]
            if offset is None:
                return

    # -- ranking

    async def lists(self, ask: Lists) -> Candidates:
        return await self._answer("search", lambda answers: answers.lists(ask))

    async def complete(
        self,
        query: M3Embeddings,
        found: Candidates,
        components: Sequence[Component],
        *,
        documents: bool = False,
    ) -> None:
        await self._answer(
            "score", lambda answers: answers.complete(query, found, components, documents=documents)
        )

    def key(self, id: str) -> Key:
        return key_of(id)

    async def ids(self, found: Candidates) -> list[str]:
        return await self._answer("search", lambda answers: answers.ids(found))

    async def _search(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None, exact: bool
    ) -> list[ScoredId]:
        """Run the whole search in the shard's worker, so that no other call comes in between."""
        stored = self.schema.components
        return await self._answer(
            "search", lambda answers: search(answers, stored, query, method, k, filter, exact)
        )

    async def _answer(self, operation: str, ask: Callable[[EdgeAnswers], Coroutine[Any, Any, T]]) -> T:
        shard = self._opened()
        return await self._run(
            operation, lambda edge: at_once(ask(EdgeAnswers(edge, shard.layout, shard.rows)))
        )

    async def _run(self, operation: str, call: Callable[[engine.EdgeShard], T]) -> T:
        try:
            return await self._opened().run(operation, call)
        except DamagedRows as error:
            raise Corrupt(str(error), backend=BACKEND, operation=operation) from error

    def _opened(self) -> Shard:
        self._check_open()
        assert self._shard is not None
        return self._shard


def _scroll(
    request: engine.ScrollRequest, edge: engine.EdgeShard
) -> tuple[list[engine.Record], PointId | None]:
    return edge.scroll(request)


def _condition(filter: Filter | None) -> engine.Filter | None:
    return None if filter is None else edge_filter(filter)


def _batches(
    layout: Layout, documents: Sequence[Document], embeddings: M3Embeddings
) -> Iterator[tuple[int, int, int]]:
    """Yield consecutive ``(start, stop, size_bytes)``, each about 8 MiB or a single document."""
    sizes = np.array([len(document.text.encode()) for document in documents], dtype=np.int64)
    if "dense" in embeddings.components:
        sizes += embeddings.dense.itemsize * embeddings.dense.shape[1]
    if "sparse" in embeddings.components:
        sizes += 8 * np.diff(embeddings.sparse.indptr)
    if "multivector" in embeddings.components:
        sizes += [layout.rows_bytes(count) for count in embeddings.multivectors.counts.tolist()]
    start, size_bytes = 0, 0
    for i, more in enumerate(sizes.tolist()):
        if size_bytes and size_bytes + more > _BATCH_BYTES:
            yield start, i, size_bytes
            start, size_bytes = i, 0
        size_bytes += more
    yield start, len(documents), size_bytes
