"""Time on the wall that an event loop's thread took or was held up, without what it waited for a busy processor."""

from __future__ import annotations

import time
from pathlib import Path


def wall_seconds() -> float:
    """A clock of the calling thread; where the system does not tell how long it queued, that counts too."""
    try:
        queued = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        queued = 0.0
    return time.monotonic() - queued
