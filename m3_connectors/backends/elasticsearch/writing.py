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
import dataclasses
import functools
import logging
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import anyio.to_thread
import numpy as np

from m3_connectors.backends.base import Schema
from m3_connectors.backends.blobs import pack_in_parts
from m3_connectors.backends.chunks import by_bytes, by_count
from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.errors import (
    Blocked,
    Replaced,
    TooLarge,
    TooMuch,
    from_status,
)
from m3_connectors.backends.elasticsearch.layout import BACKEND, PARTS
from m3_connectors.backends.elasticsearch.rows import (
    PART_BYTES,
    Version,
    delete_operation,
    index_operation,
    part_name,
    part_operation,
    parts_of,
    written_seconds,
)
from m3_connectors.backends.fetching import ORPHANED_SECONDS
from m3_connectors.backends.retry import retrying
from m3_connectors.backends.together import together
from m3_connectors.documents import Document, metadata_json
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import (
    BackendError,
    CollectionNotFound,
    InvalidInput,
    PartialWrite,
    StorageFull,
    Throttled,
    TimedOut,
    Unauthorised,
    Unavailable,
)

Refresh = Literal[True, False, "wait_for"]

_BATCH_BYTES = 8 * 2**20
_BATCHES_AT_ONCE = 2
_IDS = 1000


_OF_THE_INDEX = (CollectionNotFound, Unauthorised, StorageFull, Blocked, Throttled, TimedOut, Unavailable)
"""Errors whose cause is not a single document."""

_ANSWER = "items.*.result,items.*.status,items.*.error"

_log = logging.getLogger(__name__)


