"""What ``m3 index`` has read so far: which file each document came from, and which share of the bytes it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from m3_connectors.documents import Document

_REMEMBERED_DOCUMENTS = 4096
"""More than ``add`` holds at a time (512); of each of them the file is remembered."""


class Reading:
    """Follows the documents on their way from the files into the store.

    Args:
        files: Those that will be read.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.count = 0
        """Documents read so far."""
        self._origins: dict[str, tuple[Path, Path]] = {}
        self._source = self._file = Path()
        self._total_bytes = _total_bytes(files)
        self._finished_bytes = self._file_bytes = self._text_bytes = 0

    def begin_file(self, source: Path, file: Path) -> None:
        """A file of a source is about to be read."""
        self._finished_bytes += self._file_bytes
        self._source, self._file = source, file
        self._file_bytes = self._text_bytes = 0
        with contextlib.suppress(OSError):  # the reader says so
            self._file_bytes = file.stat().st_size

    def following(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents, remembered as they pass."""
        for document in documents:
            self.count += 1
            self._text_bytes += len(document.text.encode())
            self._origins.pop(document.id, None)
            self._origins[document.id] = self._source, self._file
            if len(self._origins) > _REMEMBERED_DOCUMENTS:
                del self._origins[next(iter(self._origins))]
            yield document

    def origin(self, id: str) -> tuple[Path, Path]:
        """Source and file of a document that was just stored."""
        return self._origins[id]

    @property
    def share(self) -> float | None:
        """About which share of the bytes has been read, 0 to 1; None where their number is not known."""
        if not self._total_bytes:
            return None
        # Within a file its texts stand for its bytes: of a file of records they are most of it.
        read = self._finished_bytes + min(self._text_bytes, self._file_bytes)
        return min(read / self._total_bytes, 1.0)


def _total_bytes(files: Iterable[Path]) -> int | None:
    """The size of all files; None if that says little: of compressed files, of a stream."""
    total = 0
    try:
        for path in files:
            if path.suffix.lower() == ".gz" or not path.is_file():
                return None
            total += path.stat().st_size
    except OSError:
        return None
    return total
