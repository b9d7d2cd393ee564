"""Translate failures of the engine and the operating system, and prevent the one that cannot be caught."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from m3_connectors.errors import (
    BackendError,
    Busy,
    Corrupt,
    InvalidInput,
    M3Error,
    Rejected,
    StorageFull,
    Unauthorised,
)

BACKEND = "qdrant"

RESERVE_BYTES = 96 * 2**20
"""Disk space that must stay free. The engine writes through memory maps: if the disk is full, the system
kills the process (SIGBUS, measured), and there is no error to catch."""


@contextlib.contextmanager
def translated(operation: str, home: Path) -> Iterator[None]:
    """Convert the engine's ``Exception`` and panics, and the system's errors, to errors of this package."""
    try:
        yield
    except M3Error:
        raise
    except OSError as error:
        raise _system_error(error, operation, home) from error
    except Exception as error:
        if type(error) is not Exception:  # not from the engine, which raises only that type
            raise
        raise _engine_error(str(error), operation, home) from error
    except BaseException as error:
        # pyo3's PanicException does not derive from Exception and cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise Corrupt(
            broken(f"the engine panicked: {first_line(error)}", home), backend=BACKEND, operation=operation
        ) from error


def _system_error(error: OSError, operation: str, home: Path) -> M3Error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(_full(home, 0), backend=BACKEND, operation=operation)
    if isinstance(error, PermissionError):
        message = f"permission denied: {error}.\n  Use a directory that this user may write to."
        return Unauthorised(message, backend=BACKEND, operation=operation)
    if isinstance(error, FileExistsError | NotADirectoryError):
        return InvalidInput(
            f"{error.filename} is not a directory.\n  Use qdrant:DIRECTORY, such as qdrant:./data."
        )
    return BackendError(
        f"the operating system reported an error: {error}\n  Check the disk and the permissions of {home}.",
        backend=BACKEND,
        operation=operation,
    )


def _engine_error(text: str, operation: str, home: Path) -> BackendError:
    lower = text.lower()
    if "no space left" in lower or "os error 28" in lower:
        return StorageFull(_full(home, 0), backend=BACKEND, operation=operation)
    if "wouldblock" in lower:
        return Busy(
            f'another program has opened collection "{home.name}" in {home.parent}.\n'
            "  Close it there, or use a server (qdrant+http://HOST:6333) to share it between programs.",
            backend=BACKEND,
            operation=operation,
        )
    if operation == "open" or "out of bounds" in lower or "deserialize" in lower:
        return Corrupt(broken(text, home), backend=BACKEND, operation=operation)
    return Rejected(
        f"the engine refused the call: {text}\n  Check the documents or the filter of this call.",
        backend=BACKEND,
        operation=operation,
    )


def broken(reason: str, home: Path) -> str:
    """Return the message of Corrupt."""
    return (
        f"{home} cannot be read: {reason}\n"
        f"  Restore it from a backup, or move {home} away and index the documents again."
    )


def _full(home: Path, size_bytes: int) -> str:
    free = shutil.disk_usage(home if home.exists() else home.parent).free
    return (
        f"the disk of {home} has {free / 2**20:.0f} MiB free; this write needs "
        f"{(size_bytes + RESERVE_BYTES) / 2**20:.0f} MiB.\n"
        "  Free space and repeat the call; acknowledged writes are stored."
    )


def check_space(directory: Path, size_bytes: int, operation: str) -> None:
    """Raise StorageFull unless a write of about this size certainly fits on the disk."""
    if shutil.disk_usage(directory).free < size_bytes + RESERVE_BYTES:
        raise StorageFull(_full(directory, size_bytes), backend=BACKEND, operation=operation)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, without the advice in the second."""
    return (str(error).splitlines() or [type(error).__name__])[0]
