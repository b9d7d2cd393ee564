"""Writes to one collection: upserts in batches by size, and deletes with all parts of a document."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from m3_connectors.backends.chunks import by_bytes, by_count
from m3_connectors.backends.fetching import ORPHANED_SECONDS
from m3_connectors.backends.milvus.collection import built
from m3_connectors.backends.milvus.connection import Connection
from m3_connectors.backends.milvus.errors import BACKEND, TooLarge
from m3_connectors.backends.milvus.layout import Layout
from m3_connectors.backends.milvus.naming import id_of, keys_in
from m3_connectors.backends.milvus.reading import Reader
from m3_connectors.backends.milvus.rows import Entity, part_keys, stamp
from m3_connectors.errors import PartialWrite, Rejected, StorageFull

_FLUSH_ROWS = 1_000
"""milvus-lite scans unflushed rows one by one (measured: a search over 10,000 of them takes 2 s, flushed 40
ms)."""

_KEYS_AT_ONCE = 8_192

_HOPELESS = 64
"""After this number of refused rows, if none was accepted, the remaining ones are not tried one by one."""


class Writer:
    """Writes to the collection of a layout.

    A document is replaced in three steps, so that a reader sees the whole old or the whole new one: first the
    parts of the new version are written, then its entity, which refers to that version, and last the old
    parts are removed.
    """

    def __init__(self, connection: Connection, layout: Layout, reader: Reader, batch_bytes: int) -> None:
        self._connection = connection
        self._layout = layout
        self._reader = reader
        self._batch_bytes = batch_bytes
        self._unflushed_rows = 0
        self._torn = False

    async def upsert(self, entities: Sequence[Entity]) -> None:
        """Write documents; when it returns, they are in the server's storage or log and visible to reads.

        Raises:
            PartialWrite: The server refused some documents; all others are written.
            BackendError: The server failed during the call; repeat the call.
        """
        refused: dict[str, str] = {}
        for batch in by_bytes(entities, lambda entity: entity.size_bytes, self._batch_bytes):
            old = await self._parts_of([entity.row["key"] for entity in batch])
            new = {entity.row["key"]: [part["key"] for part in entity.parts] for entity in batch}
            owners = {part: key for key, parts in new.items() for part in parts}
            failed: dict[str, str] = {}
            for some in by_bytes(
                [p for entity in batch for p in entity.parts], _part_bytes, self._batch_bytes
            ):
                failed |= {
                    owners[part]: why
                    for part, why in (await self._send(self._layout.parts_name, some)).items()
                }
            # An entity with missing parts is not written, so its old version stays complete.
            whole = [entity.row for entity in batch if entity.row["key"] not in failed]
            failed |= await self._send(self._layout.name, whole)
            useless = [part for key in new for part in (new if key in failed else old).get(key, ())]
            await self._delete_keys(self._layout.parts_name, useless)
            refused |= {id_of(key): why for key, why in failed.items()}
            self._unflushed_rows += len(batch)
            if self._unflushed_rows >= _FLUSH_ROWS:
                await self.settle()
        await self._mend()
        if refused:
            raise PartialWrite(refused, backend=BACKEND, operation="upsert")

    async def delete(self, keys: Sequence[str]) -> int:
        """Delete documents; return how many were stored."""
        count = await self._remove(keys)
        await self._mend()
        return count

    async def delete_where(self, expression: str) -> int:
        """Delete the documents that an expression finds; return how many there were."""
        found = [
            row["key"] async for page in self._reader.pages("delete", expression, ["key"]) for row in page
        ]
        count = await self._remove(found, expression)
        await self._mend()
        return count

    async def _remove(self, keys: Sequence[str], condition: str = "") -> int:
        """Delete the keys that a condition finds, with their parts; return how many there were."""
        count = 0
        fields = ["version", "parts"] if self._layout.has_parts else []
        for some in by_count(keys, _KEYS_AT_ONCE):
            rows = await self._reader.rows("delete", some, fields)
            await self._delete_keys(self._layout.name, list(rows), condition)
            # A document that was replaced in the meantime, and no longer matches, is kept.
            left = await self._reader.rows("delete", list(rows), []) if condition else {}
            gone = [row for key, row in rows.items() if key not in left]
            if self._layout.has_parts:
                await self._delete_keys(
                    self._layout.parts_name, [key for row in gone for key in part_keys(row)]
                )
            count += len(gone)
        return count

    async def optimize(self) -> None:
        """Complete the indexes, and remove what no document needs.

        Raises:
            TimedOut: The server makes no progress with its indexes.
        """
        await self._sweep()
        if not self._connection.is_lite:
            await built(self._connection, self._layout)
        elif not self._torn:
            for name in self._collections:
                await self._connection.call("optimize", "flush", name, write=True)
            self._unflushed_rows = 0

    async def _sweep(self) -> None:
        """Delete parts left by calls that failed long ago, or that replaced a document at the same time."""
        if not self._layout.has_parts:
            return
        old = f'key < "{stamp(time.time() - ORPHANED_SECONDS)}"'
        pages = self._reader.pages("optimize", old, ["key"], self._layout.parts_name)
        parts = [row["key"] async for page in pages for row in page]
        if not parts:
            return
        named: set[str] = set()
        async for page in self._reader.pages("optimize", "parts > 0", ["key", "version", "parts"]):
            named.update(key for row in page for key in part_keys(row))
        await self._delete_keys(self._layout.parts_name, [key for key in parts if key not in named])

    async def settle(self) -> None:
        """Move what was written into milvus-lite's segments; a server does this itself."""
        # Nothing is flushed to a full disk: milvus-lite would not show it until its next start.
        if self._unflushed_rows and self._connection.is_lite and not self._torn:
            await self._connection.call("flush", "flush", self._layout.name, write=True)
        self._unflushed_rows = 0

    @property
    def _collections(self) -> list[str]:
        return [self._layout.name, *([self._layout.parts_name] if self._layout.has_parts else ())]

    async def _parts_of(self, keys: Sequence[str]) -> dict[str, list[str]]:
        """Return the keys of the parts of each stored document."""
        if not self._layout.has_parts:
            return {}
        rows = await self._reader.rows("upsert", keys, ["version", "parts"])
        return {key: part_keys(row) for key, row in rows.items()}

    async def _send(self, collection: str, rows: list[dict[str, Any]]) -> dict[str, str]:
        """Write rows, in halves if the server refuses them together; return the reason for each refused key.

        Raises:
            Rejected: The server refuses row after row, so the cause is not a single row.
        """
        refused: dict[str, str] = {}
        reasons: dict[str, Rejected] = {}
        taken = False
        left = [rows] if rows else []
        while left:
            some = left.pop()
            try:
                await self._write("upsert", collection, data=some)
                taken = True
            except Rejected as error:
                if len(some) > 1:
                    middle = len(some) // 2
                    left += [some[middle:], some[:middle]]
                    continue
                refused[some[0]["key"]] = str(error)
                reasons[str(error)] = error
                if len(refused) >= _HOPELESS and not taken and not isinstance(error, TooLarge):
                    raise
        if len(refused) > 1 and not taken and len(reasons) == 1:
            (reason,) = reasons.values()
            if not isinstance(reason, TooLarge):
                raise reason
        return refused

    async def _delete_keys(self, collection: str, keys: Sequence[str], condition: str = "") -> None:
        for some in by_count(keys, _KEYS_AT_ONCE):
            among = keys_in(some)
            await self._write(
                "delete", collection, filter=f"{among} and ({condition})" if condition else among
            )

    async def _write(self, method: str, collection: str, **arguments: Any) -> None:
        try:
            await self._connection.call(method, method, collection, write=True, **arguments)
        except StorageFull:
            self._torn = self._connection.is_lite
            raise

    async def _mend(self) -> None:
        """Make milvus-lite start a new log after a full disk cut the old one, now that a write succeeded.

        It continues after the incomplete record, but at its next start it reads only up to that record:
        writes that it acknowledged in between would be lost.
        """
        if self._torn:
            for collection in self._collections:
                await self._connection.call("flush", "flush", collection, write=True)
            self._torn = False


def _part_bytes(part: dict[str, Any]) -> int:
    return 256 + sum(map(len, part["multivector"]))
