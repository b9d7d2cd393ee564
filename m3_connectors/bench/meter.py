"""The clock of a run, and the CPU time and memory of this process and of servers on this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

import anyio.to_thread

_EVERY_SECONDS = 0.2
_LIST_EVERY_SECONDS = 5.0
"""Finding the processes of a session goes over all of the machine; reading those that are known does not."""


class Meter:
    """Readings that go into rows.

    Args:
        session: Session id of the server's processes (``start_new_session``), where the server is on this machine
            and was started by us; read from ``/proc``.
    """

    def __init__(self, session: int | None = None) -> None:
        self._origin = time.perf_counter()
        self._session = session
        self._read = self._listed = float("-inf")
        self._known: list[Path] = []

    def of(self, session: int | None) -> Meter:
        """The same clock beside another server."""
        other = Meter(session)
        other._origin = self._origin
        return other

    def now(self) -> float:
        """Seconds since the run began, of a clock that never goes back."""
        return time.perf_counter() - self._origin

    def client_cpu_seconds(self) -> float:
        """CPU time of this process, all threads."""
        return time.process_time()

    def server_cpu_seconds(self) -> float | None:
        """CPU time of the server's processes up to now; None where they are not known."""
        found = [_cpu_seconds(process) for process in self._processes()]
        return sum(found) if found else None

    async def server_cpu_seconds_sometimes(self) -> float | None:
        """The same at most five times a second, else None; in a thread, as it reads files."""
        now = time.perf_counter()
        if self._session is None or now - self._read < _EVERY_SECONDS:
            return None
        self._read = now
        return await anyio.to_thread.run_sync(self.server_cpu_seconds)

    def server_memory_bytes(self) -> int | None:
        """Resident memory of the server's processes; None where they are not known."""
        found = [_resident_bytes(process) for process in self._processes()]
        return sum(found) if found else None

    def _processes(self) -> list[Path]:
        if self._session is None:
            return []
        now = time.perf_counter()
        if now - self._listed >= _LIST_EVERY_SECONDS:
            self._listed = now
            self._known = [
                path for path in Path("/proc").glob("[0-9]*") if _session_of(path) == self._session
            ]
        return self._known


def _fields(process: Path) -> list[str]:
    """Of ``/proc/PID/stat`` from the state on (field 3 in proc(5)); none for a process that has ended."""
    try:
        # The name before it may hold blanks and brackets.
        return (process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _session_of(process: Path) -> int | None:
    fields = _fields(process)
    return int(fields[3]) if fields else None


def _cpu_seconds(process: Path) -> float:
    fields = _fields(process)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _resident_bytes(process: Path) -> int:
    fields = _fields(process)
    return int(fields[21]) * os.sysconf("SC_PAGE_SIZE") if fields else 0
