"""Elasticsearch as a store: it proposes candidates, and keeps exact vectors that are scored here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

import anyio
import numpy as np

from m3_connectors.backends.base import Backend, Known, Ranking, Schema, ScoredId, answers
from m3_connectors.backends.capabilities import Capability, ServerInfo
from m3_connectors.backends.elasticsearch import ranking
from m3_connectors.backends.elasticsearch.alterations import faults, has_own_dynamic_templates
from m3_connectors.backends.elasticsearch.bodies import document_of, documents_only
from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.filters import query_of
from m3_connectors.backends.elasticsearch.mapping import (
    BACKEND,
    PARTS,
    ROWS,
    SPARSE_BLOB,
    alias_of,
    droppable_index,
    first_index_of,
    index_body,
    properties_of,
    read_schema,
)
from m3_connectors.backends.elasticsearch.merging import merge
from m3_connectors.backends.elasticsearch.paging import count, pages
from m3_connectors.backends.elasticsearch.reading import Reader, blobs_of
from m3_connectors.backends.elasticsearch.server import check_version, server_info
from m3_connectors.backends.elasticsearch.vectors import sparse_scores_of
from m3_connectors.backends.elasticsearch.writing import Refresh, Writer
from m3_connectors.backends.endpoint import Endpoint
from m3_connectors.backends.together import together
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import AlreadyExists, Corrupt, InvalidInput, NotFound, Rejected
from m3_connectors.filters import Filter
from m3_connectors.methods import Method, fuse

_PORT = 9200
_WHOLE = 16
"""So many documents come with their texts and vectors in one answer, whatever their size."""

_SEARCHES_AT_ONCE = 16


class ElasticsearchBackend(Backend):
    """One collection: an alias and the index behind it."""

    name: ClassVar[str] = BACKEND
    capabilities = frozenset(Capability) - {Capability.FIELD_INDEXES, Capability.DENSE_INDEX}

    def __init__(
        self,
        endpoint: Endpoint,
        collection: str = "documents",
        *,
        refresh: Refresh = True,
        shards: int | None = None,
        replicas: int | None = None,
    ) -> None:
        """A collection on a server; nothing is sent yet.

        Args:
            endpoint: The server.
            collection: Its name there.
            refresh: When writes can be searched: ``True``, before a write returns, by making a small segment each
                time, best with few large writes; ``"wait_for"``, the same without that segment, but each write then
                takes up to the index's refresh interval (1 s); ``False``, within that interval after the write.
            shards: Of a new index; None for the server's default, 1.
            replicas: Of a new index; None for the server's default, 1.

        Raises:
            InvalidInput: An option or the collection's name cannot be used.
        """
        if refresh not in (True, False, "wait_for"):
            raise InvalidInput(f"refresh is {refresh!r}: give True, False or 'wait_for'.")
        for option, value, least in (("shards", shards, 1), ("replicas", replicas, 0)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InvalidInput(f"{option} is {value!r}: give a whole number >= {least}.")
        self.collection = collection
        self.refresh = refresh
        self._shards, self._replicas = shards, replicas
        self._alias = alias_of(collection)
        self._connection = Connection(endpoint)
        # More would only wait for each other, in the event loop and for connections.
        self._searches = anyio.CapacityLimiter(_SEARCHES_AT_ONCE)
        self._version_checked = False
        self._reader: Reader | None = None
        self._writer: Writer | None = None

    @classmethod
    def from_url(cls, url: str, collection: str, options: Mapping[str, Any]) -> ElasticsearchBackend:
        """The backend of ``elasticsearch+http(s)://[USER:PASSWORD@]HOST[:9200]``.

        Raises:
            InvalidInput: An unusable URL or option.
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

    # -- the collection

    async def _create(self, schema: Schema) -> None:
        if await self._behind_alias("create"):
            raise AlreadyExists(
                f'there is an index or alias "{self._alias}".\n  Open it, drop it, or use another collection name.',
                backend=BACKEND,
                operation="create",
            )
        path = f"/{segment(first_index_of(self._alias))}"
        body = index_body(schema, self._alias, self._shards, self._replicas)
        await self._connection.once("create", "PUT", path, body)
        # Read back, because the server merges its index templates into what was asked.
        index = next(iter((await self._behind_alias("create")).values()))
        if not has_own_dynamic_templates(index["mappings"]):
            # Those of a template come first; an update puts ours in their place.
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
        """Refuse an index that would answer wrongly, or would never show what is written.

        Raises:
            Rejected: A template of the server made it so; it is new.
            Corrupt: It was changed since it was made.
        """
        where = {"backend": BACKEND, "operation": operation}
        fault = next(faults(index, properties_of(schema), self._alias), None)
        if fault is not None and operation == "create":
            raise Rejected(
                f"an index template of the server would make a collection that cannot be used: {fault.what}.\n"
                "  Take the collection out of the template, or use another collection name. No index was made.",
                **where,
            )
        if fault is not None:
            raise Corrupt(f'collection "{self.collection}": {fault.what}.\n  {fault.remedy}', **where)
        never = index.get("settings", {}).get("index.refresh_interval", "").startswith("-")
        if never and self.refresh is not True:
            raise Rejected(
                f'index.refresh_interval of collection "{self.collection}" is -1, so with refresh={self.refresh!r} no '
                "write would ever be found.\n  Connect with refresh=True, or set the interval.",
                **where,
            )

    async def _drop(self) -> None:
        there = await self._behind_alias("drop")
        if there:
            path = f"/{segment(droppable_index(there, self.collection))}"
            # A second try finds nothing left where the first one's answer was lost.
            with contextlib.suppress(NotFound):
                await self._connection.request("drop", "DELETE", path)

    async def optimize(self) -> None:
        """Merge each shard into one segment, whose graph is searched faster, and give back what merging frees."""
        self._check_open()
        await merge(self._connection, self._alias)

    async def close(self) -> None:
        await self._connection.close()
        self._reader = self._writer = self._schema = None

    def _use(self, schema: Schema) -> None:
        self._reader = Reader(self._connection, self._alias, schema)
        self._writer = Writer(self._connection, self._alias, schema, self.refresh)

    async def _behind_alias(self, operation: str) -> dict[str, Any]:
        """What the server answers about the alias; empty if there is none.

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
        except NotFound:
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
        own = method.is_one_list
        if own:
            method = dataclasses.replace(method, candidates=dict.fromkeys(method.candidates, k))
        total_seconds = self._connection.endpoint.patience.total_seconds
        async with self._connection.turn("search", self._searches, total_seconds):
            if own and k <= _WHOLE and not exact:
                found = await self._head(query, method, k, filter)
                if found is not None:
                    return found
            return await super()._search(query, method, k, filter, exact)

    async def _head(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None
    ) -> list[ScoredId] | None:
        """The answer of one list that is ranked by its own score, in one request; None where that is not enough."""
        (component,) = method.candidates
        rest = self._uncounted(query, method)
        if component == "sparse" and rest:
            return None  # the list is longer than the answer, so what the hits show is asked for them alone
        if "multivector" in rest and not self._read.likely_fit(k):
            return None
        fields = [*blobs_of(rest), *([ROWS] if "multivector" in rest else [])]
        hits, scores = await self._list(component, query, k, filter, False, fields, texts=True)
        self._read.note_rows(hits)
        if any("_source" not in hit or PARTS in hit.get("fields", {}) for hit in hits):
            return None
        shown = await self._read.scores_in(rest, query, hits) | {component: scores}
        documents = {hit["_id"]: document_of(hit) for hit in hits}
        return answers(list(documents), fuse(shown, method.weights), shown, documents)

    async def _inform(
        self, components: Sequence[Component], query: M3Embeddings, ids: Sequence[str], known: Known
    ) -> tuple[dict[Component, Float32], Mapping[str, Document]]:
        """Of few hits, what is missing and their documents in one request."""
        if not 0 < len(ids) <= _WHOLE:
            return await super()._inform(components, query, ids, known)
        missing = [name for name in components if any(id not in known.get(name, {}) for id in ids)]
        found, documents = await self._read.shown(missing, query, ids)
        return await self._complete(components, query, ids, known | found), documents

    async def _candidates(
        self, component: Component, query: M3Embeddings, limit: int, filter: Filter | None, exact: bool
    ) -> Ranking:
        hits, scores = await self._list(component, query, limit, filter, exact, ())
        return Ranking([hit["_id"] for hit in hits], scores)

    async def _list(
        self,
        component: Component,
        query: M3Embeddings,
        limit: int,
        filter: Filter | None,
        exact: bool,
        fields: Sequence[str],
        *,
        texts: bool = False,
    ) -> tuple[ranking.Hits, Float32]:
        where = self._connection, self._alias
        if component == "sparse":
            return await ranking.sparse_list(*where, query, limit, _query(filter), fields, texts=texts)
        assert query.dense is not None
        return await ranking.dense_list(
            *where, query.dense[0], limit, _query(filter), exact, fields, texts=texts
        )

    async def _propose(
        self, query: M3Embeddings, method: Method, filter: Filter | None, exact: bool
    ) -> tuple[list[str], Known]:
        """Both lists at once; their hits bring what s_lex needs, and how much their multi-vectors weigh."""
        fields = [ROWS] if "multivector" in self.schema.components else []
        if "sparse" in method.scored:
            fields.append(SPARSE_BLOB)
        components = list(method.candidates)
        lists = await together(
            [
                functools.partial(self._list, name, query, method.candidates[name], filter, exact, fields)
                for name in components
            ]
        )
        known: Known = {}
        for component, (hits, scores) in zip(components, lists, strict=True):
            ids = [hit["_id"] for hit in hits]
            known.setdefault(component, {}).update(zip(ids, scores, strict=True))
            self._read.note_rows(hits)
            if component == "dense" and "sparse" in method.scored:
                exact_scores = await sparse_scores_of(query, hits)
                known.setdefault("sparse", {}).update(zip(ids, exact_scores, strict=True))
        return list(dict.fromkeys(hit["_id"] for hits, _ in lists for hit in hits)), known

    async def _complete(
        self, components: Sequence[Component], query: M3Embeddings, ids: Sequence[str], known: Known
    ) -> dict[Component, Float32]:
        """s_lex and s_mul in one reading of the blobs, where both are missing."""
        from_blobs = [
            name
            for name in components
            if name != "dense" and any(id not in known.get(name, {}) for id in ids)
        ]
        missing = [id for id in ids if any(id not in known.get(name, {}) for name in from_blobs)]
        if missing:
            found = await self._read.blob_scores(from_blobs, query, missing)
            known = known | {name: known.get(name, {}) | found[name] for name in from_blobs}
        return await super()._complete(components, query, ids, known)

    async def _score(self, component: Component, query: M3Embeddings, ids: Sequence[str]) -> Float32:
        distinct = list(dict.fromkeys(ids))
        if component == "dense":
            assert query.dense is not None
            found = await self._read.dense_scores(query.dense[0], distinct)
        else:
            found = (await self._read.blob_scores([component], query, distinct))[component]
        return np.array([found[id] for id in ids], dtype=np.float32)

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
