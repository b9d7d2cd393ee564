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
from typing import BinaryIO, TextIO

from m3_connectors.errors import InvalidInput
from m3_connectors.readers.compression import decompressed, is_compressed
from m3_connectors.readers.encodings import record_encoding, text_stream

STDIN = Path("-")
_STDIN_DESCRIPTOR = 0

MAX_EXPANDED_BYTES = 2**30
"""The limit of a compressed file that must be expanded to a temporary file; a few bytes may expand to any size."""


@dataclasses.dataclass(frozen=True)
class Input:
    """One file to read.

    Attributes:
        source: The source that it belongs to, a file or a folder.
        path: The path of the file; ``STDIN`` is standard input.
        name: The prefix of its id, or of the ids of its records.
        ending: The file extension as which it is read, a key of ``FORMATS``.
        copy: The path of the copy of a stream, which makes it possible to read it twice.
    """

    source: Path
    path: Path
    name: str
    ending: str
    copy: Path | None = None

    @property
    def is_table(self) -> bool:
        """Whether the file is CSV or TSV."""
        return self.ending in (".csv", ".tsv")

    @contextlib.contextmanager
    def open(self) -> Iterator[BufferedReader]:
        """Open the bytes of the file, decompressed if its name ends in ``.gz`` or ``.zst``.

        Raises:
            OSError: The file cannot be read, or is damaged.
            MissingDependency: The package that decompresses it is not installed.
            InvalidInput: The file changed until the end of the block; the message contains only the reason.
        """
        with self._stored() as raw:
            if not is_compressed(self.path):
                yield raw
                return
            with decompressed(self.path, raw) as plain:
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
            OSError, MissingDependency, InvalidInput: As ``open``. A file that expands to more than
                ``MAX_EXPANDED_BYTES`` is invalid too.
        """
        with self.open() as file:
            if file.seekable():
                yield file
                return
            with tempfile.TemporaryFile(prefix="m3-") as whole:
                while part := file.read(2**20):
                    whole.write(part)
                    if is_compressed(self.path) and whole.tell() > MAX_EXPANDED_BYTES:
                        raise InvalidInput(
                            f"expands to more than {MAX_EXPANDED_BYTES // 2**30} GiB: decompress it first"
                        )
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


def shown(path: Path) -> str:
    """Return a path for messages."""
    return "stdin" if path == STDIN else str(path)


def is_stream(path: Path) -> bool:
    """Return whether a path can be read only once: standard input, a pipe, a device."""
    return path == STDIN or (path.exists() and not path.is_file() and not path.is_dir())
