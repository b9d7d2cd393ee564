"""Elasticsearch as a store: it lists candidates, and keeps exact vectors that are scored in this process."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

import anyio

from m3_connectors.backends.base import Lists, Schema, ScoredId
from m3_connectors.backends.capabilities import Capability, ServerInfo
from m3_connectors.backends.elasticsearch import collection as collections
from m3_connectors.backends.elasticsearch import searching as ranking
from m3_connectors.backends.elasticsearch.connection import Connection
from m3_connectors.backends.elasticsearch.filters import query_of
from m3_connectors.backends.elasticsearch.health import server_info
from m3_connectors.backends.elasticsearch.layout import BACKEND, ROWS, SPARSE_BLOB, alias_of
from m3_connectors.backends.elasticsearch.reading import Reader, count, pages
from m3_connectors.backends.elasticsearch.rows import Version, documents_only
from m3_connectors.backends.elasticsearch.writing import Refresh, Writer
from m3_connectors.backends.endpoint import Endpoint
from m3_connectors.backends.fetching import WHOLE, FetchingBackend, Known, Row
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.together import together
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import InvalidInput
from m3_connectors.filters import Filter
from m3_connectors.methods import Method
from m3_connectors.search import search

_PORT = 9200
_SEARCHES_AT_ONCE = 16

_SCANNED_AT_ONCE = 1000
"""What a scan holds between two requests; its point in time is kept while these documents are used."""


class ElasticsearchBackend(FetchingBackend):
    """One collection: an alias and the index behind it."""

    name: ClassVar[str] = BACKEND
    capabilities = frozenset(Capability) - {Capability.FIELD_INDEXES, Capability.DENSE_INDEX}
    settles_ties = True

    def __init__(
        self,
        endpoint: Endpoint,
        collection: str = "documents",
        *,
        refresh: Refresh = True,
        shards: int | None = None,
        replicas: int | None = None,
    ) -> None:
        """Set up access to a collection on a server; nothing is sent yet.

        Args:
            endpoint: The server.
            collection: The name of the collection.
            refresh: When writes become visible to searches. ``True``: before a write returns, which creates a
                small segment each time, so use few large writes. ``"wait_for"``: the same without that
                segment, but each write takes up to the index's refresh interval (1 s). ``False``: within that
                interval after the write.
            shards: The number of shards of a new index; None for the server's default, 1.
            replicas: The number of replicas of a new index; None for the server's default, 1.

        Raises:
            InvalidInput: An option or the collection's name is not valid.
        """
        if refresh not in (True, False, "wait_for"):
            raise InvalidInput(f"refresh is {refresh!r}.\n  Pass True, False or 'wait_for'.")
        for option, value, least in (("shards", shards, 1), ("replicas", replicas, 0)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InvalidInput(f"{option} is {value!r}.\n  Pass a whole number >= {least}.")
        self.collection = collection
        self.refresh = refresh
        self._shards, self._replicas = shards, replicas
        self._alias = alias_of(collection)
        self._connection = Connection(endpoint)
        # More concurrent searches would only wait for each other, in the event loop and for connections.
        self._searches = anyio.CapacityLimiter(_SEARCHES_AT_ONCE)
        self._reader: Reader | None = None
        self._writer: Writer | None = None

    @classmethod
    def from_url(cls, url: str, collection: str, options: Mapping[str, Any]) -> ElasticsearchBackend:
        """Return the backend of ``elasticsearch+http(s)://[USER:PASSWORD@]HOST[:9200]``.

        Raises:
            InvalidInput: The URL or an option is not valid.
        """
        endpoint, left = Endpoint.parse(
            url,
            options,
            default_port=_PORT,
            environment=os.environ,
            declared=cls.capabilities,
            own=("refresh", "shards", "replicas"),
        )
        return cls(endpoint, collection, **left)

    async def server(self) -> ServerInfo:
        return await server_info(self._connection, self._alias, self.collection)

    async def collections(self) -> list[CollectionInfo]:
        return await collections.in_cluster(self._connection)

    # -- the collection

    async def _create(self, schema: Schema) -> None:
        await collections.create(
            self._connection, self.collection, schema, self.refresh, self._shards, self._replicas
        )
        self._use(schema)

    async def _open(self) -> Schema:
        schema = await collections.opened(self._connection, self.collection, self.refresh)
        self._use(schema)
        return schema

    async def _drop(self) -> None:
        await collections.drop(self._connection, self.collection)

    async def optimize(self) -> None:
        """Merge each shard into one segment, which is faster to search and without deleted documents."""
        self._check_open()
        await collections.merge(self._connection, self._alias)

    async def close(self) -> None:
        await self._connection.close()
        self._reader = self._writer = self._schema = None

    def _use(self, schema: Schema) -> None:
        self._reader = Reader(self._connection, self._alias, schema)
        self._writer = Writer(self._connection, self._alias, schema, self.refresh)

    # -- writing

    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        await self._write.upsert(documents, embeddings)

    async def _recorded(self) -> Schema:
        return await collections.recorded(self._connection, self.collection)

    async def _record(self, schema: Schema) -> None:
        await collections.record(self._connection, self.collection, schema)
        self._use(schema)

    async def _lacking(self, component: Component, limit: int) -> list[Document]:
        return await self._reads.lacking(component, limit)

    async def _rewrite(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        there = await self._reads.versions([document.id for document in documents])
        versions: dict[str, Version] = {}
        same: list[int] = []
        for i, document in enumerate(documents):
            stored, version = there.get(document.id, (None, None))
            if version is not None and stored == document:
                same.append(i)
                versions[document.id] = version
        if same:
            kept = M3Embeddings.concatenate([embeddings[i] for i in same])
            await self._write.upsert([documents[i] for i in same], kept, versions)

    async def _delete(self, ids: Sequence[str]) -> int:
        return await self._write.delete(list(dict.fromkeys(ids)))

    async def _delete_where(self, filter: Filter) -> int:
        passing = documents_only(query_of(filter))
        ids = [
            hit["_id"]
            async for hits in pages(self._connection, self._alias, "delete", passing)
            for hit in hits
        ]
        return await self._write.delete(ids) if ids else 0

    # -- reading

    async def _fetch(self, ids: Sequence[str]) -> list[Document | None]:
        found = await self._reads.documents(list(dict.fromkeys(ids)))
        return [found.get(id) for id in ids]

    async def _present(self, ids: Sequence[str]) -> set[str]:
        return await self._reads.present(ids)

    async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
        return await self._reads.embeddings(ids)

    async def _count(self, filter: Filter | None) -> int:
        return await count(self._connection, self._alias, _query(filter))

    def scan_ids(self) -> AsyncIterator[str]:
        return self._passing_ids(None)

    async def _passing_ids(self, filter: Filter | None) -> AsyncIterator[str]:
        self._check_open()
        passing = documents_only(_query(filter))
        found = pages(self._connection, self._alias, "scan", passing, size=_SCANNED_AT_ONCE)
        # Closed here, because a scan that is abandoned would otherwise keep the server's point in time.
        async with contextlib.aclosing(found):
            async for hits in found:
                for hit in hits:
                    yield hit["_id"]

    # -- ranking

    async def _search(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None, exact: bool
    ) -> list[ScoredId]:
        total_seconds = self._connection.endpoint.patience.total_seconds
        async with self._connection.turn("search", self._searches, total_seconds):
            return await search(self, self.schema.components, query, method, k, filter, exact)

    async def _list(self, ask: Lists, component: Component) -> tuple[Mapping[str, Row], Float32]:
        limit, condition = ask.depths[component], _query(ask.filter)
        whole = self._comes_whole(ask, component)
        if whole:
            fields = [*self._reads.blobs(ask.welcome), *([ROWS] if "multivector" in ask.welcome else [])]
        else:
            # The number of multi-vector rows, and the small blobs that s_lex is computed from.
            fields = [ROWS] if "multivector" in self.schema.components else []
            fields += [SPARSE_BLOB] if "sparse" in ask.welcome and not ask.documents else []
        if component == "sparse":
            hits, scores = await ranking.sparse_list(
                self._reads, ask.query, limit, condition, fields, texts=whole
            )
        else:
            where, width = (self._connection, self._alias), ask.width
            hits, scores = await ranking.dense_list(
                *where, ask.query.dense[0], limit, condition, ask.exact, fields, width=width, texts=whole
            )
        return {hit["_id"]: hit for hit in hits}, scores

    def _comes_whole(self, ask: Lists, component: Component) -> bool:
        """Whether a list is short enough that its hits include their texts and blobs."""
        limit = ask.depths[component]
        if not ask.documents or limit > WHOLE or ask.exact:
            return False
        if component == "sparse" and ask.welcome:
            return False  # the list is longer than the limit, so texts are requested later, for the hits only
        return "multivector" not in ask.welcome or self._reads.likely_fit(limit)

    async def _scores(self, missing: Mapping[Component, Sequence[str]], query: M3Embeddings) -> Known:
        # Blobs are read once for both components.
        from_blobs = [name for name in missing if name != "dense"]
        ids = list(dict.fromkeys(id for name in from_blobs for id in missing[name]))

        async def dense() -> Known:
            return {"dense": await self._reads.dense_scores(query.dense[0], missing["dense"])}

        calls = [dense] if "dense" in missing else []
        if ids:
            calls.append(functools.partial(self._reads.fetched_scores, from_blobs, query, ids))
        return {name: known for part in await together(calls) for name, known in part.items()}

    @property
    def _reads(self) -> Reader:
        self._check_open()
        assert self._reader is not None
        return self._reader

    @property
    def _write(self) -> Writer:
        self._check_open()
        assert self._writer is not None
        return self._writer


def _query(filter: Filter | None) -> dict[str, Any] | None:
    return None if filter is None else query_of(filter)
