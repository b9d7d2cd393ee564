"""The Milvus backend: one collection of documents, exact scores, in milvus-lite or on a server."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import anyio.to_thread

from m3_connectors.backends.base import Candidates, Lists, Schema
from m3_connectors.backends.capabilities import Capability, ServerInfo, refuse_unknown
from m3_connectors.backends.endpoint import Endpoint
from m3_connectors.backends.fetching import WHOLE, FetchingBackend, Known, Row
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.milvus import collection as collections
from m3_connectors.backends.milvus import layout as layouts
from m3_connectors.backends.milvus.connection import Connection
from m3_connectors.backends.milvus.errors import BACKEND
from m3_connectors.backends.milvus.filters import EVERYTHING, expression
from m3_connectors.backends.milvus.health import nothing_there, server_info
from m3_connectors.backends.milvus.naming import id_of, key_of
from m3_connectors.backends.milvus.reading import TEXTS, Reader, fields_of
from m3_connectors.backends.milvus.rows import document_of, entities
from m3_connectors.backends.milvus.searching import Searcher
from m3_connectors.backends.milvus.writing import Writer
from m3_connectors.backends.retry import RetryPolicy
from m3_connectors.backends.together import SingleFlight, together
from m3_connectors.backends.urls import redacted
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, M3Embeddings
from m3_connectors.errors import CollectionNotFound, InvalidInput, NotFound
from m3_connectors.filters import Filter
from m3_connectors.search import Key

_PORT = 19_530
_OPTIONS = ("index", "max_row_bytes", "batch_bytes")
_EMBEDDED = frozenset(
    {
        Capability.PERSISTENT,
        Capability.EXACT,
        Capability.DEADLINES,
        Capability.DENSE_INDEX,
        Capability.COMPACT,
    }
)
"""The capabilities of milvus-lite in this process."""

_DOCUMENTS_AT_ONCE = 256
"""The number of whole texts in one response."""

_FETCHED_RATHER_THAN_SEARCHED = 64
"""Up to this number of missing scores it is faster to fetch the vectors than to search among the ids."""


class MilvusBackend(FetchingBackend):
    """One collection in Milvus.

    Args:
        where: A server's endpoint, or the data directory of the embedded milvus-lite.
        collection: The name of the collection.
        index: The dense index of a new collection. ``FLAT`` scans every vector (exact; the default for
            milvus-lite). ``HNSW`` is approximate in which documents are found (the default for servers).
        max_row_bytes: The maximum size of an entity; it must fit in a message of the server's log, 2 MiB with
            Pulsar. The multi-vector of a longer document is stored in parts.
        batch_bytes: The maximum size of a write request.
    """

    name: ClassVar[str] = BACKEND
    capabilities = _EMBEDDED | {Capability.KEY, Capability.PASSWORD, Capability.AUTHORITY}

    def __init__(
        self,
        where: Endpoint | Path,
        collection: str = "documents",
        *,
        index: str | None = None,
        max_row_bytes: int = 1_500_000,
        batch_bytes: int = 16 * 2**20,
        patience: RetryPolicy | None = None,
    ) -> None:
        if index not in (None, *layouts.DENSE_INDEXES):
            raise InvalidInput(f"index is {index!r}.\n  Use one of {', '.join(layouts.DENSE_INDEXES)}.")
        for name, value in (("max_row_bytes", max_row_bytes), ("batch_bytes", batch_bytes)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 2**17:
                raise InvalidInput(f"{name} is {value!r}.\n  Pass a whole number of bytes >= {2**17}.")
        self.collection = collection
        if isinstance(where, Path):
            self.capabilities = _EMBEDDED
        self._where = where
        self._index = index
        self._max_row_bytes = max_row_bytes
        self._batch_bytes = batch_bytes
        self._patience = patience or RetryPolicy()
        self._connected: Connection | None = None
        self._connecting: SingleFlight[Connection] = SingleFlight()
        self._reader: Reader | None = None
        self._searcher: Searcher | None = None
        self._writer: Writer | None = None

    @classmethod
    def from_url(cls, url: str, collection: str, options: Mapping[str, Any]) -> MilvusBackend:
        """Return the backend of ``milvus:PATH`` (embedded) or ``milvus+http(s)://HOST[:PORT][/DATABASE]``.

        Raises:
            InvalidInput: The URL is not valid, or an option is unknown.
            Unsupported: The option belongs to other stores.
        """
        if urlsplit(url).scheme == "milvus":
            path = url.removeprefix("milvus:")
            if not path or path.startswith("//"):
                raise InvalidInput(
                    f"{redacted(url)!r} does not name a data directory.\n  Use milvus:./data.db.\n"
                    f"  A server is milvus+http://HOST:{_PORT}."
                )
            left = dict(options)
            default = RetryPolicy()
            patience = RetryPolicy(
                left.pop("timeout_seconds", default.timeout_seconds),
                left.pop("attempts", default.attempts),
                left.pop("total_seconds", default.total_seconds),
            )
            refuse_unknown("milvus:FILE", _EMBEDDED, left, _OPTIONS)
            return cls(Path(path).expanduser(), collection, **left, patience=patience)
        endpoint, left = Endpoint.parse(
            url,
            options,
            default_port=_PORT,
            environment=os.environ,
            declared=cls.capabilities,
            own=_OPTIONS,
        )
        return cls(endpoint, collection, **left, patience=endpoint.patience)

    async def server(self) -> ServerInfo:
        if self._is_nowhere():
            return nothing_there(self._where)
        return await server_info(await self._connection(), self._where, self.collection)

    async def collections(self) -> list[CollectionInfo]:
        if self._is_nowhere():
            raise NotFound(
                f"there is nothing at {self._where}.\n  Check the path, or index documents into it first.",
                backend=self.name,
                operation="list",
            )
        return await collections.listed(await self._connection())

    # -- the collection

    async def _create(self, schema: Schema) -> None:
        connection = await self._connection()
        await collections.create(connection, self.collection, schema, self._new_index(connection))
        # The collection is read back because milvus-lite silently drops what it does not support.
        await self._open()

    async def _open(self) -> Schema:
        if self._is_nowhere():
            # Only create makes a data directory, so that a mistyped path does not.
            raise CollectionNotFound(
                f'there is no collection "{self.collection}": {self._where} does not exist.\n'
                "  Check the path, or index documents into it first.",
                backend=self.name,
                operation="open",
            )
        connection = await self._connection()
        layout = await collections.opened(connection, self.collection, self._new_index(connection))
        self._reader = Reader(connection, layout)
        self._searcher = Searcher(connection, self._reader)
        self._writer = Writer(connection, layout, self._reader, self._batch_bytes)
        return layout.schema

    def _new_index(self, connection: Connection) -> str:
        return self._index or ("FLAT" if connection.is_lite else "HNSW")

    async def _drop(self) -> None:
        await collections.drop(await self._connection(), self.collection)
        self._reader = self._searcher = self._writer = None

    async def close(self) -> None:
        connection, self._connected = self._connected, None
        writer, self._writer = self._writer, None
        self._reader = self._searcher = self._schema = None
        if connection is not None:
            try:
                if writer is not None:
                    await writer.settle()
            finally:
                await connection.close()

    async def _connection(self) -> Connection:
        return self._connected or await self._connecting.of(self._connect)

    async def _connect(self) -> Connection:
        if isinstance(self._where, Endpoint):
            self._connected = await Connection.to(self._where)
        else:
            self._connected = await Connection.embedded(self._where, self._patience)
        return self._connected

    def _is_nowhere(self) -> bool:
        """Whether the data directory of the embedded engine does not exist."""
        return self._connected is None and isinstance(self._where, Path) and not self._where.exists()

    @property
    def _reads(self) -> Reader:
        self._check_open()
        assert self._reader is not None
        return self._reader

    @property
    def _searches(self) -> Searcher:
        self._check_open()
        assert self._searcher is not None
        return self._searcher

    @property
    def _writes(self) -> Writer:
        self._check_open()
        assert self._writer is not None
        return self._writer

    # -- writing

    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        layout = self._reads.layout
        packed = await anyio.to_thread.run_sync(entities, layout, documents, embeddings, self._max_row_bytes)
        await self._writes.upsert(packed)

    async def _delete(self, ids: Sequence[str]) -> int:
        return await self._writes.delete(list(dict.fromkeys(map(key_of, ids))))

    async def _delete_where(self, filter: Filter) -> int:
        return await self._writes.delete_where(self._expression(filter))

    async def optimize(self) -> None:
        """Flush, wait until a server's indexes are complete, and remove parts that no document refers to."""
        await self._writes.optimize()

    # -- reading

    async def _fetch(self, ids: Sequence[str]) -> list[Document | None]:
        keys = [key_of(id) for id in ids]
        rows = await self._reads.rows("fetch", keys, TEXTS, at_once=_DOCUMENTS_AT_ONCE)
        found = {key: document_of(row) for key, row in rows.items()}
        return [found.get(key) for key in keys]

    async def _present(self, ids: Sequence[str]) -> set[str]:
        return {id_of(key) for key in await self._reads.rows("fetch", map(key_of, ids), [])}

    async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
        return await self._reads.embeddings([key_of(id) for id in ids])

    async def _count(self, filter: Filter | None) -> int:
        return await self._reads.count(self._expression(filter))

    def scan_ids(self) -> AsyncIterator[str]:
        return self._passing_ids(None)

    async def _passing_ids(self, filter: Filter | None) -> AsyncIterator[str]:
        async for page in self._reads.pages("scan", self._expression(filter) or EVERYTHING, ["key"]):
            for row in page:
                yield id_of(row["key"])

    # -- ranking

    async def _list(self, ask: Lists, component: Component) -> tuple[Mapping[str, Row], Sequence[float]]:
        limit, expression = ask.depths[component], self._expression(ask.filter)
        exact_scan = component == "dense" and ask.exact and not self._reads.layout.exact_dense
        if exact_scan or limit > self._searches.most_results:
            scanned = await self._searches.scan_for(component, ask.query, limit, expression)
            return {key: {} for key in scanned}, list(scanned.values())
        if _is_short(ask):
            fields = [*TEXTS, *fields_of(ask.welcome)]
        else:
            # A dense list includes the small sparse vectors, and the numbers of multi-vector rows.
            fields = ["sparse"] if "sparse" in ask.welcome and component == "dense" else []
            fields += ["rows"] if "multivector" in ask.welcome else []
        hits = await self._searches.hits(component, ask.query, limit, expression, fields, ask.width)
        return {hit["key"]: hit for hit in hits}, [hit["distance"] for hit in hits]

    def key(self, id: str) -> Key:
        return key_of(id)

    async def ids(self, found: Candidates) -> list[str]:
        return [id_of(key) for key in found.keys]

    async def _scores(self, missing: Mapping[Component, Sequence[str]], query: M3Embeddings) -> Known:
        # Multi-vectors must be fetched; for few documents everything is fetched, with all that is missing in
        # one request. Otherwise the store searches among the keys.
        union = list(dict.fromkeys(key for keys in missing.values() for key in keys))
        if "multivector" in missing or len(union) <= _FETCHED_RATHER_THAN_SEARCHED:
            return await self._reads.fetched_scores(list(missing), query, union)
        searched = self._searches.searched_scores
        found = await together(
            [functools.partial(searched, name, query, keys) for name, keys in missing.items()]
        )
        return dict(zip(missing, found, strict=True))

    def _expression(self, filter: Filter | None) -> str:
        return expression(filter, terms_as_array=self._reads.layout.terms_as_array)


def _is_short(ask: Lists) -> bool:
    """Whether a list is short enough that its hits include whole documents and vectors."""
    return ask.documents and max(ask.depths.values()) <= WHOLE + 1
