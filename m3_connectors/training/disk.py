"""A full disk, named with what to do: the libraries raise an own kind of error each."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from m3_connectors.errors import StorageFull

_FULL = {number: os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}


@contextlib.contextmanager
def naming_a_full_disk(folder: Path, remedy: str) -> Iterator[None]:
    """Raise ``StorageFull`` for the errors that NumPy, safetensors and PyTorch raise on a full disk.

    Args:
        folder: Where files are written.
        remedy: What to do, as a sentence; it follows the name of the folder and the reason.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _FULL.get(error.errno or 0) if isinstance(error, OSError) else None
        reason = reason or next((text for text in _FULL.values() if text in str(error)), None)
        if reason is None:
            raise
        raise StorageFull(
            f"{folder}: {reason}.\n  {remedy}", backend="training", operation="write"
        ) from error


def sync(path: Path) -> None:
    """Make the content of a file survive a power failure."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
