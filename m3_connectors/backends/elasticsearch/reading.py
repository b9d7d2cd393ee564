"""Read from one open collection: all documents of a query page by page, and given documents with their vectors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

import anyio
import numpy as np

from m3_connectors.backends.base import Schema
from m3_connectors.backends.chunks import by_count, halving
from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.errors import TooMuch
from m3_connectors.backends.elasticsearch.layout import (
    BACKEND,
    BUCKET,
    DENSE,
    METADATA,
    PARTS,
    ROWS,
    SPARSE_BLOB,
    TEXT,
    multivector_field,
)
from m3_connectors.backends.elasticsearch.rows import (
    MOST_HITS,
    PART_BYTES,
    Query,
    Version,
    dense_scores,
    dense_search,
    document_of,
    documents_only,
    embeddings_of,
    of_ids,
    packed,
    page,
    without,
)
from m3_connectors.backends.fetching import Known, Row, VectorReader
from m3_connectors.backends.together import together
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import BackendError

_PAGES_AT_ONCE = 3
_DOCUMENTS = 100
"""The number of texts in one response, because their length is not known."""

_TEXTS = f"{TEXT},{METADATA}"

_KEEP_ALIVE = "1h"
"""Whoever scans may encode or write a page of documents before it asks for the next one."""


class Reader(VectorReader):
    """Reads from one open collection; s_dense comes from the server, which computes it exactly."""

    backend = BACKEND
    answer_bytes = 8 * 2**20
    """It limits the server's memory and the time to parse JSON."""
    answers_at_once = 6
    keys_at_once = MOST_HITS
    row_base_bytes = 8 * 1024
    pauses_seconds = (0.0, 1.0)
    """Parts may be in a shard that is refreshed later (every second by default)."""

    def __init__(self, connection: Connection, alias: str, schema: Schema) -> None:
        super().__init__(schema)
        self.connection = connection
        self.alias = alias
        self._multivector = multivector_field(schema)
        self._large_answers = anyio.CapacityLimiter(_PAGES_AT_ONCE)

    async def documents(self, ids: Sequence[str]) -> dict[str, Document]:
        """Return the documents that are stored, by id."""

        async def send(ids: Sequence[str]) -> list[dict[str, Any]]:
            there = await self.connection.stored("fetch", self.alias, ids, _TEXTS, divisible=len(ids) > 1)
            # A part of a long document has no text, and only the adapter uses its id.
            return [found for found in there if TEXT in found["_source"]]

        calls = [functools.partial(halving, run, send, TooMuch) for run in by_count(ids, _DOCUMENTS)]
        parts = [found for halves in await together(calls, _PAGES_AT_ONCE) for found in halves]
        return {hit["_id"]: document_of(hit) for found in parts for hit in found}

    async def present(self, ids: Sequence[str]) -> set[str]:
        """Return those of the ids that are documents, as last written, even before a refresh."""
        found = [
            one
            for some in by_count(ids, MOST_HITS)
            for one in await self.connection.stored("fetch", self.alias, some, BUCKET)
        ]
        return {one["_id"] for one in found if BUCKET in one["_source"]}  # parts have none

    async def lacking(self, component: Component, limit: int) -> list[Document]:
        """Return documents without a component, ``limit`` of them if there are as many."""
        # Writes may be visible to searches only later, as ``refresh`` says.
        await self.connection.request("add a component", "POST", f"/{segment(self.alias)}/_refresh")
        body = without(SPARSE_BLOB if component == "sparse" else ROWS, limit)
        return [document_of(hit) for hit in await self.connection.search("add a component", self.alias, body)]

    async def versions(self, ids: Sequence[str]) -> dict[str, tuple[Document, Version]]:
        """Return the stored documents with their versions, by id, as last written, even before a refresh."""
        found: dict[str, tuple[Document, Version]] = {}
        for some in by_count(ids, _DOCUMENTS):
            found |= {
                one["_id"]: (document_of(one), Version(one["_seq_no"], one["_primary_term"]))
                for one in await self.connection.stored("add a component", self.alias, some, _TEXTS)
                if TEXT in one["_source"]
            }
        return found

    async def dense_scores(self, query: Float32, ids: Sequence[str]) -> dict[str, np.float32]:
        """Return s_dense by id, of the stored ids; with a filter on ids the server compares each of them."""
        found: dict[str, np.float32] = {}
        for part in by_count(ids, MOST_HITS):
            body = dense_search(query, len(part), len(part), {"ids": {"values": part}})
            hits = await self.connection.search("score", self.alias, body)
            found |= zip((hit["_id"] for hit in hits), dense_scores(hits), strict=True)
        return found

    async def stored(
        self, operation: str, keys: Sequence[str], components: Sequence[Component]
    ) -> dict[str, Row]:
        fields = [DENSE] if "dense" in components else []

        async def send(some: Sequence[str]) -> list[dict[str, Any]]:
            body = of_ids(some, blobs=self.blobs(components), fields=fields)
            async with self._large_answers:
                return await self.connection.search(operation, self.alias, body, divisible=len(some) > 1)

        return by_id(hit for hits in await halving(keys, send, TooMuch) for hit in hits)

    async def shown(
        self, components: Sequence[Component], query: M3Embeddings, keys: Sequence[str]
    ) -> tuple[Known, dict[str, Document]]:
        large: list[Component] = []
        if "multivector" in components and len(await self.runs("search", keys, ["multivector"])) > 1:
            large = ["multivector"]
        small = [name for name in components if name not in large]
        if "dense" in small:
            among = {"ids": {"values": keys}}
            body = dense_search(query.dense[0], len(keys), len(keys), among, self.blobs(small), texts=True)
        else:
            body = of_ids(keys, blobs=self.blobs(small), texts=True)

        async def search(_: Sequence[str]) -> dict[str, Row]:
            hits = await self.connection.search("search", self.alias, body)
            return by_id(hits)

        rows = await self.whole("search", await search(keys), search)
        known: dict[Component, Any] = dict(
            await self.scores_of("search", [name for name in small if name != "dense"], query, rows)
        )
        if "dense" in small:
            known["dense"] = dict(zip(rows, dense_scores(list(rows.values())), strict=True))
        if large:
            known |= await self.fetched_scores(large, query, list(rows))
        return known, {id: document_of(row) for id, row in rows.items()}

    def blobs(self, components: Sequence[Component]) -> list[str]:
        """Return the fields that the exact s_lex and s_mul need, if these are among the components."""
        blobs = [SPARSE_BLOB] if "sparse" in components else []
        return [*blobs, self._multivector, PARTS] if "multivector" in components else blobs

    def likely_fit(self, count: int) -> bool:
        """Whether this number of multi-vectors, each as long as the longest seen, fits in one response."""
        return count * self.rows_bytes(self.most_rows) <= self.answer_bytes

    # -- rows

    def columns(self, rows: Sequence[Row], components: Sequence[Component]) -> M3Embeddings:
        return embeddings_of(self.schema, rows, components)

    def packed(self, row: Row) -> Sequence[bytes]:
        return packed(row, self._multivector)

    def carries(self, component: Component, row: Row) -> bool:
        fields = row.get("fields", {})
        return component != "dense" and self.blobs([component])[0] in fields and PARTS not in fields

    def document(self, row: Row) -> Document | None:
        return document_of(row) if "_source" in row else None

    async def _counted(self, operation: str, keys: Sequence[str]) -> dict[str, Row]:
        found: dict[str, Row] = {}
        for some in by_count(keys, MOST_HITS):
            hits = await self.connection.search(operation, self.alias, of_ids(some, blobs=[ROWS]))
            found |= by_id(hits)
        return found

    def _count(self, row: Row) -> int | None:
        counts = row.get("fields", {}).get(ROWS)
        return None if counts is None else int(counts[0])

    def _part_names(self, row: Row) -> Sequence[str]:
        names: Sequence[str] = row.get("fields", {}).get(PARTS, ())
        return names

    async def _parts(self, operation: str, names: Sequence[str]) -> dict[str, list[Any]]:
        async def read(some: Sequence[str]) -> list[dict[str, Any]]:
            body = of_ids(some, blobs=[self._multivector])
            async with self._large_answers:
                return await self.connection.search(operation, self.alias, body, divisible=len(some) > 1)

        runs = by_count(names, self.answer_bytes // PART_BYTES)
        calls = [functools.partial(halving, run, read, TooMuch) for run in runs]
        found = [hits for halves in await together(calls, _PAGES_AT_ONCE) for hits in halves]
        return {hit["_id"]: hit["fields"][self._multivector] for hits in found for hit in hits}

    def _joined(self, row: Row, packed: list[Any]) -> Row:
        fields = {name: value for name, value in row["fields"].items() if name != PARTS}
        return {**row, "fields": {**fields, self._multivector: packed}}


def by_id(hits: Iterable[Row]) -> dict[str, Row]:
    """Return hits by their ids."""
    return {hit["_id"]: hit for hit in hits}


async def count(connection: Connection, alias: str, filter: Query | None) -> int:
    """Return the number of documents that pass."""
    body = {"size": 0, "track_total_hits": True, "query": documents_only(filter)}
    answer = await connection.request(
        "count", "POST", f"/{segment(alias)}/_search", body, allow_partial_search_results="false"
    )
    return int(answer["hits"]["total"]["value"])


async def pages(
    connection: Connection,
    alias: str,
    operation: str,
    query: Query,
    *,
    sort: Sequence[str] = (),
    size: int = 5000,
    fields: Sequence[str] = (),
) -> AsyncGenerator[list[dict[str, Any]], None]:
    """Yield all hits once, as they were when the first page was requested."""
    opened = await connection.request(operation, "POST", f"/{segment(alias)}/_pit", keep_alive=_KEEP_ALIVE)
    pit, after = opened["id"], None
    try:
        while True:
            body = page(pit, _KEEP_ALIVE, size, after, query, sort, fields)
            try:
                answer = await connection.request(
                    operation,
                    "POST",
                    "/_search",
                    body,
                    divisible=size > 1,
                    allow_partial_search_results="false",
                )
            except TooMuch:
                if size == 1:
                    raise
                size //= 2
                continue
            hits = answer["hits"]["hits"]
            if hits:
                yield hits
            if len(hits) < size:
                return
            pit, after = answer["pit_id"], hits[-1]["sort"]
    finally:
        # The point in time would expire by itself. A server that is gone needs no such request, and a
        # cancelled caller should not wait. A scan that is abandoned may end when its event loop does, after
        # the connection is closed.
        if not connection.closed:
            with anyio.move_on_after(5, shield=True), contextlib.suppress(BackendError):
                await connection.once(operation, "DELETE", "/_pit", {"id": pit})
