"""Replace files atomically."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a path to write to, which replaces ``path`` at the end: readers see the old file or the new one.

    If the block raises an error, the old file is kept and the new one is deleted. Other processes may replace
    the same file at the same time.

    Args:
        path: The file; its directory must exist.
        durable: Whether the content must survive a power failure after the block.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        if durable:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
