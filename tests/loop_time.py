"""Wall-clock time of an event loop's thread, without the time that it waited for a busy processor."""

from __future__ import annotations

import time
from pathlib import Path


def wall_seconds() -> float:
    """Return the wall clock minus the time that this thread waited for a processor, if the system reports it."""
    try:
        queued = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        queued = 0.0
    return time.monotonic() - queued
