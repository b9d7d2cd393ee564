"""Writes of one open collection.

Elasticsearch refuses an operation of about 2 % of its heap (it counts five times its bytes against a tenth of it), so
multi-vectors of more than ``PART_BYTES`` are kept in parts: documents of their own beside the document that names
them. Parts are written first and under new ids, so a document never names a part that is not there, or not its own.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import anyio.to_thread
import numpy as np

from m3_connectors.backends.base import Schema
from m3_connectors.backends.chunks import by_bytes, by_count
from m3_connectors.backends.elasticsearch.bodies import (
    PART_BYTES,
    delete_operation,
    index_operation,
    part_operation,
    parts_of,
)
from m3_connectors.backends.elasticsearch.bulk import Outcome, joined, write
from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.together import together
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import BackendError, InvalidInput

Refresh = Literal[True, False, "wait_for"]

_BATCH_BYTES = 8 * 2**20
_BATCHES_AT_ONCE = 2
_IDS = 1000


class Writer:
    """Stores and removes documents, and with them the parts of long ones."""

    def __init__(self, connection: Connection, alias: str, schema: Schema, refresh: Refresh) -> None:
        self._connection = connection
        self._alias = alias
        self._schema = schema
        self._refresh = refresh
        self._row_bytes = schema.model.dimension * np.dtype(schema.storage.multivector_dtype).itemsize
        self._rows_per_part = max(1, PART_BYTES // self._row_bytes)

    async def upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """Store checked documents.

        Raises:
            InvalidInput: One has more rows than one part takes, and the collection splits none.
            PartialWrite: Some were not stored; names them.
            BackendError: The server failed.
        """
        parts = self._planned_parts(documents, embeddings)
        failed: dict[str, BackendError] = {}
        for i, names in parts.items():
            outcomes = await self._write_parts(documents[i].id, embeddings[i], names)
            for error in (error for outcome in outcomes for error in outcome.failed.values()):
                failed[documents[i].id] = error

        def lines(positions: Iterable[int]) -> dict[str, bytes]:
            return {
                documents[i].id: index_operation(self._schema, documents[i], embeddings[i], parts.get(i, ()))
                for i in positions
            }

        async def send(positions: Iterable[int]) -> Outcome:
            return await self._write(await anyio.to_thread.run_sync(lines, positions), "upsert")

        sizes = self._sizes(documents, embeddings)
        whole = [i for i in range(len(documents)) if documents[i].id not in failed]
        batches = by_bytes(whole, sizes.__getitem__, _BATCH_BYTES)
        outcomes = await together([functools.partial(send, batch) for batch in batches], _BATCHES_AT_ONCE)
        replaced = [
            id for outcome in outcomes for id, result in outcome.results.items() if result == "updated"
        ]
        await self._end([*outcomes, Outcome({}, failed)], "upsert")
        await self._remove_parts(
            [*replaced, *(documents[i].id for i in parts)],
            [name for names in parts.values() for name in names],
            "upsert",
        )

    async def delete(self, ids: Sequence[str]) -> int:
        """Remove documents by distinct ids; how many were there."""
        outcomes = [
            await self._write({id: delete_operation(id) for id in part}, "delete")
            for part in by_count(ids, _IDS)
        ]
        results = await self._end(outcomes, "delete")
        deleted = [id for id, result in results.items() if result == "deleted"]
        await self._remove_parts(deleted, [], "delete")
        return len(deleted)

    def _planned_parts(self, documents: Sequence[Document], embeddings: M3Embeddings) -> dict[int, list[str]]:
        """New ids for the parts of each document that needs them, by position."""
        if embeddings.multivectors is None:
            return {}
        counts = embeddings.multivectors.counts
        long = np.flatnonzero(counts > self._rows_per_part).tolist()
        if long and self._schema.storage.long_documents == "error":
            i = long[0]
            raise InvalidInput(
                f"documents[{i}] (id {documents[i].id!r}) has {counts[i]} multi-vector rows; this collection takes "
                f"{self._rows_per_part}.\n"
                '  Split the text, or make the collection with Storage(long_documents="split"), which is exact.'
            )
        return {
            i: [f"{name}-{part:04d}" for part in range(-(-int(counts[i]) // self._rows_per_part))]
            for i, name in ((i, uuid.uuid4().hex) for i in long)
        }

    async def _write_parts(self, id: str, embeddings: M3Embeddings, names: Sequence[str]) -> list[Outcome]:
        assert embeddings.multivectors is not None
        rows = embeddings.multivectors[0]
        step, dtype = self._rows_per_part, self._schema.storage.multivector_dtype

        async def send(part: int) -> Outcome:
            name, some = names[part], rows[part * step : (part + 1) * step]
            line = await anyio.to_thread.run_sync(part_operation, name, id, some, dtype)
            return await self._write({name: line}, "upsert")

        return await together([functools.partial(send, part) for part in range(len(names))], _BATCHES_AT_ONCE)

    async def _remove_parts(self, ids: Sequence[str], current: Sequence[str], operation: str) -> None:
        """Remove all parts of these documents but the current ones."""
        if "multivector" not in self._schema.components:
            return
        for some in by_count(ids, _IDS):
            hits = await self._connection.search(operation, self._alias, parts_of(some, current))
            if hits:
                operations = {hit["_id"]: delete_operation(hit["_id"]) for hit in hits}
                joined([await self._write(operations, operation)], operation)

    async def _write(self, operations: Mapping[str, bytes], operation: str) -> Outcome:
        params = {"refresh": "wait_for"} if self._refresh == "wait_for" else {}
        return await write(self._connection, self._alias, operations, operation, params)

    async def _end(self, outcomes: list[Outcome], operation: str) -> dict[str, str]:
        """The results of a whole call, once they can be searched."""
        if self._refresh is True and any(outcome.results for outcome in outcomes):
            await self._connection.request(operation, "POST", f"/{segment(self._alias)}/_refresh")
        return joined(outcomes, operation)

    def _sizes(self, documents: Sequence[Document], embeddings: M3Embeddings) -> list[int]:
        """About how many bytes each document takes in a bulk request."""
        # JSON takes 12 bytes for a float and 40 for a token in both its forms; base64 adds a third.
        sizes = np.array([len(document.text.encode()) for document in documents])
        sizes += 12 * self._schema.model.dimension
        if embeddings.sparse is not None:
            sizes += 40 * np.diff(embeddings.sparse.indptr)
        if embeddings.multivectors is not None:
            rows = embeddings.multivectors.counts
            sizes += np.where(rows > self._rows_per_part, 0, rows) * self._row_bytes * 4 // 3
        return [int(size) for size in sizes]
