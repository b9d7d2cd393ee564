"""A Qdrant server as a store: one collection, three named vectors, exact scores.

A search takes two round trips: candidate lists, then all missing scores of all candidates, requested by id.
The server computes the scores. A document whose multi-vector had to be split is scored row by row over its
parts; these scores are combined here. Rows of 8 bits and fewer are read as bytes and scored here (``row_reading``).
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, ClassVar, get_args

from qdrant_client import models

from m3_connectors.backends.base import Backend, Candidates, Lists, Schema
from m3_connectors.backends.capabilities import Capability, ServerInfo
from m3_connectors.backends.checks import check_found
from m3_connectors.backends.chunks import by_bytes, by_count
from m3_connectors.backends.endpoint import Endpoint
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.qdrant.layout import ROWS, Layout, Vector
from m3_connectors.backends.qdrant.payload import ID, document_of
from m3_connectors.backends.qdrant.server import collection as collections
from m3_connectors.backends.qdrant.server.collection import (
    INDEX_TYPES,
    IndexType,
    Limits,
    check_ours,
    check_scorable,
    check_vectors,
    info_of,
    limits_of,
    make_indexes,
    wait_optimized,
)
from m3_connectors.backends.qdrant.server.connection import Connection, Transport
from m3_connectors.backends.qdrant.server.errors import BACKEND, TooLarge, not_ours
from m3_connectors.backends.qdrant.server.filters import server_filter
from m3_connectors.backends.qdrant.server.health import server_info
from m3_connectors.backends.qdrant.server.reading import ExactScores, pages
from m3_connectors.backends.qdrant.server.row_reading import RowReader, encoded_rows
from m3_connectors.backends.qdrant.server.rows import distinct_points, point_of, points_of
from m3_connectors.backends.qdrant.server.searching import Listing
from m3_connectors.backends.qdrant.server.wire import Ask, Found, Record, applied
from m3_connectors.backends.qdrant.server.writing import write
from m3_connectors.backends.together import together
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, M3Embeddings
from m3_connectors.errors import (
    CollectionNotFound,
    InvalidInput,
)
from m3_connectors.filters import Filter

_OPTIONS = ("transport", "grpc_port", "indexes", "shards")
_IDS_AT_ONCE = 1000
_DOCUMENTS_AT_ONCE = 256
_VECTORS_AT_ONCE = 4
"""Concurrent requests for one document each: a long document's rows take 32 MB, and their number is not known
yet."""


class QdrantBackend(Backend):
    """One collection on one server; any number of processes may use it at the same time.

    Args:
        connection: The connection to the server.
        collection: The name of the collection.
        indexes: Metadata fields that get a payload index, with their type.
        shards: The number of shards of a new collection; the server chooses if it is None.
    """

    name: ClassVar[str] = BACKEND
    capabilities = frozenset(
        {
            Capability.PERSISTENT,
            Capability.EXACT,
            Capability.COMPACT,
            Capability.KEY,
            Capability.AUTHORITY,
            Capability.UNVERIFIED,
            Capability.DEADLINES,
            Capability.SHARDS,
            Capability.FIELD_INDEXES,
        }
    )

    def __init__(
        self,
        connection: Connection,
        collection: str = "documents",
        *,
        indexes: Mapping[str, IndexType] | None = None,
        shards: int | None = None,
    ) -> None:
        self.collection = collection
        self._connection = connection
        self._indexes = dict(indexes or {})
        self._shards = shards
        self._layout: Layout | None = None
        self._limits = Limits()
        self._listing: Listing | None = None
        self._row_reader: RowReader | None = None
        """Scores the rows that the server does not."""

    @classmethod
    def from_url(cls, url: str, collection: str, options: Mapping[str, Any]) -> QdrantBackend:
        """Return the backend of ``qdrant+http(s)://HOST[:6333]``.

        Options in addition to the common ones of ``Endpoint``: ``transport`` ("auto", "grpc", "rest"),
        ``grpc_port`` (REST port + 1), ``indexes`` (metadata field to "keyword", "number", "date" or "bool"),
        ``shards``.

        Raises:
            InvalidInput: The URL or an option is not valid.
        """
        endpoint, left = Endpoint.parse(
            url,
            options,
            default_port=6333,
            environment=os.environ,
            declared=cls.capabilities,
            own=_OPTIONS,
        )
        transport = left.get("transport", "auto")
        if transport not in get_args(Transport):
            raise InvalidInput(f"transport is {transport!r}.\n  Use one of {', '.join(get_args(Transport))}.")
        indexes = left.get("indexes") or {}
        for field, kind in indexes.items():
            if kind not in INDEX_TYPES:
                raise InvalidInput(f"indexes[{field!r}] is {kind!r}.\n  Use one of {', '.join(INDEX_TYPES)}.")
        grpc_port = left.get("grpc_port") or os.environ.get("M3_QDRANT_GRPC_PORT") or endpoint.port + 1
        if not str(grpc_port).isdecimal() or not 0 < int(grpc_port) < 65536:
            raise InvalidInput(f"grpc_port is {grpc_port!r}.\n  Pass a port number from 1 to 65535.")
        connection = Connection(endpoint, collection, transport, int(grpc_port))
        return cls(connection, collection, indexes=indexes, shards=left.get("shards"))

    async def server(self) -> ServerInfo:
        await self._connection.connect()
        # The version information is public; this request checks the credentials.
        return server_info(self._connection, await info_of(self._connection, self.collection, "describe"))

    async def collections(self) -> list[CollectionInfo]:
        await self._connection.connect()
        return await collections.on_server(self._connection)

    async def optimize(self) -> None:
        """Wait until the server has built its graphs, which it does after writes; at most an hour."""
        self._check_open()
        await wait_optimized(self._connection, self.collection)

    # -- the collection

    async def _create(self, schema: Schema) -> None:
        await self._connection.connect()
        await collections.create(self._connection, self.collection, schema, self._shards)
        await self._open()

    async def _open(self) -> Schema:
        await self._connection.connect()
        info = await info_of(self._connection, self.collection, "open")
        if info is None:
            raise CollectionNotFound(
                f'there is no collection "{self.collection}" at {self._connection.url}.\n'
                "  Create it, or list the collections with m3 collections URL.",
                backend=BACKEND,
                operation="open",
            )
        schema = check_ours(info, self.collection, "open")
        check_vectors(info, self.collection, schema)
        self._layout, self._limits = Layout.of(schema), limits_of(info)
        self._row_reader = None if self._layout.scores_rows else RowReader(self._layout, self._read_rows)
        check_scorable(info, self.collection, self._layout, self._limits)
        self._listing = Listing(self._connection, self.collection, self._limits, self._search_all)
        self.capabilities = type(self).capabilities - (
            {Capability.EXACT} if not self._limits.exact else set()
        )
        await make_indexes(self._connection, self.collection, info, self._indexes)
        return schema

    async def _drop(self) -> None:
        await self._connection.connect()
        await collections.drop(self._connection, self.collection)

    async def close(self) -> None:
        self._schema = None
        await self._connection.close()

    # -- writing

    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        layout = self._opened()
        layout.check_rows(documents, embeddings)
        await write(self._connection, list(points_of(layout, documents, embeddings)), self._limits.upserts)

    async def _delete(self, ids: Sequence[str]) -> int:
        self._opened()
        deleted = 0
        for points in by_count(distinct_points(ids), _IDS_AT_ONCE):
            there = [record.point for record in await self._records(points, "delete")]
            await self._remove_points(there)
            deleted += len(there)
        return deleted

    async def _delete_where(self, filter: Filter) -> int:
        there = await self._count(filter)
        condition = server_filter(filter)
        if not there:
            return 0
        with contextlib.suppress(TooLarge):  # one request would remove more than the rate limit allows
            await self._remove(models.FilterSelector(filter=condition))
            return there
        listed = pages(self._connection, self.collection, self._limits, filter=condition, with_id=False)
        points = [str(record.id) async for page in listed for record in page]
        await self._remove_points(points)
        return len(points)

    async def _remove_points(self, points: Sequence[str]) -> None:
        """Delete points by id."""

        def remove(some: Sequence[str]) -> Awaitable[None]:
            return self._removal(models.PointIdsList(points=list(some)))

        for some in by_count(points, min(_IDS_AT_ONCE, self._limits.writes or _IDS_AT_ONCE)):
            await self._connection.halving("delete", some, remove)

    async def _remove(self, selector: models.PointsSelector) -> None:
        await self._connection.call("delete", functools.partial(self._removal, selector))

    def _removal(self, selector: models.PointsSelector) -> Awaitable[None]:
        """Make one try of a deletion."""
        delete = functools.partial(self._connection.client.delete, self.collection, selector, wait=True)
        return applied("delete", delete)

    # -- reading

    async def _fetch(self, ids: Sequence[str]) -> list[Document | None]:
        self._opened()
        found: dict[str, Document] = {}
        for points in by_count(distinct_points(ids), _DOCUMENTS_AT_ONCE):
            for record in await self._records(points, "fetch", payload=True):
                found[record.point] = self._document(record)
        return [found.get(point_of(id)) for id in ids]

    async def _present(self, ids: Sequence[str]) -> set[str]:
        self._opened()
        there = set(await self._stored([point_of(id) for id in ids]))
        return {id for id in ids if point_of(id) in there}

    async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
        layout = self._opened()
        found: dict[str, Mapping[str, Any]] = {}

        async def read(points: Sequence[str]) -> None:
            for record in await self._records(points, "vectors", payload=(ID,), vectors=True):
                rows = {} if self._row_reader is None else {ROWS: encoded_rows(layout, record)}
                found[record.point] = {**record.vectors, **rows}

        runs = by_count(distinct_points(ids), 1 if layout.multivectors else _DOCUMENTS_AT_ONCE)
        await together([functools.partial(read, run) for run in runs], _VECTORS_AT_ONCE)
        points = [point_of(id) for id in ids]
        check_found(ids, points, found, BACKEND, "vectors")
        return layout.embeddings([found[point] for point in points])

    async def _count(self, filter: Filter | None) -> int:
        self._opened()
        client = self._connection.client
        condition = None if filter is None else server_filter(filter)
        if not self._limits.exact:  # strict mode refuses an exact count, too
            listed = pages(self._connection, self.collection, self._limits, filter=condition, with_id=False)
            return sum([len(page) async for page in listed])
        call = functools.partial(client.count, self.collection, count_filter=condition, exact=True)
        return int((await self._connection.call("count", call)).count)

    def scan_ids(self) -> AsyncIterator[str]:
        return self._passing_ids(None)

    async def _passing_ids(self, filter: Filter | None) -> AsyncIterator[str]:
        self._check_open()
        condition = None if filter is None else server_filter(filter)
        listed = pages(self._connection, self.collection, self._limits, filter=condition, with_id=True)
        async for page in listed:
            for record in page:
                yield str((record.payload or {})[ID])

    # -- ranking

    async def lists(self, ask: Lists) -> Candidates:
        scores, listing = self._exact_scores(ask.query), self._lists()
        lists = await together([functools.partial(listing.best, scores, name, ask) for name in ask.depths])
        return Candidates.union(dict(zip(ask.depths, lists, strict=True)))

    async def complete(
        self,
        query: M3Embeddings,
        found: Candidates,
        components: Sequence[Component],
        *,
        documents: bool = False,
    ) -> None:
        async def score() -> None:
            await self._score(query, found, components)

        async def fetch() -> None:
            ids = await self.ids(found)
            there = zip(ids, await self._fetch(ids), strict=True)
            found.bring({id: document for id, document in there if document is not None})

        await together([score, fetch] if documents else [score])

    async def _score(self, query: M3Embeddings, found: Candidates, components: Sequence[Component]) -> None:
        missing = {name: ids for name in components if (ids := found.missing(name))}
        wanted = {name: distinct_points(ids) for name, ids in missing.items()}
        scores = await self._scores(query, wanted) if wanted else {}
        for name, ids in missing.items():
            of_points = scores[name]
            if name == "sparse":
                # A missing score means that no token is shared, or that the document does not exist.
                silent = [point for point in wanted[name] if point not in of_points]
                of_points |= dict.fromkeys(silent if found.listed else await self._stored(silent), 0.0)
            scored = [id for id in ids if point_of(id) in of_points]
            found.learn(name, scored, [of_points[point_of(id)] for id in scored])

    async def _scores(
        self, query: M3Embeddings, wanted: Mapping[Component, Sequence[str]]
    ) -> dict[Component, dict[str, float]]:
        """Return scores by component and point; those of rows that are read here in the same requests as theirs."""
        reader = self._row_reader if "multivector" in wanted else None
        if reader is None:
            return await self._exact_scores(query).of(wanted)
        points = wanted["multivector"]
        here = [name for name, some in wanted.items() if set(points).issuperset(some)]
        others = {name: some for name, some in wanted.items() if name not in here}
        scores: dict[Component, dict[str, float]] = {}

        async def read() -> None:
            scores.update(await reader.scores(query, points, here))

        async def ask() -> None:
            scores.update(await self._exact_scores(query).of(others))

        await together([read, ask] if others else [read])
        return scores

    async def _read_rows(self, points: Sequence[str], names: Sequence[str]) -> list[Record]:
        return await self._records(points, "score", payload=(ID,), vectors=names)

    async def _stored(self, points: Sequence[str]) -> list[str]:
        """Return the points that are stored."""
        runs = by_count(points, _IDS_AT_ONCE)
        return [record.point for some in runs for record in await self._records(some, "score")]

    # -- requests

    def _exact_scores(self, query: M3Embeddings) -> ExactScores:
        return ExactScores(self._opened(), query, self._limits, self._search_all, self._read)

    def _lists(self) -> Listing:
        self._opened()
        assert self._listing is not None
        return self._listing

    async def _search_all(self, asks: Sequence[Ask]) -> list[list[Found]]:
        wire = self._connection.wire
        answers: list[list[Found]] = []
        for run in by_bytes(asks, lambda ask: ask.bytes * wire.bytes_per_float // 4, wire.message_bytes):
            for batch in by_count(run, self._limits.searches or len(run)):
                for some in await self._connection.halving("search", batch, wire.search):
                    answers += some
        return answers

    async def _read(self, points: Sequence[str], vector: str) -> Mapping[str, Vector]:
        """Return one named vector of each point that is stored and has it."""
        wire, width = self._connection.wire, self.schema.model.dimension
        most = max(1, wire.message_bytes // (wire.bytes_per_float * width))
        found: dict[str, Vector] = {}
        for some in by_count(points, min(_IDS_AT_ONCE, most)):
            for record in await self._records(some, "search", vectors=(vector,)):
                if vector in record.vectors:
                    found[record.point] = record.vectors[vector]
        return found

    async def _records(
        self,
        points: Sequence[str],
        operation: str,
        *,
        payload: bool | Sequence[str] = False,
        vectors: bool | Sequence[str] = False,
    ) -> list[Record]:
        retrieve = functools.partial(self._connection.wire.retrieve, payload=payload, vectors=vectors)
        if not points:
            return []
        return [r for some in await self._connection.halving(operation, points, retrieve) for r in some]

    def _opened(self) -> Layout:
        self._check_open()
        assert self._layout is not None
        return self._layout

    def _document(self, record: Record) -> Document:
        try:
            return document_of(record.payload)
        except (KeyError, ValueError) as error:
            raise not_ours(record.point, self.collection) from error
