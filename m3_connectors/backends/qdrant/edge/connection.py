"""One engine shard in one directory: how it is created and opened, who may use it, how it fails.

The layout of ``DIRECTORY`` for a collection NAME::

    NAME/m3.json     the schema and the name of the active shard; written last, so a directory that has it is
                     a complete collection; replaced atomically when another shard takes over
    NAME/shard/      the engine's files, and the file of rows that the engine does not score; once deletions were
                     reclaimed, NAME/shard-*/ as named in the record
    .NAME.lock       the process that has it open
    .NAME~*.tmp      something being created or removed; left by a killed process, deleted by the next one
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import shutil
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import qdrant_edge as engine

from m3_connectors.backends.base import Schema
from m3_connectors.backends.qdrant.edge.collection import (
    FIRST_SHARD,
    check_absent,
    check_directory,
    no_collection,
    read_record,
    remove_other_shards,
    write_record,
)
from m3_connectors.backends.qdrant.edge.errors import BACKEND, check_space, first_line, translated
from m3_connectors.backends.qdrant.edge.lock import ProcessLock
from m3_connectors.backends.qdrant.edge.reclaim import CHECK_POINTS, Copy, Usage
from m3_connectors.backends.qdrant.edge.row_file import RowFile
from m3_connectors.backends.qdrant.edge.rows import Layout
from m3_connectors.errors import BackendError, Busy, CollectionNotFound, Corrupt, M3Error
from m3_connectors.files import allocated_bytes_below, sync_directory

T = TypeVar("T")

Write = Callable[[RowFile], engine.UpdateOperation]
"""Adds rows to a shard's file and returns the operation that names their places."""

_LOG = logging.getLogger(__name__)

_CLOSING_SECONDS = 3.0
"""A copy that can be completed in this time is completed when its shard is closed. Otherwise programs that
are short but run often would never complete one."""


_FLUSH_BYTES = 64 * 2**20
"""Vectors written between two flushes; limits what the log must replay after a kill."""


