"""The Qdrant engine in this process (Qdrant Edge), with its data in a directory: no server, exact scores."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import anyio.to_thread
import numpy as np
import qdrant_edge as engine

from m3_connectors.backends.base import Backend, Ranking, Schema, ScoredId
from m3_connectors.backends.capabilities import Capability, ServerInfo, refuse_unknown
from m3_connectors.backends.qdrant import ranking
from m3_connectors.backends.qdrant.failures import BACKEND
from m3_connectors.backends.qdrant.filters import edge_filter
from m3_connectors.backends.qdrant.points import ID, PointId, document_of, payloads, point_id, stored, vectors
from m3_connectors.backends.qdrant.shard import Shard
from m3_connectors.backends.urls import shown
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import InvalidInput, NotFound
from m3_connectors.filters import Filter
from m3_connectors.methods import Method, rank

T = TypeVar("T")

_BATCH_BYTES = 8 * 2**20
"""Vectors and text in one write: bounds the memory of Python's lists of floats, and how long one call lasts."""

_WRITE_FACTOR = 3
"""Disk that a write may need for its own size: in the log, in the storage, and around them."""

_PAGE = 1000


class EdgeBackend(Backend):
    """One collection in ``DIRECTORY/COLLECTION``, open in one process at a time.

    Args:
        directory: Where collections lie; made with the first of them.
        collection: Name of the collection.
    """

    name: ClassVar[str] = BACKEND
    capabilities = frozenset({Capability.PERSISTENT, Capability.EXACT})

    def __init__(self, directory: str | os.PathLike[str], collection: str = "documents") -> None:
        self.directory = Path(directory)
        self.collection = collection
        self._shard: Shard | None = None

    @classmethod
    def from_url(cls, url: str, collection: str, options: Mapping[str, Any]) -> EdgeBackend:
        """The backend of ``qdrant:DIRECTORY``, which takes no options.

        Raises:
            InvalidInput: There is no directory in the URL, or an unknown option.
            Unsupported: An option of other stores.
        """
        directory = url.removeprefix("qdrant:")
        if not directory or directory.startswith("//"):
            raise InvalidInput(
                f"{shown(url)!r} names no directory: give qdrant:DIRECTORY, such as qdrant:./data.\n"
                "  A server is qdrant+http://HOST:6333."
            )
        refuse_unknown("qdrant:DIRECTORY", cls.capabilities, options)
        return cls(Path(directory).expanduser(), collection)

    async def server(self) -> ServerInfo:
        version = importlib.metadata.version("qdrant-edge-py")
        return ServerInfo(str(self.directory), version, {"engine": "Qdrant Edge in this process"})

    async def optimize(self) -> None:
        """Build the dense graph (HNSW) and rewrite the data without what was deleted or replaced.

        Until then every dense list is an exact scan. Afterwards lists are approximate unless ``exact`` is asked,
        and faster for large collections. The engine blocks the whole process meanwhile, for a few milliseconds
        a document, and needs as much free disk as the collection takes.

        Raises:
            StorageFull: There is less free disk than that; nothing was changed.
        """
        shard = self._opened()
        shard.check_space(shard.size_bytes(), "optimize")

        def optimized(edge: engine.EdgeShard) -> None:
            edge.optimize()
            edge.flush()  # the old segments stay on disk until then

        await self._run("optimize", optimized)

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
        batches = list(_batches(documents, embeddings))
        shard.check_space(_WRITE_FACTOR * sum(size_bytes for _, _, size_bytes in batches), "upsert")
        for start, stop, size_bytes in batches:
            await self._write(documents[start:stop], embeddings[start:stop], size_bytes)

    async def _write(self, documents: Sequence[Document], embeddings: M3Embeddings, size_bytes: int) -> None:
        shard = self._opened()

        def write(edge: engine.EdgeShard) -> None:
            shard.check_space(_WRITE_FACTOR * size_bytes, "upsert")
            points = shard.layout.points(documents, embeddings)
            edge.update(engine.UpdateOperation.upsert_points(points))
            shard.wrote(edge, size_bytes)

        await self._run("upsert", write)

    async def _delete(self, ids: Sequence[str]) -> int:
        points = [point_id(id) for id in dict.fromkeys(ids)]

        def delete(edge: engine.EdgeShard) -> int:
            there = stored(edge, points)
            if there:
                edge.update(engine.UpdateOperation.delete_points(list(there)))
            return len(there)

        return await self._run("delete", delete)

    async def _delete_where(self, filter: Filter) -> int:
        condition = edge_filter(filter)

        def delete(edge: engine.EdgeShard) -> int:
            there = edge.count(engine.CountRequest(exact=True, filter=condition))
            if there:
                edge.update(engine.UpdateOperation.delete_points_by_filter(condition))
            return there

        return await self._run("delete", delete)

    # -- reading

    async def _fetch(self, ids: Sequence[str]) -> list[Document | None]:
        points = [point_id(id) for id in ids]
        found = await self._run("fetch", lambda edge: payloads(edge, points))
        return [document_of(found[point]) if point in found else None for point in points]

    async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
        points = [point_id(id) for id in ids]
        found = await self._run("vectors", lambda edge: vectors(edge, points))
        _check_found(ids, points, found, "vectors")
        return self._opened().layout.embeddings([found[point] for point in points])

    async def _count(self, filter: Filter | None) -> int:
        request = engine.CountRequest(exact=True, filter=_condition(filter))
        return await self._run("count", lambda edge: edge.count(request))

    async def scan_ids(self) -> AsyncIterator[str]:
        offset: PointId | None = None
        while True:
            request = engine.ScrollRequest(offset=offset, limit=_PAGE, with_payload=[ID], with_vector=False)
            records, offset = await self._run("scan", functools.partial(_scroll, request))
            for record in records:
                yield (record.payload or {})[ID]
            if offset is None:
                return

    # -- ranking

    async def _candidates(
        self, component: Component, query: M3Embeddings, limit: int, filter: Filter | None, exact: bool
    ) -> Ranking:
        layout, condition = self._opened().layout, _condition(filter)

        def best(edge: engine.EdgeShard) -> tuple[list[str], Float32]:
            ranked = ranking.candidates(edge, layout, query, {component: limit}, condition, exact)[component]
            scores = np.array([point.score for point in ranked], dtype=np.float32)
            return ranking.user_ids(edge, [point.id for point in ranked]), scores

        ids, scores = await self._run("search", best)
        order = rank(ids, scores, limit)
        return Ranking([ids[i] for i in order], scores[order])

    async def _score(self, component: Component, query: M3Embeddings, ids: Sequence[str]) -> Float32:
        layout, points = self._opened().layout, [point_id(id) for id in ids]

        def score(edge: engine.EdgeShard) -> Float32:
            _check_found(ids, points, stored(edge, points), "score")
            found = ranking.Found(points)
            return ranking.complete(edge, layout, query, (component,), found)[component][found.rows(points)]

        return await self._run("score", score)

    async def _search(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None, exact: bool
    ) -> list[ScoredId]:
        layout, condition = self._opened().layout, _condition(filter)
        return await self._run(
            "search", lambda edge: ranking.search(edge, layout, query, method, k, condition, exact)
        )

    async def _run(self, operation: str, call: Callable[[engine.EdgeShard], T]) -> T:
        return await self._opened().run(operation, call)

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


def _check_found(
    ids: Sequence[str], points: Sequence[PointId], found: Container[PointId], operation: str
) -> None:
    for id, point in zip(ids, points, strict=True):
        if point not in found:
            raise NotFound(f"no document {id!r}.", backend=BACKEND, operation=operation)


def _batches(documents: Sequence[Document], embeddings: M3Embeddings) -> Iterator[tuple[int, int, int]]:
    """Consecutive ``(start, stop, size_bytes)``, each about 8 MiB or a single document."""
    sizes = np.array([len(document.text.encode()) for document in documents], dtype=np.int64)
    if "dense" in embeddings.components:
        sizes += embeddings.dense.itemsize * embeddings.dense.shape[1]
    if "sparse" in embeddings.components:
        sizes += 8 * np.diff(embeddings.sparse.indptr)
    if "multivector" in embeddings.components:
        sizes += 4 * embeddings.multivectors.dimension * embeddings.multivectors.counts
    start, size_bytes = 0, 0
    for i, more in enumerate(sizes.tolist()):
        if size_bytes and size_bytes + more > _BATCH_BYTES:
            yield start, i, size_bytes
            start, size_bytes = i, 0
        size_bytes += more
    yield start, len(documents), size_bytes
