"""Decompress files whose names end in ``.gz`` or ``.zst``."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable
from io import BufferedReader, RawIOBase
from typing import Any, Protocol

from m3_connectors.errors import MissingDependency


class Damaged(OSError):
    """A compressed file is cut or damaged; the message contains only the reason."""


class Named(Protocol):
    """A path or URL."""

    @property
    def suffix(self) -> str:
        """The file extension of the name."""


class Readable(Protocol):
    """A file of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most ``size``."""


def is_compressed(path: Named) -> bool:
    """Return whether the name of a file ends in the suffix of a compression."""
    return path.suffix.lower() in _COMPRESSIONS


def decompressed(path: Named, raw: Readable, check: Callable[[int], object]) -> BufferedReader:
    """Return the content of a compressed file up to where it is damaged; reading on then raises ``Damaged``.

    Args:
        path: The path of the file, whose suffix names the compression.
        raw: The compressed bytes. They must stay open while the content is read.
        check: Called with the number of bytes expanded so far; what it raises ends the reading.

    Raises:
        MissingDependency: The package that decompresses it is not installed.
    """
    return BufferedReader(_Decompressed(*_COMPRESSIONS[path.suffix.lower()](raw), check))


def lacks_checksum(path: Named, head: bytes) -> bool:
    """Return whether damage of a compressed file may go unnoticed: its first frame of Zstandard has no checksum.

    Args:
        path: The path of the file.
        head: The first bytes of the file, at least 5.
    """
    is_frame = path.suffix.lower() == ".zst" and len(head) > 4 and head[:4] == _ZSTD_MARK
    return is_frame and not head[4] & _ZSTD_CHECKSUM


_ZSTD_MARK = b"\x28\xb5\x2f\xfd"
_ZSTD_CHECKSUM = 4
"""The bit of the frame header descriptor that says that a checksum follows the frame (RFC 8878, 3.1.1.1.1)."""


_Opened = tuple[Any, tuple[type[Exception], ...]]
"""A file with ``read1``, and the errors that it raises for damage."""


def _gzip(raw: Any) -> _Opened:
    return gzip.GzipFile(fileobj=raw), (EOFError, zlib.error, gzip.BadGzipFile)


def _zstd(raw: Any) -> _Opened:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise MissingDependency("backports.zstd", "zstd") from None
    return zstd.ZstdFile(raw), (EOFError, zstd.ZstdError)


_COMPRESSIONS: dict[str, Callable[[Any], _Opened]] = {".gz": _gzip, ".zst": _zstd}


class _Decompressed(RawIOBase):
    def __init__(
        self, file: Any, damages: tuple[type[Exception], ...], check: Callable[[int], object]
    ) -> None:
        self._file = file
        self._damages = damages
        self._check = check
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # ``readinto`` of these files reads until the buffer is full, and loses what it has read when it finds damage.
        try:
            part = self._file.read1(len(buffer))
        except self._damages as error:
            raise Damaged(str(error)) from None
        buffer[: len(part)] = part
        self._count += len(part)
        self._check(self._count)
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()
