"""The Qdrant engine in this process (Qdrant Edge), with its data in a directory: no server, exact scores."""

from __future__ import annotations

import functools
import itertools
import os
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import qdrant_edge as engine

from m3_connectors.backends.base import Backend, Ranking, Schema
from m3_connectors.backends.qdrant.filters import edge_filter
from m3_connectors.backends.qdrant.points import ID, Layout, document_of, point_id
from m3_connectors.backends.qdrant.shard import BACKEND, Shard
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import InvalidInput, NotFound
from m3_connectors.filters import Filter

_EXACT = engine.SearchParams(exact=True)
_BATCH_BYTES = 8 * 2**20
_PAGE = 1000


class EdgeBackend(Backend):
    """One collection in ``DIRECTORY/COLLECTION``; one process at a time."""

    name: ClassVar[str] = BACKEND

    def __init__(self, directory: str | os.PathLike[str], collection: str = "documents") -> None:
        self.collection = collection
        self.directory = Path(directory)
        self._opened: Shard | None = None
        self._layout: Layout | None = None

    @classmethod
    def from_url(cls, url: str, collection: str, options: Mapping[str, Any]) -> EdgeBackend:
        """The backend of ``qdrant:DIRECTORY``.

        Raises:
            InvalidInput: There is no directory in the URL, or an unknown option.
        """
        directory = url.removeprefix("qdrant:")
        if not directory:
            raise InvalidInput(f"{url!r} names no directory: use one such as qdrant:./data.")
        if options:
            raise InvalidInput(f"unknown options {sorted(options)} for {url!r}.")
        return cls(Path(directory).expanduser(), collection)

    # -- the collection

    async def _create(self, schema: Schema) -> None:
        self._use(Shard.create(self.directory, self.collection, schema))

    async def _open(self) -> Schema:
        if self._opened is None:
            self._use(Shard.open(self.directory, self.collection))
        assert self._opened is not None
        return self._opened.schema

    async def _drop(self) -> None:
        await self.close()
        Shard.drop(self.directory, self.collection)

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()
            self._opened = None
        self._schema = None

    def _use(self, shard: Shard) -> None:
        self._opened, self._layout = shard, Layout.of(shard.schema)

    @property
    def _shard(self) -> Shard:
        self._check_open()
        assert self._opened is not None
        return self._opened

    # -- writing

    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        assert self._layout is not None
        self._layout.check_rows(documents, embeddings)
        shard = self._shard
        for start, stop, size in _batches(documents, embeddings):
            shard.check_space(3 * size, "upsert")
            part = functools.partial(self._write, documents[start:stop], embeddings[start:stop], size)
            await shard.run("upsert", part)

    def _write(self, documents, embeddings, size, shard) -> None:
        points = list(self._layout.points(documents, embeddings))
        shard.update(engine.UpdateOperation.upsert_points(points))
        self._shard.wrote(shard, size)

    async def _delete(self, ids: Sequence[str]) -> int:
        points = list({point_id(id) for id in ids})

        def delete(shard: engine.EdgeShard) -> int:
            there = len(shard.retrieve(points, False, False))
            shard.update(engine.UpdateOperation.delete_points(points))
            return there

        return await self._shard.run("delete", delete)

    async def _delete_where(self, filter: Filter) -> int:
        condition = edge_filter(filter)

        def delete(shard: engine.EdgeShard) -> int:
            there = shard.count(engine.CountRequest(exact=True, filter=condition))
            shard.update(engine.UpdateOperation.delete_points_by_filter(condition))
            return there

        return await self._shard.run("delete", delete)

    # -- reading

    async def _fetch(self, ids: Sequence[str]) -> list[Document | None]:
        points = [point_id(id) for id in ids]
        records = await self._shard.run("fetch", lambda shard: shard.retrieve(points, True, False))
        found = {record.id: document_of(record.payload) for record in records}
        return [found.get(point) for point in points]

    async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
        assert self._layout is not None
        points = [point_id(id) for id in ids]
        records = await self._shard.run("vectors", lambda shard: shard.retrieve(points, False, True))
        found = {record.id: record.vector for record in records}
        self._check_found(ids, points, found, "vectors")
        return self._layout.embeddings([found[point] for point in points])

    async def _count(self, filter: Filter | None) -> int:
        request = engine.CountRequest(exact=True, filter=None if filter is None else edge_filter(filter))
        return await self._shard.run("count", lambda shard: shard.count(request))

    async def scan_ids(self) -> AsyncIterator[str]:
        offset = None
        while True:
            request = engine.ScrollRequest(offset=offset, limit=_PAGE, with_payload=[ID], with_vector=False)
            records, offset = await self._shard.run("scan", lambda shard, request=request: shard.scroll(request))
            for record in records:
                yield record.payload[ID]
            if offset is None:
                return

    # -- ranking

    async def _candidates(
        self, component: Component, query: M3Embeddings, limit: int, filter: Filter | None, exact: bool
    ) -> Ranking:
        assert self._layout is not None
        request = engine.QueryRequest(
            limit=limit,
            query=self._layout.nearest(component, query),
            filter=None if filter is None else edge_filter(filter),
            with_payload=[ID],
            params=_EXACT if exact or component == "sparse" else engine.SearchParams(hnsw_ef=2 * limit),
        )
        found = await self._shard.run("search", lambda shard: shard.query(request))
        return Ranking([point.payload[ID] for point in found], np.array([point.score for point in found], dtype=np.float32))

    async def _score(self, component: Component, query: M3Embeddings, ids: Sequence[str]) -> Float32:
        points = [point_id(id) for id in ids]
        request = engine.QueryRequest(
            limit=len(points),
            query=self._layout.nearest(component, query),
            filter=engine.Filter(must=[engine.HasIdCondition(set(points))]),
            params=_EXACT,
        )

        def score(shard):
            there = {record.id for record in shard.retrieve(points, False, False)}
            return there, {point.id: point.score for point in shard.query(request)}

        there, found = await self._shard.run("score", score)
        self._check_found(ids, points, there, "score")
        rows = len(query.multivectors[0]) if component == "multivector" else 1
        return np.array([found.get(point, 0.0) for point in points], dtype=np.float32) / np.float32(rows)

    def _check_found(self, ids, points, found, operation) -> None:
        for id, point in zip(ids, points, strict=True):
            if point not in found:
                raise NotFound(f"no document {id!r}.", backend=self.name, operation=operation)


def _batches(documents, embeddings):
    """Consecutive (start, stop, bytes) of about 8 MiB."""
    sizes = np.full(len(documents), 4 * embeddings.dense.shape[1] + 256)
    sizes += np.array([len(document.text.encode()) for document in documents])
    if embeddings.sparse is not None:
        sizes += 8 * np.diff(embeddings.sparse.indptr)
    if embeddings.multivectors is not None:
        sizes += 4 * embeddings.multivectors.dimension * embeddings.multivectors.counts
    start = size = 0
    for i, more in enumerate(sizes):
        if i > start and size + more > _BATCH_BYTES:
            yield start, i, int(size)
            start, size = i, 0
        size += more
    yield start, len(documents), int(size)
