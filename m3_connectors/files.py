"""Replace files atomically, and measure their space on disk."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yield a path to write to, which replaces ``path`` at the end: readers see the old file or the new one.

    If the block raises an error, the old file is kept and the new one is deleted. A process that is killed leaves
    the new file behind, under a name that the next call uses again.

    Args:
        path: The file; its directory must exist.
        durable: Whether the content must survive a power failure after the block.
        shared: Whether other processes may replace the same file at the same time. A process that is killed then
            leaves a file behind that no other uses.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp" if shared else f"{path.name}.tmp")
    try:
        yield partial
        if durable:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power failure; Windows has no such call."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def allocated_bytes(path: Path) -> int:
    """Return the space of a file on disk, less than its length if it is sparse; 0 if it was just deleted."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else 512 * int(blocks)


def allocated_bytes_below(directory: Path) -> int:
    """Return the space on disk of all files below a directory, of which some may be deleted in the meantime."""
    return sum(map(allocated_bytes, files_below(directory)))


def allocated_bytes_by_part(paths: Iterable[Path], parts: Sequence[tuple[str, str]]) -> Counter[str]:
    """Return the space on disk of files by part.

    Args:
        paths: The files.
        parts: The name of each part and a regular expression for the paths of its files; the first that matches
            counts. Other files are of the part ``other``.
    """
    sizes: Counter[str] = Counter()
    for path in paths:
        name = next((part for part, pattern in parts if re.search(pattern, path.as_posix())), "other")
        sizes[name] += allocated_bytes(path)
    return sizes


def files_below(directory: Path) -> Iterator[Path]:
    """Yield the files below a directory."""
    # os.walk skips folders that are deleted in the meantime.
    return (Path(folder, name) for folder, _, names in os.walk(directory) for name in names)
