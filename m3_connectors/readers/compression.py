"""Decompress files whose names end in ``.gz`` or ``.zst``."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

from m3_connectors.errors import MissingDependency


class Damaged(OSError):
    """A compressed file is cut or damaged; the message contains only the reason."""


def is_compressed(path: Path) -> bool:
    """Return whether the name of a file ends in the suffix of a compression."""
    return path.suffix.lower() in _COMPRESSIONS


def decompressed(path: Path, raw: BinaryIO) -> BufferedReader:
    """Return the content of a compressed file up to where it is damaged; reading on then raises ``Damaged``.

    Args:
        path: The path of the file, whose suffix names the compression.
        raw: The compressed bytes. They must stay open while the content is read.

    Raises:
        MissingDependency: The package that decompresses it is not installed.
    """
    return BufferedReader(_Decompressed(*_COMPRESSIONS[path.suffix.lower()](raw)))


_Opened = tuple[Any, tuple[type[Exception], ...]]
"""A file with ``read1``, and the errors that it raises for damage."""


def _gzip(raw: BinaryIO) -> _Opened:
    return gzip.GzipFile(fileobj=raw), (EOFError, zlib.error, gzip.BadGzipFile)


def _zstd(raw: BinaryIO) -> _Opened:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise MissingDependency("backports.zstd", "zstd") from None
    return zstd.ZstdFile(raw), (EOFError, zstd.ZstdError)


_COMPRESSIONS: dict[str, Callable[[BinaryIO], _Opened]] = {".gz": _gzip, ".zst": _zstd}


class _Decompressed(RawIOBase):
    def __init__(self, file: Any, damages: tuple[type[Exception], ...]) -> None:
        self._file = file
        self._damages = damages

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # ``readinto`` of these files reads until the buffer is full, and loses what it has read when it finds damage.
        try:
            part = self._file.read1(len(buffer))
        except self._damages as error:
            raise Damaged(str(error)) from None
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()
