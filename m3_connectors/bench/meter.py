"""Clock of a run, and CPU time and memory of this process and of servers on this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

import anyio.to_thread

_EVERY_SECONDS = 0.2
_LIST_EVERY_SECONDS = 5.0
"""The interval for listing processes, because finding those of a session scans all processes."""


class Meter:
    """Provides the readings that are recorded in rows.

    Args:
        session: The session id of the server's processes (``start_new_session``), if the server was started
            by us on this machine; they are read from ``/proc``.
    """

    def __init__(self, session: int | None = None) -> None:
        self._origin = time.perf_counter()
        self._session = session
        self._read = self._listed = float("-inf")
        self._known: list[Path] = []

    def of(self, session: int | None) -> Meter:
        """Return a meter with the same clock for another server."""
        other = Meter(session)
        other._origin = self._origin
        return other

    def now(self) -> float:
        """Return the seconds since the start of the run, from a monotonic clock."""
        return time.perf_counter() - self._origin

    def client_cpu_seconds(self) -> float:
        """Return the CPU time of this process, all threads."""
        return time.process_time()

    def server_cpu_seconds(self) -> float | None:
        """Return the CPU time of the server's processes so far, or None if they are unknown."""
        found = [_cpu_seconds(process) for process in self._processes()]
        return sum(found) if found else None

    async def server_cpu_seconds_sometimes(self) -> float | None:
        """Return the same at most five times a second, otherwise None; reads the files in a thread."""
        now = time.perf_counter()
        if self._session is None or now - self._read < _EVERY_SECONDS:
            return None
        self._read = now
        return await anyio.to_thread.run_sync(self.server_cpu_seconds)

    def server_memory_bytes(self) -> int | None:
        """Return the resident memory of the server's processes, or None if they are unknown."""
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
    """Return the fields of ``/proc/PID/stat`` from the state (field 3 in proc(5)); empty after its end."""
    try:
        # The process name before it may contain spaces and parentheses.
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
