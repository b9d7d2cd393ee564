"""One engine shard in one directory: how it is made and opened, who may use it, and what its failures mean.

The layout of ``DIRECTORY`` for a collection NAME::

    NAME/m3.json     the schema; written last, so a directory that has it holds a whole collection
    NAME/shard/      the engine's files
    .NAME.lock       who has it open
    .NAME~*.tmp      something being made or removed; left by a killed process, cleared by the next
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import qdrant_edge as engine

from m3_connectors.backends.base import Schema
from m3_connectors.backends.qdrant.failures import BACKEND, broken, check_space, first_line, translated
from m3_connectors.backends.qdrant.lock import ProcessLock
from m3_connectors.backends.qdrant.points import Layout
from m3_connectors.errors import AlreadyExists, BackendError, Busy, CollectionNotFound, Corrupt

T = TypeVar("T")

_FLUSH_BYTES = 64 * 2**20
"""Vectors written between two flushes: bounds what the log must replay after a kill."""


class Shard:
    """An open shard; calls run one after the other in a worker thread.

    A call that has begun runs to its end, even where its caller was cancelled; the next one waits for it.

    The engine holds Python's interpreter lock during a call, so a worker thread keeps the order but does not
    keep other Python threads (an event loop among them) running.
    """

    def __init__(self, home: Path, schema: Schema, lock: ProcessLock, shard: engine.EdgeShard) -> None:
        self.layout = Layout.of(schema)
        self._home = home
        self._shard: engine.EdgeShard | None = shard
        self._lock = lock  # after the shard, so that a forgotten one is destroyed before it is unlocked
        self._process = os.getpid()
        self._fault = ""
        self._limiter = anyio.CapacityLimiter(1)  # so that calls wait on the event loop, not in threads
        # The limiter is free again as soon as asyncio cancels a caller (asyncio.timeout, Task.cancel), while its
        # thread goes on in the engine: this is what keeps the next thread out.
        self._turn = threading.Lock()
        self._unflushed_bytes = 0
        _OPEN.add(self)

    @classmethod
    def create(cls, directory: Path, collection: str, schema: Schema) -> Shard:
        """Make an empty collection and open it.

        Raises:
            AlreadyExists: There is one.
            Busy: Another process works on it.
            StorageFull: There is no room for an empty one.
        """
        home = directory / collection
        with translated("create", home):
            _check_absent(home)
            directory.mkdir(parents=True, exist_ok=True)
            check_space(directory, 0, "create")
            with _locked(directory, collection, "create") as lock:
                _check_absent(home)  # nor made by another process just now
                partial = _temporary(directory, collection)
                try:
                    (partial / "shard").mkdir(parents=True)
                    engine.EdgeShard.create(str(partial / "shard"), Layout.of(schema).edge_config()).close()
                    _write_record(partial, schema)
                    os.rename(partial, home)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
                _sync(directory)
                return cls(home, schema, lock, _load(home))

    @classmethod
    def open(cls, directory: Path, collection: str) -> Shard:
        """Open a collection.

        Raises:
            CollectionNotFound: There is none.
            Busy: Another process has it open.
            Corrupt: Its files cannot be read.
        """
        home = directory / collection
        with translated("open", home):
            if not home.is_dir():
                raise CollectionNotFound(
                    f"there is no collection at {home}.", backend=BACKEND, operation="open"
                )
            with _locked(directory, collection, "open") as lock:
                return cls(home, _read_record(home), lock, _load(home))

    @staticmethod
    def drop(directory: Path, collection: str) -> None:
        """Remove a collection that no process has open; nothing if there is none."""
        home = directory / collection
        if not home.is_dir():
            return
        with translated("drop", home):
            if not (home / "m3.json").exists():
                raise _no_collection(home, "drop")
            lock = ProcessLock(directory / f".{collection}.lock", operation="drop")
            try:
                # Renamed first: a process killed in the middle leaves no half of a collection.
                doomed = _temporary(directory, collection)
                os.rename(home, doomed)
                shutil.rmtree(doomed)
            finally:
                lock.release(remove=True)

    async def run(self, operation: str, call: Callable[[engine.EdgeShard], T]) -> T:
        """The result of one or several engine calls, made in a worker thread when it is their turn.

        Raises:
            Busy: This is a forked child; the shard is its parent's.
            Corrupt: The engine panicked, now or before.
            BackendError: It is closed, or the engine refused.
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
        """Raise StorageFull unless a write of about this size is sure to fit."""
        check_space(self._home, size_bytes, operation)

    def size_bytes(self) -> int:
        """What the collection takes on disk."""
        return sum(_allocated_bytes(path) for path in self._home.rglob("*"))

    def wrote(self, shard: engine.EdgeShard, size_bytes: int) -> None:
        """Note a write; flush when enough has come together. For calls that ``run`` makes."""
        self._unflushed_bytes += size_bytes
        if self._unflushed_bytes >= _FLUSH_BYTES:
            shard.flush()
            self._unflushed_bytes = 0

    async def close(self) -> None:
        """Flush, close and unlock; a second call does nothing."""
        if self._shard is not None and self._process == os.getpid():
            await anyio.to_thread.run_sync(self._close, limiter=self._limiter)

    def _close(self) -> None:
        with self._turn:
            shard, self._shard = self._shard, None
            try:
                if shard is not None and not self._fault:
                    with translated("close", self._home):
                        shard.flush()
                        shard.close()
            finally:
                self._lock.release()

    def abandon(self) -> None:
        """In a forked child: leave the shard to the parent, even when this process ends."""
        if self._shard is not None:
            # Destroying the engine's object flushes, in the middle of the parent's work: never let it happen.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._shard))
            self._lock.abandon()

    def _check(self, operation: str) -> engine.EdgeShard:
        if self._process != os.getpid():
            raise Busy(
                f"{self._home} was opened by process {self._process}; this is a forked "
                "child of it, where the engine would hang.\n"
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


def _after_fork_in_child() -> None:
    for shard in list(_OPEN):
        shard.abandon()


@contextlib.contextmanager
def _locked(directory: Path, collection: str, operation: str) -> Iterator[ProcessLock]:
    """The collection's lock, kept if the body succeeds; what killed processes left behind is cleared first."""
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


def _write_record(home: Path, schema: Schema) -> None:
    with open(home / "m3.json", "w", encoding="utf-8") as file:
        json.dump(schema.to_json(), file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


def _read_record(home: Path) -> Schema:
    try:
        return Schema.from_json(json.loads((home / "m3.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise _no_collection(home, "open") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(broken(f"m3.json: {error}", home), backend=BACKEND, operation="open") from error


def _no_collection(home: Path, operation: str) -> CollectionNotFound:
    message = (
        f"{home} is no collection of m3-connectors: it has no m3.json.\n  Use another directory or name."
    )
    return CollectionNotFound(message, backend=BACKEND, operation=operation)


def _load(home: Path) -> engine.EdgeShard:
    return engine.EdgeShard.load(str(home / "shard"))


def _sync(directory: Path) -> None:
    """Make a rename in this directory survive a power cut, where the system lets directories be synced."""
    if os.name == "posix":
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check_absent(home: Path) -> None:
    if home.exists():
        message = f"{home} is there.\n  Open it, drop it, or use another collection name."
        raise AlreadyExists(message, backend=BACKEND, operation="create")


def _allocated_bytes(path: Path) -> int:
    status = path.stat()
    blocks = getattr(status, "st_blocks", None)
    # The engine makes large files with holes: what they take is less than their length.
    return status.st_size if blocks is None else 512 * blocks


_OPEN: weakref.WeakSet[Shard] = weakref.WeakSet()
"""The shards that this process has open, for its forked children."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
