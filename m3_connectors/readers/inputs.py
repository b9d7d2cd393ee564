"""Files and streams to read: their formats, and their decompressed bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import os
import shutil
import tempfile
from collections.abc import Iterator
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from m3_connectors.errors import InvalidInput
from m3_connectors.readers.encodings import known_encoding, record_encoding, text_stream

Format = Literal["jsonl", "json", "csv", "tsv", "text", "markdown", "html", "xhtml"]

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".rst": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "xhtml",
}
FORMATS = tuple(_FORMATS)
"""The supported file extensions, in lower or upper case, each optionally followed by ``.gz``."""

STDIN = Path("-")
_STDIN_DESCRIPTOR = 0


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """Options for reading files that do not declare their encoding, delimiter or format.

    Attributes:
        encoding: The encoding of files without a byte order mark; overrides the declaration of a page. The
            default is UTF-8, or the encoding that a page declares.
        delimiter: The delimiter of CSV and TSV cells, one character; cells may then be quoted. By default,
            CSV uses the delimiter with which the header has a text column, and TSV uses tabs without quoting.
        format: The format of standard input, pipes and files without a known extension. The default is JSON
            Lines for streams, and text for files without any extension.
        exclude: Shell patterns of files and folders to skip. A pattern matches the name or, if it contains a
            slash, the path below the source.

    Raises:
        InvalidInput: An option is not valid.
    """

    encoding: str | None = None
    delimiter: str | None = None
    format: Format | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.encoding is not None:
            known_encoding(self.encoding)
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise InvalidInput(
                f"the delimiter {self.delimiter!r} is not a single character that can separate cells.\n"
                "  Use one such as ';' or '|', or the word tab."
            )
        if self.format is not None and self.format not in get_args(Format):
            known = ", ".join(get_args(Format))
            raise InvalidInput(f"{self.format!r} is not a supported format.\n  Choose one of {known}.")

    @property
    def codec(self) -> str | None:
        """The Python codec of ``encoding``."""
        return None if self.encoding is None else known_encoding(self.encoding)


@dataclasses.dataclass(frozen=True)
class Input:
    """One file to read.

    Attributes:
        source: The source that it belongs to, a file or a folder.
        path: The path of the file; ``STDIN`` is standard input.
        name: The prefix of its id, or of the ids of its records.
        format: The format in which it is read.
        copy: The path of the copy of a stream, which makes it possible to read it twice.
    """

    source: Path
    path: Path
    name: str
    format: Format
    copy: Path | None = None

    @property
    def is_table(self) -> bool:
        """Whether the file is CSV or TSV."""
        return self.format in ("csv", "tsv")

    @contextlib.contextmanager
    def open(self) -> Iterator[BufferedReader]:
        """Open the bytes of the file, decompressed if its name ends in ``.gz``.

        Raises:
            OSError: The file cannot be read.
        """
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(self._stored())
            if self.path.suffix.lower() == ".gz":
                plain = stack.enter_context(gzip.GzipFile(fileobj=raw))
                raw = BufferedReader(_Decompressed(plain))
            yield raw

    @contextlib.contextmanager
    def open_text(self, codec: str | None) -> Iterator[TextIO]:
        """Open the text of a file of records; undecodable bytes match ``UNDECODABLE``.

        Args:
            codec: The codec if there is no byte order mark; None detects UTF-8 and UTF-16.

        Raises:
            OSError, EOFError, zlib.error: The file cannot be read.
        """
        # Line ends are not converted: in JSON Lines, a text may contain line ends other than line feeds.
        newline = "\n" if self.format == "jsonl" else ""
        with self.open() as raw, text_stream(raw, record_encoding(raw.peek(4)[:4], codec), newline) as text:
            yield text

    def copied(self, folder: Path) -> Input:
        """Copy the bytes to a file in a folder, and return an input that reads the copy.

        Raises:
            OSError: The input cannot be read, or the copy cannot be written.
        """
        descriptor, name = tempfile.mkstemp(dir=folder)
        with self._stored() as stored, os.fdopen(descriptor, "wb") as copy:
            shutil.copyfileobj(stored, copy)
        return dataclasses.replace(self, copy=Path(name))

    def _stored(self) -> BufferedReader:
        """Open the bytes as they are stored, without decompression."""
        # The descriptor is duplicated, so that closing it leaves standard input open.
        path = self.copy or self.path
        return open(os.dup(_STDIN_DESCRIPTOR) if path == STDIN else path, "rb")


class _Decompressed(RawIOBase):
    """The content of a compressed file, up to the position where it is damaged."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # GzipFile.readinto reads until the buffer is full, and loses what it has read when it finds damage.
        part = self._file.read1(len(buffer))
        buffer[: len(part)] = part
        return len(part)


def shown(path: Path) -> str:
    """Return a path for messages."""
    return "stdin" if path == STDIN else str(path)


def is_stream(path: Path) -> bool:
    """Return whether a path can be read only once: standard input, a pipe, a device."""
    return path == STDIN or (path.exists() and not path.is_file() and not path.is_dir())


def is_records(path: Path) -> bool:
    """Return whether each record of a file is a document (JSON Lines, JSON, CSV), and not the whole file."""
    return format_of(path) in ("jsonl", "json", "csv", "tsv")


def format_of(path: Path) -> Format | None:
    """Return the format of a file extension; a name without an extension is a text."""
    ending = ending_of(path)
    return _FORMATS.get(ending) if ending else "text"


def ending_of(path: Path) -> str:
    """Return the extension of a name in lower case, without ``.gz``."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix == ".gz" else name.suffix


def named_format(path: Path, options: ReadOptions) -> Format | None:
    """Return the format of a file given as a source: that of its extension, or that of the options."""
    otherwise: Format | None = "jsonl" if is_stream(path) else format_of(path)
    return _FORMATS.get(ending_of(path)) or options.format or otherwise
