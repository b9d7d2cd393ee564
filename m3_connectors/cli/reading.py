"""Track what ``m3 index`` has read: the file of each document, and the share of the bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from m3_connectors.documents import Document
from m3_connectors.readers import Source, Url
from m3_connectors.readers.compression import is_compressed

_REMEMBERED_DOCUMENTS = 4096
"""The number of documents whose file is remembered; more than ``add`` holds at a time (512)."""


class Reading:
    """Tracks the documents on their way from the files into the store.

    Args:
        files: The files that will be read.
    """

    def __init__(self, files: Iterable[Source]) -> None:
        self.count = 0
        """The number of documents read so far."""
        self._origins: dict[str, tuple[Source, Source]] = {}
        self._source: Source = Path()
        self._file: Source = Path()
        self._total_bytes = _total_bytes(files)
        self._finished_bytes = self._file_bytes = self._text_bytes = 0

    def begin_file(self, source: Source, file: Source) -> None:
        """Called before a file of a source is read."""
        self._finished_bytes += self._file_bytes
        self._source, self._file = source, file
        self._file_bytes = self._text_bytes = 0
        if isinstance(file, Url):
            return
        with contextlib.suppress(OSError):  # the reader reports it
            self._file_bytes = file.stat().st_size

    def following(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the documents, and record the file of each."""
        for document in documents:
            self.count += 1
            self._text_bytes += len(document.text.encode())
            self._origins.pop(document.id, None)
            self._origins[document.id] = self._source, self._file
            if len(self._origins) > _REMEMBERED_DOCUMENTS:
                del self._origins[next(iter(self._origins))]
            yield document

    def origin(self, id: str) -> tuple[Source, Source]:
        """Return the source and the file of a document that was just stored."""
        return self._origins[id]

    @property
    def share(self) -> float | None:
        """The approximate share of the bytes read so far, 0 to 1; None if the total is unknown."""
        if not self._total_bytes:
            return None
        # Within a file, the bytes of the texts approximate the position: texts are most of a file of records.
        read = self._finished_bytes + min(self._text_bytes, self._file_bytes)
        return min(read / self._total_bytes, 1.0)


def _total_bytes(files: Iterable[Source]) -> int | None:
    """Return the size of all files in bytes; None for streams and compressed files, where it is no guide."""
    total = 0
    try:
        for path in files:
            if isinstance(path, Url) or is_compressed(path) or not path.is_file():
                return None
            total += path.stat().st_size
    except OSError:
        return None
    return total
