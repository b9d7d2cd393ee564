"""A lock file for one process at a time; the operating system releases it when its holder ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from m3_connectors.errors import Busy

_BYTE = 2**20
"""The position of the locked byte: beyond the process id, because Windows hides locked bytes from readers."""


class ProcessLock:
    """An exclusive lock on a path, held from construction until ``release``.

    Raises:
        Busy: Another process or this one already holds it.
        OSError: The file cannot be created.
    """

    def __init__(self, path: Path, *, operation: str) -> None:
        self.path = path
        self._handle: int | None = None
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _lock(handle)
            except OSError as error:
                holder = os.read(handle, 32).decode("ascii", "replace").strip()
                os.close(handle)
                if not isinstance(error, BlockingIOError | PermissionError):
                    raise
                raise Busy(_busy(path, holder), backend="qdrant", operation=operation) from error
            # The last holder may have deleted the file between our opening and locking it.
            if _is_at(handle, path):
                break
            os.close(handle)
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        self._handle = handle

    def release(self, *, remove: bool = False) -> None:
        """Release the lock; a second call does nothing.

        Args:
            remove: Also delete the file, for a collection that was dropped.
        """
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        if remove and sys.platform != "win32":
            self.path.unlink(missing_ok=True)
        _unlock(handle)
        os.close(handle)

    def __del__(self) -> None:
        self.release()

    def abandon(self) -> None:
        """Drop the lock in a forked child: the parent keeps it, and the child must not keep it alive."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _busy(path: Path, holder: str) -> str:
    what = f'collection "{path.name.removeprefix(".").removesuffix(".lock")}" in {path.parent}'
    if holder == str(os.getpid()):
        return f"this process has already opened {what}.\n  Use that index, or close it first."
    who = f"process {holder}" if holder else "another process"
    return (
        f"{who} has opened {what}, and only one process at a time can use a directory.\n"
        "  Close it there, or wait for that process to end. To share it between processes (such as web "
        "workers), use a server: qdrant+http://HOST:6333."
    )


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, _BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(handle, 0, os.SEEK_SET)

    def _unlock(handle: int) -> None:
        os.lseek(handle, _BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)
