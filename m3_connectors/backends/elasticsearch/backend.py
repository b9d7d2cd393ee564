"""Elasticsearch as a store: it lists candidates, and keeps exact vectors that are scored in this process."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

import anyio

from m3_connectors.backends.base import Backend, Candidates, Lists, Schema, ScoredId
from m3_connectors.backends.capabilities import Capability, ServerInfo
from m3_connectors.backends.elasticsearch import searching as ranking
from m3_connectors.backends.elasticsearch.alterations import faults, has_own_dynamic_templates
from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.filters import query_of
from m3_connectors.backends.elasticsearch.health import check_version, server_info
from m3_connectors.backends.elasticsearch.layout import (
    BACKEND,
    MULTIVECTOR_BLOB,
    PARTS,
    ROWS,
    SPARSE_BLOB,
    alias_of,
    droppable_index,
    first_index_of,
    index_body,
    listed,
    properties_of,
    read_schema,
)
from m3_connectors.backends.elasticsearch.merging import merge
from m3_connectors.backends.elasticsearch.paging import count, pages
from m3_connectors.backends.elasticsearch.reading import Known, Reader, blobs_of
from m3_connectors.backends.elasticsearch.rows import document_of, documents_only
from m3_connectors.backends.elasticsearch.writing import Refresh, Writer
from m3_connectors.backends.endpoint import Endpoint
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.together import together
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import AlreadyExists, CollectionNotFound, Corrupt, InvalidInput, Rejected
from m3_connectors.filters import Filter
from m3_connectors.methods import Method
from m3_connectors.search import search

_PORT = 9200
_WHOLE = 16
"""Up to this number, documents are returned with their texts and vectors in one response, whatever their
size."""

_SEARCHES_AT_ONCE = 16

_BLOBS: dict[Component, str] = {"sparse": SPARSE_BLOB, "multivector": MULTIVECTOR_BLOB}
"""The fields that the exact scores are computed from."""


class ElasticsearchBackend(Backend):
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
        self._version_checked = False
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
        # Closed and hidden indices are listed too; an index of another program is listed by its own name.
        answer = await self._connection.request(
            "list",
            "GET",
            "/_all",
            None,
            expand_wildcards="open,closed",
            filter_path="*.aliases,*.mappings._meta",
        )
        return listed(answer)

    # -- the collection

    async def _create(self, schema: Schema) -> None:
        if await self._behind_alias("create"):
            raise AlreadyExists(
                f'an index or alias "{self._alias}" already exists.\n'
                "  Open it, drop it, or use another collection name.",
                backend=BACKEND,
                operation="create",
            )
        path = f"/{segment(first_index_of(self._alias))}"
        body = index_body(schema, self._alias, self._shards, self._replicas)
        await self._connection.once("create", "PUT", path, body)
        # The index is read back because the server merges its index templates into the request.
        index = next(iter((await self._behind_alias("create")).values()))
        if not has_own_dynamic_templates(index["mappings"]):
            # The dynamic templates of an index template come first; an update replaces them by ours.
            ours = {"dynamic_templates": body["mappings"]["dynamic_templates"]}
            await self._connection.request("create", "PUT", f"{path}/_mapping", ours)
            index = next(iter((await self._behind_alias("create")).values()))
        try:
            self._check_index(schema, index, "create")
        except Rejected:
            await self._connection.request("create", "DELETE", path)
            raise
        self._use(schema)

    async def _open(self) -> Schema:
        there = await self._behind_alias("open")
        schema = read_schema(there, self.collection)
        self._check_index(schema, next(iter(there.values())), "open")
        self._use(schema)
        return schema

    def _check_index(self, schema: Schema, index: Mapping[str, Any], operation: str) -> None:
        """Refuse an index that would return wrong results, or would never show what is written.

        Raises:
            Rejected: The index is new, and an index template of the server caused the fault.
            Corrupt: The index was changed after its creation.
        """
        where = {"backend": BACKEND, "operation": operation}
        fault = next(faults(index, properties_of(schema), self._alias), None)
        if fault is not None and operation == "create":
            raise Rejected(
                f"an index template of the server makes the new collection unusable: {fault.what}.\n"
                "  Exclude the collection from the template, or use another collection name. No index was "
                "created.",
                **where,
            )
        if fault is not None:
            raise Corrupt(f'collection "{self.collection}": {fault.what}.\n  {fault.remedy}', **where)
        never = index.get("settings", {}).get("index.refresh_interval", "").startswith("-")
        if never and self.refresh is not True:
            raise Rejected(
                f'index.refresh_interval of collection "{self.collection}" is -1, so with '
                f"refresh={self.refresh!r} searches would never see a write.\n"
                "  Connect with refresh=True, or set the interval.",
                **where,
            )

    async def _drop(self) -> None:
        there = await self._behind_alias("drop")
        if there:
            path = f"/{segment(droppable_index(there, self.collection))}"
            # A retry finds no index if the first try succeeded and its response was lost.
            with contextlib.suppress(CollectionNotFound):
                await self._connection.request("drop", "DELETE", path)

    async def optimize(self) -> None:
        """Merge each shard into one segment, which is faster to search and without deleted documents."""
        self._check_open()
        await merge(self._connection, self._alias)

    async def close(self) -> None:
        await self._connection.close()
        self._reader = self._writer = self._schema = None

    def _use(self, schema: Schema) -> None:
        self._reader = Reader(self._connection, self._alias, schema)
        self._writer = Writer(self._connection, self._alias, schema, self.refresh)

    async def _behind_alias(self, operation: str) -> dict[str, Any]:
        """Return the server's response about the alias; empty if there is no such alias.

        Raises:
            Unsupported: The server is too old.
        """
        if not self._version_checked:
            await check_version(self._connection, operation)
            self._version_checked = True
        try:
            answer: dict[str, Any] = await self._connection.request(
                operation, "GET", f"/{segment(self._alias)}", flat_settings="true"
            )
        except CollectionNotFound:
            return {}
        return answer

    # -- writing

    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        await self._write.upsert(documents, embeddings)

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
        found = await self._read.documents(list(dict.fromkeys(ids)))
        return [found.get(id) for id in ids]

    async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
        return await self._read.vectors(ids)

    async def _count(self, filter: Filter | None) -> int:
        return await count(self._connection, self._alias, _query(filter))

    async def scan_ids(self) -> AsyncIterator[str]:
        self._check_open()
        async for hits in pages(self._connection, self._alias, "scan", documents_only()):
            for hit in hits:
                yield hit["_id"]

    # -- ranking

    async def _search(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None, exact: bool
    ) -> list[ScoredId]:
        total_seconds = self._connection.endpoint.patience.total_seconds
        async with self._connection.turn("search", self._searches, total_seconds):
            return await search(self, self.schema.components, query, method, k, filter, exact)

    async def lists(self, ask: Lists) -> Candidates:
        lists = await together([functools.partial(self._list, ask, name) for name in ask.depths])
        found = Candidates.union(
            {
                name: ([hit["_id"] for hit in hits], scores)
                for name, (hits, scores) in zip(ask.depths, lists, strict=True)
            }
        )
        for name, (hits, _) in zip(ask.depths, lists, strict=True):
            await self._read_hits(ask, name, hits, found)
        return found

    async def _list(self, ask: Lists, component: Component) -> tuple[ranking.Hits, Float32]:
        """Return the hits of one list, with the fields that are needed to plan the next requests."""
        where, limit, condition = (self._connection, self._alias), ask.depths[component], _query(ask.filter)
        whole = self._comes_whole(ask, component)
        if whole:
            fields = [*blobs_of(ask.welcome), *([ROWS] if "multivector" in ask.welcome else [])]
        else:
            # The number of multi-vector rows, and the small blobs that s_lex is computed from.
            fields = [ROWS] if "multivector" in self.schema.components else []
            fields += [SPARSE_BLOB] if "sparse" in ask.welcome and not ask.documents else []
        if component == "sparse":
            return await ranking.sparse_list(*where, ask.query, limit, condition, fields, texts=whole)
        return await ranking.dense_list(
            *where, ask.query.dense[0], limit, condition, ask.exact, fields, width=ask.width, texts=whole
        )

    def _comes_whole(self, ask: Lists, component: Component) -> bool:
        """Whether a list is short enough that its hits include their texts and blobs."""
        limit = ask.depths[component]
        if not ask.documents or limit > _WHOLE or ask.exact:
            return False
        if component == "sparse" and ask.welcome:
            return False  # the list is longer than the limit, so texts are requested later, for the hits only
        return "multivector" not in ask.welcome or self._read.likely_fit(limit)

    async def _read_hits(
        self, ask: Lists, component: Component, hits: ranking.Hits, found: Candidates
    ) -> None:
        """Add what the fields of hits contain: scores, documents, and the sizes of multi-vectors."""
        if not hits:
            return
        self._read.note_rows(hits)
        if all("_source" in hit for hit in hits):
            found.bring({hit["_id"]: document_of(hit) for hit in hits})
        told = [
            name
            for name in ask.welcome
            if name != component
            and (blob := _BLOBS.get(name))
            and all(blob in hit.get("fields", {}) and PARTS not in hit["fields"] for hit in hits)
        ]
        ids = [hit["_id"] for hit in hits]
        for name, scores in (await self._read.scores_in(told, ask.query, hits)).items():
            found.learn(name, ids, scores)

    async def complete(
        self,
        query: M3Embeddings,
        found: Candidates,
        components: Sequence[Component],
        *,
        documents: bool = False,
    ) -> None:
        missing = {name: ids for name in components if (ids := found.missing(name))}
        documents = documents and any(id not in found.documents for id in found.keys)
        if documents and len(found) <= _WHOLE:
            # For few documents, everything that is missing is read in one request.
            scores, there = await self._read.shown(list(missing), query, found.keys)
            found.bring(there)
        else:
            scores = await self._scores(missing, query)
        for name, known in scores.items():
            found.learn(name, list(known), list(known.values()))

    async def _scores(self, missing: Mapping[Component, Sequence[str]], query: M3Embeddings) -> Known:
        """Return the missing scores of stored documents; blobs are read once for both components."""
        from_blobs = [name for name in missing if name != "dense"]
        ids = list(dict.fromkeys(id for name in from_blobs for id in missing[name]))

        async def dense() -> Known:
            return {"dense": await self._read.dense_scores(query.dense[0], missing["dense"])}

        calls = [dense] if "dense" in missing else []
        if ids:
            calls.append(functools.partial(self._read.blob_scores, from_blobs, query, ids))
        return {name: known for part in await together(calls) for name, known in part.items()}

    @property
    def _read(self) -> Reader:
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
