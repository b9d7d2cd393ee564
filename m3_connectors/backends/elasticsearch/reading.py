"""Read given documents from the index: texts, vectors, and exact scores, computed here from blobs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_thread
import numpy as np

from m3_connectors.backends.base import Schema
from m3_connectors.backends.chunks import by_bytes, by_count
from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.errors import TooMuch
from m3_connectors.backends.elasticsearch.layout import (
    BACKEND,
    DENSE,
    METADATA,
    MULTIVECTOR_BLOB,
    PARTS,
    ROWS,
    SPARSE_BLOB,
    TEXT,
)
from m3_connectors.backends.elasticsearch.rows import (
    MOST_HITS,
    PART_BYTES,
    dense_scores,
    dense_search,
    document_of,
    of_ids,
)
from m3_connectors.backends.elasticsearch.vectors import multivectors, scores_in, sparse_rows
from m3_connectors.backends.together import together
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import Corrupt, DocumentNotFound

Hits = list[dict[str, Any]]
Known = dict[Component, dict[str, np.float32]]

_PAGE_BYTES = 8 * 2**20
"""The maximum size of the blobs in one response; it limits the server's memory and the time to parse JSON."""

_PAGES_AT_ONCE = 3
_SCORED_PAGES = 6
"""The number of pages that are unpacked and scored together; one product per page would make the cores
wait."""

_DOCUMENTS = 100
"""The number of texts in one response, because their length is not known."""

_SPARSE_BYTES = 8 * 1024
"""The assumed size of a document's other values."""

_MOST_HINTS = 200_000

_PAUSES_SECONDS = (0.0, 1.0)
"""The pauses before documents with missing parts are read again: the document was replaced in between, or its
parts are in a shard that is refreshed later (every second by default)."""


