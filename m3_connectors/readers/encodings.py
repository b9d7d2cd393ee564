"""Detect a file's encoding: byte order marks, labels of the WHATWG Encoding Standard, and fallbacks."""

from __future__ import annotations

import codecs
import io
import re
from typing import IO

import webencodings

from m3_connectors.errors import InvalidInput

_MARKS = (
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NOT_CHARSETS = frozenset({"undefined", "idna", "punycode", "unicode-escape", "raw-unicode-escape"})
"""Python codecs that are not encodings of characters."""

_GBK = "gbk"
"""The standard decodes gbk, and therefore gb2312, as gb18030, which is a superset."""

_C1 = "m3_connectors.c1"
_MARK_UNDECODABLE = "m3_connectors.mark_undecodable"
UNDECODABLE = re.compile("[\udc00-\udcff]")
"""The characters that ``text_stream`` returns for undecodable bytes; no encoding decodes to them."""


def _c1_controls(error: UnicodeError) -> tuple[str, int]:
    """Decode bytes that Python's windows-1252 does not define to control characters, as in the standard."""
    if isinstance(error, UnicodeDecodeError) and error.encoding == "charmap":
        wrong = error.object[error.start : error.end]
        if all(0x80 <= byte < 0xA0 for byte in wrong):
            return wrong.decode("latin-1"), error.end
    raise error


def _mark_undecodable(error: UnicodeError) -> tuple[str, int]:
    try:
        return _c1_controls(error)
    except UnicodeDecodeError as wrong:
        marks = (chr(0xDC00 + byte) for byte in wrong.object[wrong.start : wrong.end])
        return "".join(marks), wrong.end


codecs.register_error(_C1, _c1_controls)
codecs.register_error(_MARK_UNDECODABLE, _mark_undecodable)


def known_encoding(name: str) -> str:
    """Return the codec of an encoding given by the user: a web label, or a Python codec.

    Raises:
        InvalidInput: The encoding is unknown.
    """
    try:
        if name.strip().lower() in ("ascii", "us-ascii"):
            return "ascii"  # on the web it means windows-1252, which would turn UTF-8 into other letters
        label = webencodings.lookup(name)
        if label is not None and label.name not in ("replacement", "x-user-defined"):
            return _codec_of(label)
        codec = codecs.lookup(name).name
        if codec.replace("_", "-") not in _NOT_CHARSETS and "é".encode(codec, "ignore") is not None:
            return codec
    except (LookupError, UnicodeError):
        pass
    raise InvalidInput(
        f"{name!r} is not a known encoding.\n  Use one such as utf-8, windows-1252 or gb18030."
    )


def marked_encoding(head: bytes) -> str | None:
    """Return the codec of a byte order mark, which takes precedence over any declaration."""
    return next((codec for mark, codec in _MARKS if head.startswith(mark)), None)


def record_encoding(head: bytes, declared: str | None) -> str:
    """Return the codec of a file of records, which begins with two ASCII characters (RFC 4627, section 3).

    Args:
        head: The first bytes of the file.
        declared: The codec given by the caller.
    """
    marked = marked_encoding(head)
    if marked or declared:
        return marked or declared or ""
    if len(head) >= 2 and (head[0] == 0) != (head[1] == 0):
        return "utf-16-be" if head[0] == 0 else "utf-16-le"
    return "utf-8"


def written(codec: str) -> str:
    """Return a codec's name for messages."""
    return codec.removesuffix("-sig").upper()


def text_stream(raw: IO[bytes], codec: str, newline: str) -> io.TextIOWrapper:
    """Return a text stream; undecodable bytes match ``UNDECODABLE``, so that only their record is lost."""
    return io.TextIOWrapper(raw, codec, _MARK_UNDECODABLE, newline=newline)


def decode(raw: bytes, codec: str) -> str:
    """Decode all bytes of a file.

    Raises:
        InvalidInput: The bytes are not valid in that encoding; the message contains only the reason.
    """
    try:
        return raw.decode(codec, _C1)
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"not {written(codec)} at byte {error.start}: "
            "give its encoding with --encoding, such as windows-1252"
        ) from None
    except UnicodeError as error:
        raise InvalidInput(f"not {written(codec)}: {error}") from None


def encoding_of_label(label: str) -> str | None:
    """Return the codec of a page's label by the HTML standard, or None if the label is unknown.

    Raises:
        InvalidInput: Browsers refuse to decode this encoding.
    """
    try:
        encoding = webencodings.lookup(label)
    except UnicodeError:
        return None
    if encoding is None:
        return None
    if encoding.name == "replacement":
        raise InvalidInput(f"declares the encoding {label!r}, which browsers reject: give it with --encoding")
    if encoding.name in ("utf-16le", "utf-16be"):
        return "utf-8"  # the label was read as ASCII, so the page is not in UTF-16
    if encoding.name == "x-user-defined":
        return "windows-1252"
    return _codec_of(encoding)


def _codec_of(encoding: webencodings.Encoding) -> str:
    return "gb18030" if encoding.name == _GBK else str(encoding.codec_info.name)


def likely_windows_1252(text: str) -> bool:
    """Return whether text decoded as windows-1252 is plausible, and not in another 8-bit encoding.

    Languages that use windows-1252 have few accents; Cyrillic, Greek or East Asian text would decode to long
    runs of accented letters, or to mostly accented letters.
    """
    letters = sum(letter.isalpha() for letter in text)
    accented = sum(letter.isalpha() and not letter.isascii() for letter in text)
    return accented * 3 <= letters and not _RUN.search(text)


_RUN = re.compile(r"[\x80-\x9f]|[\xa1-\xff]{4}")
