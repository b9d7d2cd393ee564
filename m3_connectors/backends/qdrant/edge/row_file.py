"""The file of encoded multi-vector rows beside the engine's files, for the precisions that are scored here.

The engine could keep the bytes only as text in the payload (it would read them for every filter, and 200 documents of
300 rows at 8 bits take 117 ms of CPU), or as vectors (which its binding returns as Python lists: 800 ms). From a
mapped file they take 4 ms.

The file has no state of its own, so it cannot contradict the engine's log. Blobs are only appended, and never changed.
A point names the place of its blob, and a point is written to the log only after its blob is on the disk. A kill
between the two leaves bytes at the end that no point names. A document and its rows are therefore replaced together,
with the one entry in the log. Bytes that no point names any more disappear with the copy that ``reclaim`` makes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from m3_connectors.files import sync_directory

NAME = "rows.m3"

Place = tuple[int, int]
"""Where a blob begins, and its number of bytes."""


class RowFile:
    """The blobs of one shard; the file exists once there is one.

    Args:
        directory: The directory of the shard.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._view = memoryview(b"")

    @property
    def size_bytes(self) -> int:
        """The size of the file; 0 if there is none."""
        return self._path.stat().st_size if self._path.exists() else 0

    def append(self, blobs: Sequence[bytes | memoryview]) -> list[Place]:
        """Write blobs; when it returns, they survive a power failure.

        Raises:
            OSError: They were not written, for example for lack of space.
        """
        if not blobs:
            return []
        is_new = not self._path.exists()
        with self._path.open("ab") as file:
            start = file.seek(0, os.SEEK_END)
            file.writelines(blobs)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            # If a power failure took the file's name, new blobs would take the places that points name.
            sync_directory(self._path.parent)
        places = []
        for blob in blobs:
            places.append((start, len(blob)))
            start += len(blob)
        return places

    def read(self, place: Sequence[int]) -> memoryview:
        """Return the blob at a place; it is not copied.

        Raises:
            ValueError: The file has no such place.
        """
        start, size = place
        if not 0 <= start <= start + size <= len(self._view):
            self._map()
        if not 0 <= start <= start + size <= len(self._view):
            raise ValueError(
                f"{self._path.name} has {len(self._view)} bytes, none from {start} to {start + size}"
            )
        return self._view[start : start + size]

    def close(self) -> None:
        """Release the file; blobs that are still in use keep it open."""
        self._view = memoryview(b"")

    def _map(self) -> None:
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size:
                self._view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
