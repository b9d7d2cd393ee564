"""Files and streams to read, and their decompressed bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

from m3_connectors.errors import InvalidInput
from m3_connectors.readers.compression import decompressed, is_compressed, lacks_checksum
from m3_connectors.readers.encodings import record_encoding, text_stream
from m3_connectors.readers.limits import DEFAULT_LIMITS, Limits
from m3_connectors.readers.urls import Url, source_of

if TYPE_CHECKING:
    from m3_connectors.readers.settings import Reader

STDIN = Path("-")
_STDIN_DESCRIPTOR = 0

Source = Path | Url
"""What documents are read from: a file, a folder, standard input (``STDIN``), or a URL. A file of it is one too."""


@dataclasses.dataclass(frozen=True)
class Input:
    """One file to read.

    Attributes:
        source: The source that it belongs to, a file, a folder or a URL.
        path: The path of the file, or its URL; ``STDIN`` is standard input.
        name: The prefix of its id, or of the ids of its records.
        ending: The file extension as which it is read, a key of ``FORMATS``; empty if the scheme of a URL has a reader.
        copy: The path of the copy of a stream, which makes it possible to read it twice.
        limits: How far it may expand.
        reader: What reads it, if it is no file; None for the reader of its ending.
    """

    source: Source
    path: Source
    name: str
    ending: str
    copy: Path | None = None
    limits: Limits = DEFAULT_LIMITS
    reader: Reader | None = None

    @property
    def is_table(self) -> bool:
        """Whether the file is CSV or TSV."""
        return self.ending in (".csv", ".tsv")

    @property
    def expands(self) -> bool:
        """Whether the file is compressed, so that its size says little about its content."""
        return is_compressed(self.path)

    def lacks_checksum(self) -> bool:
        """Return whether damage of the file may go unnoticed: it is compressed, and has no checksum."""
        if self.reader or self.path.suffix.lower() != ".zst" or is_stream(self.path):
            return False
        with (
            contextlib.suppress(OSError, InvalidInput),
            self._stored() as raw,
        ):  # what is wrong is reported later
            return lacks_checksum(self.path, raw.peek(8)[:8])
        return False

    @contextlib.contextmanager
    def open(self) -> Iterator[BufferedReader]:
        """Open the bytes of the file, decompressed if its name ends in ``.gz`` or ``.zst``.

        Raises:
            OSError: The file cannot be read, or is damaged.
            MissingDependency: The package that decompresses it is not installed.
            InvalidInput: The file changed until the end of the block, or expands too far; the message contains only
                the reason.
        """
        with self._stored() as raw:
            if not is_compressed(self.path):
                yield raw
                return
            stored = _Counted(raw)
            with decompressed(
                self.path, stored, lambda size: self.limits.check_expansion(stored.count, size)
            ) as plain:
                yield plain

    @contextlib.contextmanager
    def open_text(self, codec: str | None, newline: str = "") -> Iterator[TextIO]:
        """Open the text of a file of records; undecodable bytes match ``UNDECODABLE``.

        Args:
            codec: The codec if there is no byte order mark; None detects UTF-8 and UTF-16.
            newline: The line end; by default, all line ends of text files, which are not converted.

        Raises:
            OSError, MissingDependency, InvalidInput: As ``open``.
        """
        with self.open() as raw, text_stream(raw, record_encoding(raw.peek(4)[:4], codec), newline) as text:
            yield text

    @contextlib.contextmanager
    def open_seekable(self) -> Iterator[BinaryIO]:
        """Open the decompressed bytes for reading in any order; what cannot be is copied to a temporary file.

        Raises:
            OSError, MissingDependency, InvalidInput: As ``open``. A compressed file that expands to more than
                ``limits.expanded_bytes`` is invalid too.
        """
        with self.open() as file:
            if file.seekable():
                yield file
                return
            with tempfile.TemporaryFile(prefix="m3-") as whole:
                while part := file.read(2**20):
                    whole.write(part)
                    if self.expands:
                        self.limits.check_size(whole.tell())
                whole.seek(0)
                yield whole

    def copied(self, folder: Path) -> Input:
        """Copy the bytes to a file in a folder, and return an input that reads the copy.

        Raises:
            OSError: The input cannot be read, or the copy cannot be written.
        """
        descriptor, name = tempfile.mkstemp(dir=folder)
        with self._stored() as stored, os.fdopen(descriptor, "wb") as copy:
            shutil.copyfileobj(stored, copy)
        return dataclasses.replace(self, copy=Path(name))

    @contextlib.contextmanager
    def _stored(self) -> Iterator[BufferedReader]:
        """Open the bytes as they are stored, without decompression."""
        path = self.copy or self.path
        if isinstance(path, Url):
            raise InvalidInput(f"the reader of {path.scheme}: has no bytes to open")
        # The descriptor is duplicated, so that closing it leaves standard input open.
        with open(os.dup(_STDIN_DESCRIPTOR) if path == STDIN else path, "rb") as file:
            # A second descriptor, because whoever wraps the file may close it first.
            descriptor = os.dup(file.fileno())
            try:
                before = os.fstat(descriptor)
                yield file
                after = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        changed = (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size)
        if changed and stat.S_ISREG(after.st_mode):
            raise InvalidInput("changed while it was read, so parts may be missing or mixed: read it again")


def shown(path: Source) -> str:
    """Return a path or URL for messages."""
    return "stdin" if path == STDIN else str(path)


def is_stream(path: Source) -> bool:
    """Return whether a path can be read only once: standard input, a pipe, a device."""
    if isinstance(path, Url):
        return False
    return path == STDIN or (path.exists() and not path.is_file() and not path.is_dir())


def is_folder(path: Source) -> bool:
    """Return whether a path is a folder of this machine."""
    return isinstance(path, Path) and path.is_dir()


def origin_name(place: str | Source) -> str:
    """Return the name of a source or file in the ledger: the same in each run, from whatever folder it is given."""
    if isinstance(place, str):
        place = source_of(place)
    if isinstance(place, Url) or place == STDIN:
        return str(place)
    return str(place.resolve())


def parents_of(name: str) -> Iterator[str]:
    """Yield the name of a file in the ledger, and those of the folders and URLs that it is in."""
    yield name
    head, chained, rest = name.partition("::")
    start, _, path = head.rpartition("://")
    while "/" in path.rstrip("/"):
        path = path.rstrip("/").rpartition("/")[0]
        for folder in (path, f"{path}/"):
            yield f"{start}://{folder}{chained}{rest}" if start else folder
    if chained:
        yield from (f"{start}://{chained}{rest}", *parents_of(rest))


class _Counted:
    """A file that counts the bytes read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        part = self._file.read(size)
        self.count += len(part)
        return part

    def seekable(self) -> bool:
        return False
