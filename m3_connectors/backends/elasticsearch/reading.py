"""What the index keeps of given documents: texts, vectors, and exact scores computed here from the vectors' blobs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_thread
import numpy as np

from m3_connectors.backends.base import Schema
from m3_connectors.backends.chunks import by_bytes, by_count
from m3_connectors.backends.elasticsearch.bodies import (
    MOST_HITS,
    PART_BYTES,
    dense_scores,
    dense_search,
    of_ids,
)
from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.mapping import (
    BACKEND,
    DENSE,
    METADATA,
    MULTIVECTOR_BLOB,
    PARTS,
    ROWS,
    SPARSE_BLOB,
    TEXT,
)
from m3_connectors.backends.elasticsearch.vectors import multivectors, sparse_rows, sparse_scores_of
from m3_connectors.backends.together import together
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import NotFound
from m3_connectors.scoring import as_float16, multivector_scores

Hits = list[dict[str, Any]]
Known = dict[Component, dict[str, np.float32]]

_PAGE_BYTES = 8 * 2**20
"""Blobs in one answer: bounds the server's memory and how long the event loop reads JSON."""

_PAGES_AT_ONCE = 3
_DOCUMENTS = 100
"""Texts in one answer, as nothing is known of their length."""

_SPARSE_BYTES = 8 * 1024
"""What a document's other values are taken to weigh."""

_MOST_HINTS = 200_000


