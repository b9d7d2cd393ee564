"""One engine shard in one directory: how it is made and opened, who may use it, and what its failures mean.

The layout of ``DIRECTORY`` for a collection NAME::

    NAME/m3.json     the schema; written last, so a directory that has it holds a whole collection
    NAME/shard/      the engine's files
    .NAME.lock       who has it open
    .NAME.*.tmp      something being made or removed; left by a killed process, cleared by the next
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import qdrant_edge as engine

from m3_connectors.backends.base import Schema
from m3_connectors.backends.qdrant.lock import ProcessLock
from m3_connectors.backends.qdrant.points import Layout
from m3_connectors.errors import (
    AlreadyExists,
    BackendError,
    Busy,
    Corrupt,
    M3Error,
    NotFound,
    Rejected,
    StorageFull,
    Unauthorised,
)

T = TypeVar("T")

BACKEND = "qdrant"

_RESERVE_BYTES = 96 * 2**20
"""Space that must stay free: the engine writes through memory maps, and a full disk would kill the process."""

_FLUSH_BYTES = 256 * 2**20
"""Vectors written between two flushes: bounds what the log must replay after a kill."""


class Shard:
    """An open shard; calls run one after the other in a worker thread.

    The engine holds Python's interpreter lock during a call, so a worker thread keeps the order but does not
    keep other Python threads (an event loop among them) running.
    """

    def __init__(self, home: Path, schema: Schema, lock: ProcessLock, shard: engine.EdgeShard) -> None:
        self.layout = Layout.of(schema)
        self._home = home
        self._lock = lock
        self._shard: engine.EdgeShard | None = shard
        self._process = os.getpid()
        self._panic = ""
        self._limiter = anyio.CapacityLimiter(1)
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
        with _translated("create", home):
            _check_absent(home)
            directory.mkdir(parents=True, exist_ok=True)
            _check_space(directory, 0, "create")
            with _locked(directory, collection, "create") as lock:
                _check_absent(home)  # nor made by another process just now
                partial = _temporary(directory, collection)
                (partial / "shard").mkdir(parents=True)
                engine.EdgeShard.create(str(partial / "shard"), Layout.of(schema).edge_config()).close()
                _write_record(partial, schema)
                os.rename(partial, home)
                _sync(directory)
                return cls(home, schema, lock, _load(home))

    @classmethod
    def open(cls, directory: Path, collection: str) -> Shard:
        """Open a collection.

        Raises:
            NotFound: There is none.
            Busy: Another process has it open.
            Corrupt: Its files cannot be read.
        """
        home = directory / collection
        with _translated("open", home):
            if not home.is_dir():
                raise NotFound(f"there is no collection at {home}.", backend=BACKEND, operation="open")
            with _locked(directory, collection, "open") as lock:
                return cls(home, _read_record(home), lock, _load(home))

    @staticmethod
    def drop(directory: Path, collection: str) -> None:
        """Remove a collection that no process has open; nothing if there is none."""
        home = directory / collection
        if not home.is_dir():
            return
        with _translated("drop", home):
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
        shard = self._check(operation)
        try:
            with _translated(operation, self._home):
                return call(shard)
        except _Panic as panic:
            self._panic = str(panic)
            raise

    def check_space(self, size_bytes: int, operation: str) -> None:
        """Raise StorageFull unless a write of about this size is sure to fit."""
        _check_space(self._home, size_bytes, operation)

    def size_bytes(self) -> int:
        """What the collection takes on disk."""
        return sum(_allocated_bytes(path) for path in self._home.rglob("*"))

    def wrote(self, shard: engine.EdgeShard, size_bytes: int) -> None:
        """Note a write; flush when enough has come together."""
        self._unflushed_bytes += size_bytes
        if self._unflushed_bytes >= _FLUSH_BYTES:
            shard.flush()
            self._unflushed_bytes = 0

    async def close(self) -> None:
        """Flush, close and unlock; a second call does nothing."""
        if self._shard is not None and self._process == os.getpid():
            await anyio.to_thread.run_sync(self._close, limiter=self._limiter)

    def _close(self) -> None:
        shard, self._shard = self._shard, None
        try:
            if shard is not None and not self._panic:
                with _translated("close", self._home):
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
        if self._panic:
            raise Corrupt(
                f"the engine panicked before ({self._panic}).\n  Close the index and open it again.",
                backend=BACKEND,
                operation=operation,
            )
        return self._shard


def _after_fork_in_child() -> None:
    for shard in list(_OPEN):
        shard.abandon()


class _Panic(Corrupt):
    """The engine panicked: its state in memory is unknown."""


@contextlib.contextmanager
def _locked(directory: Path, collection: str, operation: str) -> Iterator[ProcessLock]:
    """The collection's lock, kept if the body succeeds; what killed processes left behind is cleared first."""
    lock = ProcessLock(directory / f".{collection}.lock", operation=operation)
    try:
        for left in directory.glob(f".{collection}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        yield lock
    except BaseException:
        lock.release()
        raise


@contextlib.contextmanager
def _translated(operation: str, home: Path) -> Iterator[None]:
    """Raise the engine's bare ``Exception`` and panics, and the system's errors, as ours."""
    try:
        yield
    except M3Error:
        raise
    except OSError as error:
        raise _system_error(error, operation, home) from error
    except Exception as error:
        raise _engine_error(str(error), operation, home) from error
    except BaseException as error:
        # pyo3's PanicException is no Exception and can be imported from nowhere.
        if type(error).__name__ != "PanicException":
            raise
        raise _Panic(
            _broken(f"the engine panicked: {_first_line(error)}", home), backend=BACKEND, operation=operation
        ) from error


def _system_error(error: OSError, operation: str, home: Path) -> BackendError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(_full(home, 0), backend=BACKEND, operation=operation)
    if isinstance(error, PermissionError):
        message = f"no permission: {error}.\n  Choose a directory that this user may write to."
        return Unauthorised(message, backend=BACKEND, operation=operation)
    return BackendError(f"{error}", backend=BACKEND, operation=operation)


def _engine_error(text: str, operation: str, home: Path) -> BackendError:
    lower = text.lower()
    if "no space left" in lower or "os error 28" in lower:
        return StorageFull(_full(home, 0), backend=BACKEND, operation=operation)
    if "wouldblock" in lower:
        return Busy(
            f"another program has {home} open.\n  Close it there.", backend=BACKEND, operation=operation
        )
    if operation == "open":
        return Corrupt(_broken(text, home), backend=BACKEND, operation=operation)
    return Rejected(text, backend=BACKEND, operation=operation)


def _broken(reason: str, home: Path) -> str:
    return (
        f"{home} cannot be read: {reason}\n"
        f"  Restore it from a copy; or move {home} away and index the documents again."
    )


def _full(home: Path, size_bytes: int) -> str:
    free = shutil.disk_usage(home if home.exists() else home.parent).free
    return (
        f"the disk of {home} has {free / 2**20:.0f} MiB free; this write needs "
        f"{(size_bytes + _RESERVE_BYTES) / 2**20:.0f} MiB.\n"
        "  Free some space and repeat the call; what was acknowledged is safe."
    )


def _check_space(directory: Path, size_bytes: int, operation: str) -> None:
    if shutil.disk_usage(directory).free < size_bytes + _RESERVE_BYTES:
        raise StorageFull(_full(directory, size_bytes), backend=BACKEND, operation=operation)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _temporary(directory: Path, collection: str) -> Path:
    return directory / f".{collection}.{uuid.uuid4().hex}.tmp"


def _write_record(home: Path, schema: Schema) -> None:
    with open(home / "m3.json", "w", encoding="utf-8") as file:
        json.dump(schema.to_json(), file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


def _read_record(home: Path) -> Schema:
    try:
        return Schema.from_json(json.loads((home / "m3.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        message = (
            f"{home} is no collection of m3-connectors: it has no m3.json.\n  Use another directory or name."
        )
        raise NotFound(message, backend=BACKEND, operation="open") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(_broken(f"m3.json: {error}", home), backend=BACKEND, operation="open") from error


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
