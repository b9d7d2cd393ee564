"""One process at a time: a lock file that the operating system releases when its holder ends, however it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from m3_connectors.errors import Busy

_BYTE = 2**20
"""Where the locked byte lies: beyond the process id, which Windows would otherwise hide from readers."""


class ProcessLock:
    """An exclusive lock on a path, held from construction until ``release``.

    Raises:
        Busy: It is held already, by another process or by this one.
        OSError: The file cannot be made.
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
            # Its last holder may have removed the file between our opening and locking it.
            if _is_at(handle, path):
                break
            os.close(handle)
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        self._handle = handle

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back; a second call does nothing.

        Args:
            remove: Also delete the file, for a collection that is gone.
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
        """Forget the lock in a forked child: the parent keeps it, and the child must not keep it alive."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _busy(path: Path, holder: str) -> str:
    what = f'collection "{path.name.removeprefix(".").removesuffix(".lock")}" in {path.parent}'
    if holder == str(os.getpid()):
        return f"this process has {what} open already.\n  Use that index, or close it first."
    who = f"process {holder}" if holder else "another process"
    return (
        f"{who} has {what} open, and a directory can be used by one process at a time.\n"
        "  Close it there, or wait for it to end. Several processes (web workers, say) need a server: "
        "qdrant+http://HOST:6333."
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
