"""Files and streams to read: what format each is of, and its bytes without compression."""

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
"""Endings of the files that are read, in small or capital letters, each also with ``.gz`` behind."""

STDIN = Path("-")
_STDIN_DESCRIPTOR = 0


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How files are read where they do not say it themselves.

    Attributes:
        encoding: Of files without a byte order mark, whatever a page declares; by default UTF-8 or the page's own.
        delimiter: One character between the cells of CSV and TSV, which may be quoted then; by default the one by which
            the header of a CSV file has a column of the text, and a tab without quoting in TSV.
        format: Of standard input, pipes and files named without a known ending; by default JSON Lines for the first
            two and text for files without any ending.
        exclude: Patterns of files and folders to leave out, as the shell's: of the name, or with a slash of the path
            below the source.

    Raises:
        InvalidInput: One of them is impossible.
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
                f"the delimiter {self.delimiter!r} is not one character that can stand between cells.\n"
                "  Give one such as ';' or '|', or the word tab."
            )
        if self.format is not None and self.format not in get_args(Format):
            known = ", ".join(get_args(Format))
            raise InvalidInput(f"{self.format!r} is no format that is read.\n  Give one of {known}.")

    @property
    def codec(self) -> str | None:
        """The codec of ``encoding``."""
        return None if self.encoding is None else known_encoding(self.encoding)


@dataclasses.dataclass(frozen=True)
class Input:
    """One file to read.

    Attributes:
        source: The file or folder that it was named by.
        path: The file; ``STDIN`` is standard input.
        name: What its id, or those of its records, begin with.
        format: How it is read.
        copy: Where a stream was copied to, so that it can be read twice.
    """

    source: Path
    path: Path
    name: str
    format: Format
    copy: Path | None = None

    @property
    def is_table(self) -> bool:
        """Whether it is CSV or TSV."""
        return self.format in ("csv", "tsv")

    @contextlib.contextmanager
    def open(self) -> Iterator[BufferedReader]:
        """Its bytes, decompressed if its name ends in ``.gz``.

        Raises:
            OSError: It cannot be read.
        """
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(self._stored())
            if self.path.suffix.lower() == ".gz":
                plain = stack.enter_context(gzip.GzipFile(fileobj=raw))
                raw = BufferedReader(_Decompressed(plain))
            yield raw

    @contextlib.contextmanager
    def open_text(self, codec: str | None) -> Iterator[TextIO]:
        """The text of a file of records, whose undecodable bytes match ``UNDECODABLE``.

        Args:
            codec: The encoding, if there is no byte order mark; None finds UTF-8 and UTF-16.

        Raises:
            OSError, EOFError, zlib.error: It cannot be read.
        """
        # Line ends stay as they are written. In JSON Lines, others than line feeds may stand in a text.
        newline = "\n" if self.format == "jsonl" else ""
        with self.open() as raw, text_stream(raw, record_encoding(raw.peek(4)[:4], codec), newline) as text:
            yield text

    def copied(self, folder: Path) -> Input:
        """The same input, to be read from a copy of its bytes in a folder.

        Raises:
            OSError: It cannot be read, or the copy cannot be written.
        """
        descriptor, name = tempfile.mkstemp(dir=folder)
        with self._stored() as stored, os.fdopen(descriptor, "wb") as copy:
            shutil.copyfileobj(stored, copy)
        return dataclasses.replace(self, copy=Path(name))

    def _stored(self) -> BufferedReader:
        """Its bytes as they are stored."""
        # A descriptor of its own: closing it leaves standard input open.
        path = self.copy or self.path
        return open(os.dup(_STDIN_DESCRIPTOR) if path == STDIN else path, "rb")


class _Decompressed(RawIOBase):
    """What a compressed file holds, up to the place where it is damaged."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # GzipFile's own would read on until the buffer is full, and lose what it has where it meets damage.
        part = self._file.read1(len(buffer))
        buffer[: len(part)] = part
        return len(part)


def shown(path: Path) -> str:
    """A path as a person would write it."""
    return "stdin" if path == STDIN else str(path)


def is_stream(path: Path) -> bool:
    """Whether a path can be read once only: standard input, a pipe, a device."""
    return path == STDIN or (path.exists() and not path.is_file() and not path.is_dir())


def is_records(path: Path) -> bool:
    """Whether a file holds one document a record (JSON Lines, JSON, CSV), not one in all."""
    return format_of(path) in ("jsonl", "json", "csv", "tsv")


def format_of(path: Path) -> Format | None:
    """The format that a name's ending says; a name without an ending is of a text."""
    ending = ending_of(path)
    return _FORMATS.get(ending) if ending else "text"


def ending_of(path: Path) -> str:
    """The ending of a name in small letters, without ``.gz``."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix == ".gz" else name.suffix


def named_format(path: Path, options: ReadOptions) -> Format | None:
    """The format of a file that was named by itself: its ending's, else the option's."""
    otherwise: Format | None = "jsonl" if is_stream(path) else format_of(path)
    return _FORMATS.get(ending_of(path)) or options.format or otherwise