class Reader:
    """Reads from one open collection."""

    def __init__(self, connection: Connection, alias: str, schema: Schema) -> None:
        self._connection = connection
        self._alias = alias
        self._schema = schema
        self._large_answers = anyio.CapacityLimiter(_PAGES_AT_ONCE)
        # One matrix product at a time: each uses all cores, and concurrent ones spend half of their time
        # waiting.
        self._scoring = anyio.CapacityLimiter(1)
        self._row_bytes = schema.storage.precision.row_bytes(schema.model.dimension)
        self._most_rows = 0
        self._rows: dict[str, int] = {}
        """The number of rows by id, where known; used only to plan the size of responses, so it may be
        outdated."""

    async def documents(self, ids: Sequence[str]) -> dict[str, Document]:
        """Return the documents that are stored, by id."""
        path, wanted = f"/{segment(self._alias)}/_mget", f"{TEXT},{METADATA}"

        async def part(ids: Sequence[str]) -> list[dict[str, Any]]:
            try:
                answer = await self._connection.request(
                    "fetch", "POST", path, {"ids": ids}, divisible=len(ids) > 1, _source_includes=wanted
                )
            except TooMuch:
                if len(ids) == 1:
                    raise
                return [found for half in _halves(ids) for found in await part(half)]
            # A part of a long document has no text, and only the adapter uses its id.
            return [found for found in answer["docs"] if found.get("found") and TEXT in found["_source"]]

        parts = await together(
            [functools.partial(part, run) for run in by_count(ids, _DOCUMENTS)], _PAGES_AT_ONCE
        )
        return {hit["_id"]: document_of(hit) for found in parts for hit in found}

    async def dense_scores(self, query: Float32, ids: Sequence[str]) -> dict[str, np.float32]:
        """Return s_dense by id, of the stored ids; with a filter on ids the server compares each of them."""
        found: dict[str, np.float32] = {}
        for part in by_count(ids, MOST_HITS):
            body = dense_search(query, len(part), len(part), {"ids": {"values": part}})
            hits = await self._connection.search("score", self._alias, body)
            found |= zip((hit["_id"] for hit in hits), dense_scores(hits), strict=True)
        return found

    async def blob_scores(
        self, components: Sequence[Component], query: M3Embeddings, ids: Sequence[str]
    ) -> Known:
        """Return s_lex, s_mul or both by id, of stored ids, with one read of their blobs; ids must differ."""
        known: Known = {name: {} for name in components}
        fields = blobs_of(components)
        runs = await self._planned(ids, "multivector" in components, "score")
        for wave in by_count(runs, _SCORED_PAGES):
            pages = await together([functools.partial(self._hits, "score", run, fields) for run in wave])
            hits = [hit for page in pages for hit in page]
            found = [hit["_id"] for hit in hits]
            for name, scores in (await self.scores_in(components, query, hits)).items():
                known[name].update(zip(found, scores, strict=True))
        return known

    async def vectors(self, ids: Sequence[str]) -> M3Embeddings:
        """Return all stored vectors of these ids, in their order; ids may repeat."""
        schema = self._schema
        fields = blobs_of(schema.components)
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

    async def shown(
        self, components: Sequence[Component], query: M3Embeddings, ids: Sequence[str]
    ) -> tuple[Known, dict[str, Document]]:
        """Return scores and documents of a few ids: in one request, unless their multi-vectors are large."""
        large: list[Component] = []
        if "multivector" in components and len(await self._planned(ids, True, "search")) > 1:
            large = ["multivector"]
        small = [name for name in components if name not in large]
        if "dense" in small:
            among = {"ids": {"values": ids}}
            body = dense_search(query.dense[0], len(ids), len(ids), among, blobs_of(small), texts=True)
        else:
            body = of_ids(ids, blobs=blobs_of(small), texts=True)
        hits = await self._whole("search", body)
        scores = await self.scores_in(small, query, hits)
        if "dense" in small:
            scores["dense"] = dense_scores(hits)
        found = [hit["_id"] for hit in hits]
        known: Known = {name: dict(zip(found, values, strict=True)) for name, values in scores.items()}
        if large:
            known |= await self.blob_scores(large, query, ids)
        return known, {hit["_id"]: document_of(hit) for hit in hits}

    async def scores_in(
        self, components: Sequence[Component], query: M3Embeddings, hits: Hits
    ) -> dict[Component, Float32]:
        """Return s_lex and s_mul, if they are among the components, of hits that include their blobs."""
        if not {"sparse", "multivector"} & set(components):
            return {}
        rounded = self._schema.storage.precision.rounded_query(query)
        limiter = self._scoring if "multivector" in components else None
        return await anyio.to_thread.run_sync(scores_in, components, rounded, hits, limiter=limiter)

    def likely_fit(self, count: int) -> bool:
        """Whether this number of multi-vectors, each as long as the longest seen, fits in one response."""
        return count * self._most_rows * self._row_bytes <= _PAGE_BYTES

    async def _hits(
        self, operation: str, ids: Sequence[str], blob_fields: list[str], fields: Sequence[str] = ()
    ) -> Hits:
        """Return hits with these fields, including the blobs of documents that are stored in parts."""
        body = of_ids(ids, blobs=blob_fields, fields=fields)
        try:
            async with self._large_answers:
                return await self._whole(operation, body, divisible=len(ids) > 1)
        except TooMuch:
            if len(ids) == 1:
                raise
        return [
            hit for half in _halves(ids) for hit in await self._hits(operation, half, blob_fields, fields)
        ]

    async def _whole(self, operation: str, body: dict[str, Any], *, divisible: bool = False) -> Hits:
        """Return the hits of a search, with the separately stored blobs of long documents.

        Raises:
            Corrupt: Parts are missing, and not only because they were replaced during the read.
        """
        for pause in (*_PAUSES_SECONDS, None):
            hits = await self._connection.search(operation, self._alias, body, divisible=divisible)
            broken = await self._add_parts(operation, hits)
            if broken is None or pause is None:
                break
            await anyio.sleep(pause)
        if broken is not None:
            raise Corrupt(
                f"parts of the multi-vectors of document {broken!r} are missing.\n  Index the document "
                "again.",
                backend=BACKEND,
                operation=operation,
            )
        return hits

    async def _add_parts(self, operation: str, hits: Hits) -> str | None:
        """Add the blobs of the parts to the hits of long documents; return an id with missing parts."""
        split = [hit for hit in hits if PARTS in hit.get("fields", {})]
        names = [name for hit in split for name in hit["fields"][PARTS]]
        found: dict[str, list[str]] = {}
        for some in by_count(names, _PAGE_BYTES // PART_BYTES):
            page = await self._connection.search(
                operation, self._alias, of_ids(some, blobs=[MULTIVECTOR_BLOB])
            )
            found |= {hit["_id"]: hit["fields"][MULTIVECTOR_BLOB] for hit in page}
        for hit in split:
            if not found.keys() >= set(hit["fields"][PARTS]):
                return str(hit["_id"])
        for hit in split:
            hit["fields"][MULTIVECTOR_BLOB] = [text for name in hit["fields"][PARTS] for text in found[name]]
        return None

    def note_rows(self, hits: Hits) -> None:
        """Store the numbers of multi-vector rows of these hits, if the hits include them."""
        if len(self._rows) > _MOST_HINTS:
            self._rows.clear()
        seen = {hit["_id"]: hit["fields"][ROWS][0] for hit in hits if ROWS in hit.get("fields", {})}
        self._rows |= seen
        self._most_rows = max(self._most_rows, *seen.values(), 0)

    async def _planned(self, ids: Sequence[str], multivectors: bool, operation: str) -> list[list[str]]:
        """Return the ids in runs whose responses have a limited size."""
        if multivectors:
            unknown = [id for id in ids if id not in self._rows]
            for part in by_count(unknown, MOST_HITS):
                self.note_rows(
                    await self._connection.search(operation, self._alias, of_ids(part, blobs=[ROWS]))
                )

        def size(id: str) -> int:
            return _SPARSE_BYTES + (self._rows.get(id, 0) * self._row_bytes if multivectors else 0)

        return list(by_bytes(ids, size, _PAGE_BYTES))

    def _check_found(self, ids: Sequence[str], found: Any, operation: str) -> None:
        missing = next((id for id in ids if id not in found), None)
        if missing is not None:
            raise DocumentNotFound(
                f"there is no document {missing!r}.\n  Check the id, or add the document first.",
                backend=BACKEND,
                operation=operation,
            )


def blobs_of(components: Sequence[Component]) -> list[str]:
    """Return the fields that the exact s_lex and s_mul need, if these are among the components."""
    blobs = [SPARSE_BLOB] if "sparse" in components else []
    return [*blobs, MULTIVECTOR_BLOB, PARTS] if "multivector" in components else blobs


def _halves(ids: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    return ids[: len(ids) // 2], ids[len(ids) // 2 :]