class Reader:
    """Reads of one open collection."""

    def __init__(self, connection: Connection, alias: str, schema: Schema) -> None:
        self._connection = connection
        self._alias = alias
        self._schema = schema
        self._large_answers = anyio.CapacityLimiter(_PAGES_AT_ONCE)
        self._rows: dict[str, int] = {}
        """Rows by id, where seen; only to plan the size of answers, so one out of date does no harm."""

    async def sources(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Text and metadata by id of the documents that are there."""
        path, wanted = f"/{segment(self._alias)}/_mget", f"{TEXT},{METADATA}"

        async def part(ids: Sequence[str]) -> list[dict[str, Any]]:
            answer = await self._connection.request(
                "fetch", "POST", path, {"ids": ids}, _source_includes=wanted
            )
            # A part of a long document has no text; nobody but the adapter knows its id.
            return [found for found in answer["docs"] if found.get("found") and TEXT in found["_source"]]

        parts = await together(
            [functools.partial(part, run) for run in by_count(ids, _DOCUMENTS)], _PAGES_AT_ONCE
        )
        return {document["_id"]: document["_source"] for found in parts for document in found}

    async def dense_scores(self, query: Float32, ids: Sequence[str]) -> dict[str, np.float32]:
        """s_dense by id; a filter on ids makes the server compare each of them."""
        found: dict[str, np.float32] = {}
        for part in by_count(ids, MOST_HITS):
            body = dense_search(query, len(part), len(part), {"ids": {"values": part}})
            hits = await self._connection.search("score", self._alias, body)
            found |= zip((hit["_id"] for hit in hits), dense_scores(hits), strict=True)
        self._check_found(ids, found, "score")
        return found

    async def blob_scores(
        self, components: Sequence[Component], query: M3Embeddings, ids: Sequence[str]
    ) -> Known:
        """s_lex, s_mul or both by id, in one reading of the documents' blobs; ids differ."""
        fields = [_BLOBS[name] for name in components]
        known: Known = {name: {} for name in components}
        rounded = as_float16(query) if self._schema.storage.multivector_dtype == "float16" else query

        async def part(ids: Sequence[str]) -> None:
            hits = await self._hits("score", ids, fields)
            self._check_found(ids, {hit["_id"] for hit in hits}, "score")
            found = [hit["_id"] for hit in hits]
            if "sparse" in known:
                known["sparse"].update(zip(found, await sparse_scores_of(query, hits), strict=True))
            if "multivector" in known:
                scores = await anyio.to_thread.run_sync(self._multivector_scores, rounded, hits)
                known["multivector"].update(zip(found, scores, strict=True))

        runs = await self._planned(ids, "multivector" in components, "score")
        await together([functools.partial(part, run) for run in runs])
        return known

    async def vectors(self, ids: Sequence[str]) -> M3Embeddings:
        """All that is stored for these ids, in their order; ids may repeat."""
        schema = self._schema
        fields = [_BLOBS[name] for name in schema.components if name != "dense"]
        distinct = list(dict.fromkeys(ids))
        found: dict[str, dict[str, Any]] = {}

        async def part(ids: Sequence[str]) -> None:
            hits = await self._hits("vectors", ids, fields, [DENSE])
            found.update((hit["_id"], hit) for hit in hits)

        runs = await self._planned(distinct, "multivector" in schema.components, "vectors")
        await together([functools.partial(part, run) for run in runs])
        self._check_found(ids, found, "vectors")
        hits = [found[id] for id in ids]
        sparse = rows = None
        if "sparse" in schema.components:
            sparse = sparse_rows(hits, schema.model.vocabulary_size)
        if "multivector" in schema.components:
            rows = multivectors(hits, schema.model.dimension)
        dense: Float32 = np.array([hit["fields"][DENSE] for hit in hits], dtype=np.float32)
        return M3Embeddings(dense.reshape(len(hits), -1), sparse, rows, model=schema.model)

    async def _hits(
        self, operation: str, ids: Sequence[str], blob_fields: list[str], fields: Sequence[str] = ()
    ) -> Hits:
        """Hits that bring these fields, wherever their blobs are."""
        multivectors = MULTIVECTOR_BLOB in blob_fields
        body = of_ids(ids, blobs=[*blob_fields, PARTS] if multivectors else blob_fields, fields=fields)
        async with self._large_answers:
            hits = await self._connection.search(operation, self._alias, body)
            split = [hit for hit in hits if PARTS in hit.get("fields", {})]
            names = [name for hit in split for name in hit["fields"][PARTS]]
            found: dict[str, list[str]] = {}
            for some in by_count(names, _PAGE_BYTES // PART_BYTES):
                page = await self._connection.search(
                    operation, self._alias, of_ids(some, blobs=[MULTIVECTOR_BLOB])
                )
                found |= {hit["_id"]: hit["fields"][MULTIVECTOR_BLOB] for hit in page}
        self._check_found(names, found, operation)
        for hit in split:
            hit["fields"][MULTIVECTOR_BLOB] = [text for name in hit["fields"][PARTS] for text in found[name]]
        return hits

    def note_rows(self, hits: Hits) -> None:
        """Remember how long the multi-vectors of these hits are, if they say so."""
        if len(self._rows) > _MOST_HINTS:
            self._rows.clear()
        self._rows.update(
            (hit["_id"], hit["fields"][ROWS][0]) for hit in hits if ROWS in hit.get("fields", {})
        )

    async def _planned(self, ids: Sequence[str], multivectors: bool, operation: str) -> list[list[str]]:
        """The ids in runs whose answers are of bounded size."""
        if multivectors:
            unknown = [id for id in ids if id not in self._rows]
            for part in by_count(unknown, MOST_HITS):
                self.note_rows(
                    await self._connection.search(operation, self._alias, of_ids(part, blobs=[ROWS]))
                )
        per_row = self._schema.model.dimension * np.dtype(self._schema.storage.multivector_dtype).itemsize

        def size(id: str) -> int:
            return _SPARSE_BYTES + (self._rows.get(id, 0) * per_row if multivectors else 0)

        return list(by_bytes(ids, size, _PAGE_BYTES))

    def _multivector_scores(self, query: M3Embeddings, hits: Hits) -> Float32:
        assert query.multivectors is not None
        return multivector_scores(query.multivectors[0], multivectors(hits, self._schema.model.dimension))

    def _check_found(self, ids: Sequence[str], found: Any, operation: str) -> None:
        missing = next((id for id in ids if id not in found), None)
        if missing is not None:
            raise NotFound(f"no document {missing!r}.", backend=BACKEND, operation=operation)


_BLOBS: dict[Component, str] = {"sparse": SPARSE_BLOB, "multivector": MULTIVECTOR_BLOB}