class Writer:
    """Stores and deletes documents, together with the parts of long documents."""

    def __init__(self, connection: Connection, alias: str, schema: Schema, refresh: Refresh) -> None:
        self._connection = connection
        self._alias = alias
        self._schema = schema
        self._refresh = refresh
        precision, together = schema.precision, schema.precision.rows_together
        fitting = precision.rows_within(PART_BYTES, schema.model.dimension)
        self._rows_per_part = max(1, fitting // together) * together

    async def upsert(
        self,
        documents: Sequence[Document],
        embeddings: M3Embeddings,
        replaced: Mapping[str, Version] | None = None,
    ) -> None:
        """Store checked documents.

        Args:
            documents: The documents.
            embeddings: Their embeddings.
            replaced: The only version of each document that it may replace, by id; a document that is no longer
                this version is left as it is. None to store all documents.

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
                documents[i].id: index_operation(
                    self._schema,
                    documents[i],
                    embeddings[i],
                    parts.get(i, ()),
                    None if replaced is None else replaced[documents[i].id],
                )
                for i in positions
            }

        async def send(positions: Iterable[int]) -> Outcome:
            return await self._write(await anyio.to_thread.run_sync(lines, positions), "upsert")

        sizes = self._sizes(documents, embeddings)
        whole = [i for i in range(len(documents)) if documents[i].id not in failed]
        batches = by_bytes(whole, sizes.__getitem__, _BATCH_BYTES)
        outcomes = await together([functools.partial(send, batch) for batch in batches], _BATCHES_AT_ONCE)
        if replaced is not None:
            outcomes, skipped = _without_replaced(outcomes)
            with _best_effort():
                # If the first answer of a repeated request was lost, it finds the version that it wrote itself.
                named = await self._named_parts(list(skipped), "upsert")
                unused = [
                    name
                    for i, names in parts.items()
                    if (id := documents[i].id) in skipped
                    for name in names
                    if name not in named.get(id, ())
                ]
                await self._remove(unused, "upsert")
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
        def packed() -> list[bytes]:
            return list(pack_in_parts(embeddings.multivectors, self._schema.precision, self._rows_per_part))

        async def send(name: str, blob: bytes) -> Outcome:
            line = await anyio.to_thread.run_sync(part_operation, self._schema, name, id, blob)
            return await self._write({name: line}, "upsert")

        blobs = await anyio.to_thread.run_sync(packed)
        sends = [functools.partial(send, name, blob) for name, blob in zip(names, blobs, strict=True)]
        return await together(sends, _BATCHES_AT_ONCE)

    @property
    def _splits(self) -> bool:
        """Whether documents of this collection may have parts."""
        return "multivector" in self._schema.written and self._schema.storage.long_documents != "error"

    async def _named_parts(self, ids: Sequence[str], operation: str) -> dict[str, list[str]]:
        """Return the ids of documents' parts, by document id, as last written, even before a refresh."""
        named: dict[str, list[str]] = {}
        for some in by_count(ids if self._splits else (), _IDS):
            found = await self._connection.stored(operation, self._alias, some, PARTS)
            named |= {doc["_id"]: doc["_source"][PARTS] for doc in found if PARTS in doc.get("_source", {})}
        return named

    async def _sweep(self, ids: Sequence[str], removed: Collection[str]) -> None:
        """Delete what calls that failed long ago left of deleted documents."""
        before = time.time() - ORPHANED_SECONDS
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
            rows, size = embeddings.multivectors.counts, self._schema.precision.encoded_bytes
            whole = np.where(rows > self._rows_per_part, 0, rows).tolist()
            sizes += [size(count, self._schema.model.dimension) * 4 // 3 for count in whole]
        return [int(size) for size in sizes]


@contextlib.contextmanager
def _best_effort() -> Iterator[None]:
    """Remove unused parts; a failure is only logged, because the documents are stored as requested."""
    try:
        yield
    except BackendError as error:
        _log.warning("parts of replaced or deleted documents remain in the index: %s", error)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The results of the operations of one request.

    Attributes:
        results: ``created``, ``updated``, ``deleted`` or ``not_found``, by document id.
        failed: The error of each operation that was not done, by document id.
    """

    results: dict[str, str]
    failed: dict[str, BackendError]


def _without_replaced(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], set[str]]:
    """Return the outcomes without the operations on documents that are another version now, and the ids of these."""
    skipped = {id for one in outcomes for id, error in one.failed.items() if isinstance(error, Replaced)}
    kept = [
        Outcome(one.results, {id: error for id, error in one.failed.items() if id not in skipped})
        for one in outcomes
    ]
    return kept, skipped


async def write(
    connection: Connection,
    alias: str,
    operations: Mapping[str, bytes],
    operation: str,
    params: Mapping[str, str],
) -> Outcome:
    """Run the operations, which are given by document id.

    Raises:
        BackendError: The whole request failed.
    """
    left = dict(operations)
    results: dict[str, str] = {}
    failed: dict[str, BackendError] = {}
    path = f"/{segment(alias)}/_bulk"

    async def attempt() -> None:
        body = b"".join(left.values())
        try:
            answer = await connection.once(
                operation,
                "POST",
                path,
                body,
                require_alias="true",
                # An index template may set a pipeline, which would change the documents.
                pipeline="_none",
                filter_path=_ANSWER,
                **params,
            )
        except TooMuch as refused:
            refused.retryable = len(left) == 1
            raise
        again: list[BackendError] = []
        for id, item in zip(list(left), answer["items"], strict=True):
            (said,) = item.values()
            if "error" in said:
                error = from_status(said["status"], said["error"], operation, connection.url)
                failed[id] = error
                if error.retryable:
                    again.append(error)
                    continue
            else:
                results[id] = said["result"]
                failed.pop(id, None)
            del left[id]
        if again:
            too_much = next((reason for reason in again if isinstance(reason, TooMuch)), None)
            if too_much is not None and len(left) > 1:
                too_much.retryable = False
                raise too_much
            raise again[0]

    try:
        await retrying(connection.endpoint.patience, attempt)
    except (TooLarge, TooMuch) as error:
        if len(left) == 1 and isinstance(error, TooMuch):  # it cannot be split, and the retries are used up
            failed |= dict.fromkeys(left, error)
            return Outcome(results, failed)
        rest = await _halved(connection, alias, left, operation, error, params)
        # Earlier errors of other items remain valid; for the items that were split, the last result counts.
        before = {id: reason for id, reason in failed.items() if id not in left}
        return Outcome(results | rest.results, before | rest.failed)
    except BackendError:
        # Items that failed in every try are reported by id; if the request got no response, the caller sees
        # the error.
        if not all(id in failed for id in left):
            raise
    return Outcome(results, failed)


async def _halved(
    connection: Connection,
    alias: str,
    operations: Mapping[str, bytes],
    operation: str,
    error: TooLarge | TooMuch,
    params: Mapping[str, str],
) -> Outcome:
    ids = list(operations)
    if len(ids) == 1:
        return Outcome({}, {ids[0]: error})
    middle = len(ids) // 2
    first = await write(connection, alias, {id: operations[id] for id in ids[:middle]}, operation, params)
    if not first.results and all(isinstance(reason, TooMuch) for reason in first.failed.values()):
        # Nothing succeeded at any size, and each remaining document would wait as long for the same error.
        return Outcome({}, dict.fromkeys(ids, error))
    second = await write(connection, alias, {id: operations[id] for id in ids[middle:]}, operation, params)
    return Outcome(first.results | second.results, first.failed | second.failed)


def joined(outcomes: list[Outcome], operation: str) -> dict[str, str]:
    """Return the results of all requests of one call.

    Raises:
        PartialWrite: Some operations were not done; the error names them.
        BackendError: No operation was done, and the cause is the index and not a document.
    """
    results: dict[str, str] = {}
    failed: dict[str, BackendError] = {}
    for outcome in outcomes:
        results |= outcome.results
        failed |= outcome.failed
    if not failed:
        return results
    first = next(iter(failed.values()))
    if not results and isinstance(first, _OF_THE_INDEX):
        raise first
    reasons: dict[str, Any] = {id: str(error) for id, error in failed.items()}
    raise PartialWrite(reasons, backend=BACKEND, operation=operation)