class Shard:
    """An open shard; calls run one after the other in a worker thread.

    A call that has started runs to its end, even if its caller is cancelled; the next one waits for it.

    The engine holds Python's interpreter lock during a call. The worker thread therefore keeps calls in
    order, but other Python threads (such as an event loop) do not run during a call.

    Once half of the data is garbage, a separate thread copies the live documents to another shard (see
    ``reclaim``).
    """

    def __init__(self, home: Path, schema: Schema, name: str, lock: ProcessLock) -> None:
        self.layout = Layout.of(schema)
        self._home = home
        self._directory = home / name
        self.rows = RowFile(self._directory)
        """The rows of the active shard. Use it in calls that ``run`` makes."""
        self._shard: engine.EdgeShard | None = _load(self._directory)
        self._copy: Copy | None = None
        self._reclaiming: threading.Thread | None = None
        self._ended = threading.Event()
        self._touched = 0  # points written or deleted since garbage was last measured
        self._places = 0
        self._lock = lock  # after the shard, so that an unreferenced one is destroyed before it is unlocked
        self._process = os.getpid()
        self._fault = ""
        self._limiter = anyio.CapacityLimiter(1)  # so that calls wait in the event loop and not in threads
        # The limiter is released as soon as asyncio cancels a caller (asyncio.timeout, Task.cancel), while
        # its thread continues in the engine: this lock makes the next thread wait.
        self._turn = threading.Lock()
        self._unflushed_bytes = 0
        _OPEN.add(self)

    @classmethod
    def create(cls, directory: Path, collection: str, schema: Schema) -> Shard:
        """Create an empty collection and open it.

        Raises:
            AlreadyExists: The collection exists.
            Busy: Another process is using it.
            StorageFull: There is no room for an empty collection.
        """
        home = directory / collection
        with translated("create", home):
            check_directory(directory)
            check_absent(home)
            directory.mkdir(parents=True, exist_ok=True)
            check_space(directory, 0, "create")
            with _locked(directory, collection, "create") as lock:
                check_absent(home)  # another process may have created it just now
                partial = _temporary(directory, collection)
                try:
                    (partial / "shard").mkdir(parents=True)
                    engine.EdgeShard.create(str(partial / "shard"), Layout.of(schema).edge_config()).close()
                    write_record(partial, schema, FIRST_SHARD)
                    os.rename(partial, home)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
                sync_directory(directory)
                return cls(home, schema, FIRST_SHARD, lock)

    @classmethod
    def open(cls, directory: Path, collection: str) -> Shard:
        """Open a collection.

        Raises:
            CollectionNotFound: The collection does not exist.
            Busy: Another process has it open.
            Corrupt: Its files cannot be read.
        """
        home = directory / collection
        with translated("open", home):
            check_directory(directory)
            if not home.is_dir():
                raise CollectionNotFound(
                    f"there is no collection at {home}.\n"
                    f"  Create it, or list the collections with m3 collections qdrant:{directory}.",
                    backend=BACKEND,
                    operation="open",
                )
            with _locked(directory, collection, "open") as lock:
                schema, name = read_record(home)
                remove_other_shards(home, name)
                return cls(home, schema, name, lock)

    @staticmethod
    def drop(directory: Path, collection: str) -> None:
        """Remove a collection that no process has open; do nothing if it does not exist."""
        home = directory / collection
        if not home.is_dir():
            return
        with translated("drop", home):
            if not (home / "m3.json").exists():
                raise no_collection(home, "drop")
            lock = ProcessLock(directory / f".{collection}.lock", operation="drop")
            try:
                # Renamed first, so that a process killed in the middle does not leave a part of a collection.
                doomed = _temporary(directory, collection)
                os.rename(home, doomed)
                shutil.rmtree(doomed)
            finally:
                lock.release(remove=True)

    async def run(self, operation: str, call: Callable[[engine.EdgeShard], T]) -> T:
        """Return the result of one or several engine calls, which run in a worker thread, in order.

        Raises:
            Busy: This is a forked child, and the shard belongs to its parent.
            Corrupt: The engine panicked, now or earlier.
            BackendError: The shard is closed, or the engine refused the call.
        """
        self._check(operation)
        return await anyio.to_thread.run_sync(self._run, operation, call, limiter=self._limiter)

    def _run(self, operation: str, call: Callable[[engine.EdgeShard], T]) -> T:
        with self._turn:
            shard = self._check(operation)
            try:
                with translated(operation, self._home):
                    return call(shard)
            except Corrupt as error:
                self._fault = first_line(error)
                raise

    def check_space(self, size_bytes: int, operation: str) -> None:
        """Raise StorageFull unless a write of about this size certainly fits on the disk."""
        check_space(self._home, size_bytes, operation)

    def size_bytes(self) -> int:
        """Return the disk space of the collection."""
        return allocated_bytes_below(self._home)

    def usage(self, edge: engine.EdgeShard) -> Usage:
        """Return how much of the data is garbage. Use it in calls that ``run`` makes."""
        self._flush(edge)
        return Usage.of(self._directory, edge, self.rows)

    def update(self, edge: engine.EdgeShard, operation: Write, points: int, size_bytes: int) -> None:
        """Write, and flush after enough writes. Use it in calls that ``run`` makes.

        Args:
            edge: The shard, as passed by ``run``.
            operation: Returns the operation to write, after its rows were added to the file.
            points: The number of documents that it writes or deletes.
            size_bytes: The size of the data.
        """
        edge.update(operation(self.rows))
        if self._copy is not None:
            # If this fails, the write itself is still done, in the active shard.
            with self._or_give_up():
                self._copy.update(operation, size_bytes)
        self._unflushed_bytes += size_bytes
        self._touched += points
        enough = max(CHECK_POINTS, self._places // 8)
        if self._unflushed_bytes >= _FLUSH_BYTES or self._touched >= enough:
            self._flush(edge)
            if self._copy is None:
                self._reclaim_if_due(edge)

    def optimize(self, edge: engine.EdgeShard) -> None:
        """Rewrite all data now. Use it in calls that ``run`` makes."""
        self._stop_copying()
        usage = self.usage(edge)
        if usage.unnamed_bytes > usage.named_bytes // 10:
            edge = self._rewrite(edge, usage)  # the engine's own remedy leaves the file of rows as it is
        edge.optimize()
        self._flush(edge)  # the old segments stay on disk until the flush

    def alter(self, edge: engine.EdgeShard, schema: Schema) -> None:
        """Record another schema, after its missing vectors were created. Use it in calls that ``run`` makes."""
        self._stop_copying()
        layout = Layout.of(schema)
        config = json.loads((self._directory / "edge_config.json").read_text(encoding="utf-8"))
        there = {*config.get("vectors", ()), *config.get("sparse_vectors", ())}
        for name, create in layout.creations().items():
            if name not in there:
                edge.update(create)
        self._flush(edge)
        self._shard = None
        edge.close()
        self._shard = engine.EdgeShard.load(str(self._directory), layout.edge_config())
        write_record(self._home, schema, self._directory.name)
        self.layout = layout

    def _flush(self, edge: engine.EdgeShard) -> None:
        edge.flush()
        self._unflushed_bytes = 0

    # -- reclaiming; all but _reclaim run within a call of ``run``, so that nothing else happens meanwhile

    def _reclaim_if_due(self, edge: engine.EdgeShard) -> None:
        with self._or_give_up():
            usage = Usage.of(self._directory, edge, self.rows)
            self._touched, self._places = 0, usage.places
            if not usage.due:
                return
            self._copy = self._new_copy(usage)
            # The thread must not refer to this object, which may be discarded while it continues.
            arguments = (weakref.ref(self), self._copy, self._ended)
            self._reclaiming = threading.Thread(
                target=_reclaim, args=arguments, name="m3-reclaim", daemon=True
            )
            self._reclaiming.start()

    def _new_copy(self, usage: Usage) -> Copy:
        home = self._home  # nor may the copy refer to this object
        return Copy(home, self.layout, usage, lambda *asked: check_space(home, *asked))

    def _rewrite(self, edge: engine.EdgeShard, usage: Usage) -> engine.EdgeShard:
        """Copy everything to another shard now, and return that one."""
        copy = self._copy = self._new_copy(usage)
        try:
            while not copy.step(edge, self.rows):
                pass
            shutil.rmtree(self._take_over(copy), ignore_errors=True)
        except BaseException:
            self._stop_copying()
            raise
        return copy.shard

    def _reclaim_page(self, copy: Copy) -> float | None:
        """Copy a page when it is our turn; return the seconds it took, or None if nothing is left to do."""
        left = None
        with self._turn:
            if self._copy is not copy or self._shard is None or self._fault:
                return None
            began = time.perf_counter()
            with self._or_give_up():
                if not copy.step(self._shard, self.rows):
                    return time.perf_counter() - began
                left = self._take_over(copy)
        if left is not None:
            shutil.rmtree(left, ignore_errors=True)
        return None

    def _take_over(self, copy: Copy) -> Path:
        """Make the complete copy the active shard; return the directory of the old one, for removal."""
        write_record(self._home, self.layout.schema, copy.directory.name)
        old, self._shard = self._shard, copy.shard
        self.rows.close()
        self.rows = copy.rows
        left, self._directory = self._directory, copy.directory
        self._copy, self._unflushed_bytes = None, 0
        assert old is not None
        old.close()
        # The old one is removed only after a sync, or else at the next opening: a power failure could restore
        # its name.
        sync_directory(self._home)
        return left

    @contextlib.contextmanager
    def _or_give_up(self) -> Iterator[None]:
        """Keep any failure of reclaiming from the caller, who did not ask for it."""
        try:
            with translated("reclaim", self._home):
                yield
        except Exception as error:  # noqa: BLE001 (it is logged, and the collection keeps its garbage)
            _LOG.warning(
                "%s: the space of deleted documents is not reclaimed: %s", self._home, first_line(error)
            )
            self._stop_copying()

    def _stop_copying(self) -> None:
        copy, self._copy = self._copy, None
        if copy is not None:
            with contextlib.suppress(M3Error), translated("reclaim", self._home):
                copy.discard()

    def _end_copying(self) -> None:
        """Complete a copy that is nearly complete; leave any other one."""
        with self._or_give_up():
            while self._copy is not None and self._shard is not None and not self._fault:
                if self._copy.seconds_left > _CLOSING_SECONDS:
                    break
                if self._copy.step(self._shard, self.rows):
                    shutil.rmtree(self._take_over(self._copy), ignore_errors=True)
        self._stop_copying()

    # -- the end

    async def close(self) -> None:
        """Flush, close and unlock; a second call does nothing."""
        if self._shard is not None and self._process == os.getpid():
            await anyio.to_thread.run_sync(self._close, limiter=self._limiter)

    def _close(self) -> None:
        self._ended.set()
        try:
            with self._turn:
                self._end_copying()
                shard, self._shard = self._shard, None
                self.rows.close()
                if shard is not None and not self._fault:
                    with translated("close", self._home):
                        shard.flush()
                        shard.close()
            if self._reclaiming is not None:
                self._reclaiming.join()
        finally:
            self._lock.release()

    def abandon(self) -> None:
        """In a forked child: leave the shard to the parent, even when this process ends."""
        if self._shard is not None:
            # Destroying the engine's object would flush, in the middle of the parent's work, so it must never
            # happen.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._shard))
            if self._copy is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._copy.shard))
            self._lock.abandon()

    def _check(self, operation: str) -> engine.EdgeShard:
        if self._process != os.getpid():
            raise Busy(
                f"{self._home} was opened by process {self._process}; this process is a forked "
                "child of it, in which the engine would hang.\n"
                "  Open the index after the fork, or start processes with the 'spawn' method.",
                backend=BACKEND,
                operation=operation,
            )
        if self._shard is None:
            raise BackendError(
                "the index is closed.\n  Open it again with connect().", backend=BACKEND, operation=operation
            )
        if self._fault:
            raise Corrupt(
                f"an earlier call failed ({self._fault}).\n  Close the index and open it again.",
                backend=BACKEND,
                operation=operation,
            )
        return self._shard


