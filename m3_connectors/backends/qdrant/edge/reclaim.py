"""The space of deleted documents: how much it is, and the copy of a shard without them.

The engine only marks a deleted document; its vectors stay in the files, and new documents take new space. The
engine's own remedy (``optimize``) blocks the whole process while it runs. Therefore the live documents are
copied to a new shard next to the old one, a page at a time, so that searches and writes can run between two
pages. Writes go to both shards in the meantime, so the copy is complete after its last page.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import qdrant_edge as engine

from m3_connectors.backends.qdrant.edge.row_file import RowFile
from m3_connectors.backends.qdrant.edge.rows import ROWS, Layout, PointId
from m3_connectors.files import allocated_bytes_below

CHECK_POINTS = 1000
"""Documents written or deleted before garbage is measured; more in a large collection, where it matters
less."""

LEAST_BYTES = 16 * 2**20
"""The smallest amount of garbage that is reclaimed."""

_PAGE_BYTES, _MOST_PAGE_BYTES = 2**19, 2**23
"""The size of vectors and text in one page. The smaller size takes the engine 20 ms, during which no search
can run. After a larger write, which took as long, a page has the size of that write, so the copy keeps up
with writers."""

_MOST_POINTS = 256
_SAMPLE = 1000
"""Documents whose rows are measured to estimate those of all."""

_FLUSH_BYTES = 64 * 2**20
_VERSION_BYTES = 8
"""The size of each place of a document in a segment's ``*id_tracker.versions``, deleted or not."""


@dataclasses.dataclass(frozen=True)
class Usage:
    """The content of a shard's files, as of its last flush.

    Attributes:
        live: The number of documents.
        places: The number of places of live and deleted documents.
        size_bytes: The size of the engine's data on disk, without the log.
        rows_bytes: The size of the file of rows.
        named_bytes: About how many bytes of it belong to live documents.
    """

    live: int
    places: int
    size_bytes: int
    rows_bytes: int = 0
    named_bytes: int = 0

    @classmethod
    def of(cls, directory: Path, edge: engine.EdgeShard, rows: RowFile) -> Usage:
        """Return the usage of a shard that was just flushed."""
        segments = directory / "segments"
        places = sum(path.stat().st_size for path in segments.glob("*/*id_tracker.versions"))
        live = edge.count(engine.CountRequest(exact=True))
        size_bytes = allocated_bytes_below(segments)
        named = _named_bytes(edge, live) if rows.size_bytes else 0
        return cls(live, max(live, places // _VERSION_BYTES), size_bytes, rows.size_bytes, named)

    @property
    def deleted(self) -> int:
        """The number of places of deleted documents."""
        return self.places - self.live

    @property
    def reclaimable_bytes(self) -> int:
        """About how many bytes these take, with the rows that no document names."""
        engine_bytes = self.size_bytes * self.deleted // self.places if self.places else 0
        return engine_bytes + self.unnamed_bytes

    @property
    def unnamed_bytes(self) -> int:
        """About how many bytes of the file of rows belong to deleted and replaced documents."""
        return max(0, self.rows_bytes - self.named_bytes)

    @property
    def all_bytes(self) -> int:
        """The size of the data on disk, without the log."""
        return self.size_bytes + self.rows_bytes

    @property
    def due(self) -> bool:
        """Whether half of the data is garbage: a copy then costs no more than the deleted data did."""
        half = self.deleted >= self.live or self.unnamed_bytes > self.named_bytes
        return half and self.reclaimable_bytes >= LEAST_BYTES


def _named_bytes(edge: engine.EdgeShard, live: int) -> int:
    """Return about how many bytes of rows the documents name, from the first ones: their order is random."""
    request = engine.ScrollRequest(limit=_SAMPLE, with_payload=[ROWS], with_vector=False)
    records, _ = edge.scroll(request)
    sampled = sum(int((record.payload or {}).get(ROWS, (0, 0))[1]) for record in records)
    return live * sampled // max(1, len(records))


class Copy:
    """A new shard that takes over the live documents of another one.

    Attributes:
        directory: The directory of the new shard.
        shard: The open shard; complete once ``step`` returned True.
        rows: Its file of rows.
    """

    def __init__(
        self, home: Path, layout: Layout, usage: Usage, check_space: Callable[[int, str], None]
    ) -> None:
        """Create an empty shard.

        Args:
            home: The directory of the collection, in which the new shard is created.
            layout: The layout of the collection.
            usage: The usage of the shard that is copied.
            check_space: Raises StorageFull if this number of bytes does not fit.

        Raises:
            StorageFull: There is no room for the live documents.
        """
        live_bytes = usage.all_bytes - usage.reclaimable_bytes
        check_space(live_bytes, "reclaim")
        self._check_space = check_space
        self._point_bytes = live_bytes // max(1, usage.live) + 1
        self._live, self._copied, self._seconds = usage.live, 0, 0.0
        self._offset: PointId | None = None
        self._owed_bytes = self._unflushed_bytes = 0
        self.directory = home / f"shard-{uuid.uuid4().hex}"
        self.directory.mkdir()
        self.rows = RowFile(self.directory)
        try:
            self.shard = engine.EdgeShard.create(str(self.directory), layout.edge_config())
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    @property
    def seconds_left(self) -> float:
        """About how long the remaining pages take, one after the other."""
        if not self._copied:
            return float("inf")
        return self._seconds / self._copied * max(0, self._live - self._copied)

    def step(self, source: engine.EdgeShard, rows: RowFile) -> bool:
        """Copy one more page; return whether it was the last.

        Args:
            source: The active shard.
            rows: Its file of rows.
        """
        began = time.perf_counter()
        page_bytes = min(max(_PAGE_BYTES, self._owed_bytes), _MOST_PAGE_BYTES)
        limit = min(max(1, page_bytes // self._point_bytes), _MOST_POINTS)
        request = engine.ScrollRequest(offset=self._offset, limit=limit, with_payload=True, with_vector=True)
        records, self._offset = source.scroll(request)
        if records:
            self.update(lambda own: _copied(records, rows, own), self._point_bytes * len(records))
        self._owed_bytes = 0
        self._copied += len(records)
        self._seconds += time.perf_counter() - began
        if self._offset is None:
            self.shard.flush()
        return self._offset is None

    def update(self, operation: Callable[[RowFile], engine.UpdateOperation], size_bytes: int) -> None:
        """Repeat a write to the other shard in this one."""
        self._check_space(3 * size_bytes, "reclaim")
        self.shard.update(operation(self.rows))
        self._owed_bytes += size_bytes
        self._unflushed_bytes += size_bytes
        if self._unflushed_bytes >= _FLUSH_BYTES:
            self.shard.flush()
            self._unflushed_bytes = 0

    def discard(self) -> None:
        """Close and delete the new shard."""
        self.rows.close()
        try:
            self.shard.close()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


def _copied(records: Sequence[engine.Record], source: RowFile, target: RowFile) -> engine.UpdateOperation:
    """Add the rows of points to another file, and return the operation that writes the points with their places."""
    payloads = [record.payload or {} for record in records]
    having = [payload for payload in payloads if ROWS in payload]
    places = target.append([source.read(payload[ROWS]) for payload in having])
    for payload, place in zip(having, places, strict=True):
        payload[ROWS] = list(place)
    return engine.UpdateOperation.upsert_points(
        [
            engine.Point(record.id, record.vector or {}, payload)
            for record, payload in zip(records, payloads, strict=True)
        ]
    )
