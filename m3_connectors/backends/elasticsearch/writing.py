"""Writes of one open collection.

Elasticsearch refuses an operation larger than about 2 % of its heap (it counts five times its bytes against a
tenth of the heap). Multi-vectors of more than ``PART_BYTES`` are therefore stored in parts: separate
documents, whose ids are listed in the main document. Parts are written first and under new ids, so a document
never refers to a part that is missing or belongs to another version. Only the parts of the replaced version
are removed, so concurrent calls for one id never remove each other's parts. The caller did not ask for this
removal: if it fails, the call still succeeds, and the next delete of the document removes the rest.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import anyio.to_thread
import numpy as np

from m3_connectors.backends.base import Schema
from m3_connectors.backends.chunks import by_bytes, by_count
from m3_connectors.backends.elasticsearch.bulk import Outcome, joined, write
from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.layout import PARTS
from m3_connectors.backends.elasticsearch.rows import (
    PART_BYTES,
    delete_operation,
    index_operation,
    part_name,
    part_operation,
    parts_of,
    written_seconds,
)
from m3_connectors.backends.together import together
from m3_connectors.documents import Document, metadata_json
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import BackendError, InvalidInput

Refresh = Literal[True, False, "wait_for"]

_BATCH_BYTES = 8 * 2**20
_BATCHES_AT_ONCE = 2
_IDS = 1000

_ORPHANED_SECONDS = 3600.0
"""Parts of this age that no document refers to come from a failed call; younger ones may belong to a running
call."""


_log = logging.getLogger(__name__)


class Writer:
    """Stores and deletes documents, together with the parts of long documents."""

    def __init__(self, connection: Connection, alias: str, schema: Schema, refresh: Refresh) -> None:
        self._connection = connection
        self._alias = alias
        self._schema = schema
        self._refresh = refresh
        self._row_bytes = schema.storage.precision.row_bytes(schema.model.dimension)
        self._rows_per_part = max(1, PART_BYTES // self._row_bytes)

    async def upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """Store checked documents.

        Raises:
            InvalidInput: A document has more rows than fit in one part, and the collection does not split
            documents.
            PartialWrite: Some documents were not stored; the error names them.
            BackendError: The server failed.
        """
        parts = self._planned_parts(documents, embeddings)
        # Parts that a concurrent call writes for these ids from now on are removed by that call, or by the
        # next one.
        old = await self._named_parts([document.id for document in documents], "upsert")
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
        await self._end([*outcomes, Outcome({}, failed)], old, "upsert")

    async def delete(self, ids: Sequence[str]) -> int:
        """Delete documents by distinct ids, and remains of failed calls; return how many were stored."""
        old = await self._named_parts(ids, "delete")
        outcomes = [
            await self._write({id: delete_operation(id) for id in part}, "delete")
            for part in by_count(ids, _IDS)
        ]
        results = await self._end(outcomes, old, "delete")
        # Also for ids that were already gone: the call that deleted them may have failed before this step.
        with _best_effort():
            await self._sweep(list(results), {name for names in old.values() for name in names})
        return sum(result == "deleted" for result in results.values())

    def _planned_parts(self, documents: Sequence[Document], embeddings: M3Embeddings) -> dict[int, list[str]]:
        """Return new ids for the parts of each document that needs them, by position."""
        if "multivector" not in embeddings.components:
            return {}
        counts = embeddings.multivectors.counts
        long = np.flatnonzero(counts > self._rows_per_part).tolist()
        if long and self._schema.storage.long_documents == "error":
            i = long[0]
            raise InvalidInput(
                f"documents[{i}] (id {documents[i].id!r}) has {counts[i]} multi-vector rows; this "
                f"collection stores at most {self._rows_per_part} for a document.\n"
                '  Split the text, or create the collection with Storage(long_documents="split"), which is '
                "exact."
            )
        return {
            i: [part_name(version, part) for part in range(-(-int(counts[i]) // self._rows_per_part))]
            for i, version in ((i, uuid.uuid4().hex) for i in long)
        }

    async def _write_parts(self, id: str, embeddings: M3Embeddings, names: Sequence[str]) -> list[Outcome]:
        rows = embeddings.multivectors[0]
        step, precision = self._rows_per_part, self._schema.storage.precision

        async def send(part: int) -> Outcome:
            name, some = names[part], rows[part * step : (part + 1) * step]
            line = await anyio.to_thread.run_sync(part_operation, name, id, some, precision)
            return await self._write({name: line}, "upsert")

        return await together([functools.partial(send, part) for part in range(len(names))], _BATCHES_AT_ONCE)

    @property
    def _splits(self) -> bool:
        """Whether documents of this collection may have parts."""
        return "multivector" in self._schema.components and self._schema.storage.long_documents != "error"

    async def _named_parts(self, ids: Sequence[str], operation: str) -> dict[str, list[str]]:
        """Return the ids of documents' parts, by document id, as last written, even before a refresh."""
        named: dict[str, list[str]] = {}
        for some in by_count(ids if self._splits else (), _IDS):
            answer: dict[str, Any] = await self._connection.request(
                operation, "POST", f"/{segment(self._alias)}/_mget", {"ids": some}, _source_includes=PARTS
            )
            found = [doc for doc in answer["docs"] if doc.get("found")]
            named |= {doc["_id"]: doc["_source"][PARTS] for doc in found if PARTS in doc.get("_source", {})}
        return named

    async def _sweep(self, ids: Sequence[str], removed: Collection[str]) -> None:
        """Delete what calls that failed long ago left of deleted documents."""
        before = time.time() - _ORPHANED_SECONDS
        for some in by_count(ids if self._splits else (), _IDS):
            hits = await self._connection.search("delete", self._alias, parts_of(some, but=removed))
            await self._remove(
                [hit["_id"] for hit in hits if written_seconds(hit["_id"]) <= before], "delete"
            )

    async def _remove(self, names: Sequence[str], operation: str) -> None:
        for some in by_count(names, _IDS):
            joined([await self._write({name: delete_operation(name) for name in some}, operation)], operation)

    async def _write(self, operations: Mapping[str, bytes], operation: str) -> Outcome:
        params = {"refresh": "wait_for"} if self._refresh == "wait_for" else {}
        return await write(self._connection, self._alias, operations, operation, params)

    async def _end(
        self, outcomes: list[Outcome], old: Mapping[str, Sequence[str]], operation: str
    ) -> dict[str, str]:
        """Return the results of a call, once searches see them and the old parts of documents are removed."""
        done = [id for outcome in outcomes for id in outcome.results]
        try:
            if self._refresh is True and done:
                await self._connection.request(operation, "POST", f"/{segment(self._alias)}/_refresh")
        except BackendError:
            joined(
                outcomes, operation
            )  # which documents were refused is more important than the failed refresh
            raise
        with _best_effort():
            await self._remove([name for id in done for name in old.get(id, ())], operation)
        return joined(outcomes, operation)

    def _sizes(self, documents: Sequence[Document], embeddings: M3Embeddings) -> list[int]:
        """Return the approximate size of each document in a bulk request, in bytes."""
        # JSON needs 12 bytes for a float and 40 for a token in both its forms; base64 adds a third.
        # Metadata are sent as JSON and again as the terms, numbers and dates for filters.
        sizes = np.array(
            [
                len(document.text.encode()) + 4 * len(metadata_json(document.metadata).encode())
                for document in documents
            ]
        )
        sizes += 12 * self._schema.model.dimension
        if "sparse" in embeddings.components:
            sizes += 40 * np.diff(embeddings.sparse.indptr)
        if "multivector" in embeddings.components:
            rows = embeddings.multivectors.counts
            sizes += np.where(rows > self._rows_per_part, 0, rows) * self._row_bytes * 4 // 3
        return [int(size) for size in sizes]


@contextlib.contextmanager
def _best_effort() -> Iterator[None]:
    """Remove unused parts; a failure is only logged, because the documents are stored as requested."""
    try:
        yield
    except BackendError as error:
        _log.warning("parts of replaced or deleted documents remain in the index: %s", error)