def _reclaim(shard: weakref.ref[Shard], copy: Copy, ended: threading.Event) -> None:
    """Copy page after page, in a separate thread."""
    pause_seconds: float | None = 0.0
    while pause_seconds is not None and not ended.wait(pause_seconds):
        owner = shard()
        # The pause is as long as the page took, so that half of the time is left to others.
        pause_seconds = owner._reclaim_page(copy) if owner else None
        del owner


def _after_fork_in_child() -> None:
    for shard in list(_OPEN):
        shard.abandon()


@contextlib.contextmanager
def _locked(directory: Path, collection: str, operation: str) -> Iterator[ProcessLock]:
    """Hold the collection's lock, and keep it if the body succeeds; delete remains of killed processes."""
    lock = ProcessLock(directory / f".{collection}.lock", operation=operation)
    try:
        for left in directory.glob(f".{collection}~*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        yield lock
    except BaseException:
        lock.release()
        raise


def _temporary(directory: Path, collection: str) -> Path:
    return directory / f".{collection}~{uuid.uuid4().hex}.tmp"


def _load(directory: Path) -> engine.EdgeShard:
    return engine.EdgeShard.load(str(directory))


_OPEN: weakref.WeakSet[Shard] = weakref.WeakSet()
"""The shards that this process has open, for its forked children."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
