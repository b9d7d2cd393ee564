"""Read JSON Lines: the numbered lines of a file, and the JSON object on each line."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from m3_connectors.errors import InvalidInput

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NotARecord(ValueError):
    """A text is not one JSON object with distinct names; the message is the reason."""


class Decoder:
    """Decodes JSON, and records the names that occur twice in one object of the last value."""

    def __init__(self) -> None:
        self._repeated: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def record(self, text: str) -> dict[str, Any]:
        """Decode one JSON object.

        Raises:
            NotARecord: The text is something else.
        """
        self._repeated.clear()
        try:
            # Concatenated files keep their byte order marks.
            return self.checked(self._decoder.decode(text.removeprefix("\ufeff")))
        except json.JSONDecodeError as error:
            raise NotARecord(f"not JSON: {error.msg} at character {error.pos + 1}") from None
        except NotARecord:
            raise
        except (RecursionError, ValueError):  # very deep nesting, or an integer of thousands of digits
            raise NotARecord("not readable JSON: nested too deeply, or a number is too long") from None

    def first(self, text: str, start: int) -> tuple[Any, int]:
        """Decode the value at a position, and return it with its end.

        Raises:
            json.JSONDecodeError: The text is not JSON.
            RecursionError, ValueError: The value is nested too deeply, or contains a number that is too long.
        """
        self._repeated.clear()
        return self._decoder.raw_decode(text, start)

    def checked(self, value: Any) -> dict[str, Any]:
        """Return the value that was decoded last; NotARecord if it is not an object, or repeats a name."""
        if not isinstance(value, dict):
            raise NotARecord(f"a JSON {_json_type(value)}, not an object")
        if self._repeated:
            raise NotARecord(f"the field {self._repeated[0]!r} occurs twice in one object")
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            times = Counter(name for name, _ in pairs)
            self._repeated += (name for name in value if times[name] > 1)
        return value


def numbered_lines(
    path: Path, member: str | None = None, undecodable: Callable[[str], None] | None = None
) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers from 1.

    Args:
        path: The file: plain, ``.gz`` or ``.zip``; UTF-8 with or without a byte order mark, or UTF-16 with one.
        member: The name of the file in a ``.zip``, in any folder there.
        undecodable: Called with the message of a line that is not UTF-8, which is then skipped; without it, such
            a line is an error.

    Raises:
        InvalidInput: A line cannot be decoded, or the compressed data are damaged.
    """
    number = 0
    convert = f"-t UTF-8 {path.name} > utf8-{path.name}"
    try:
        with _open(path, member) as content:
            if content.peek(2)[:2] in _UTF_16:
                # UTF-16 text must be decoded before it can be split into lines.
                with io.TextIOWrapper(content, "utf-16", newline="\n") as texts:
                    for number, text in enumerate(texts, 1):
                        if text.removeprefix("\ufeff").strip():
                            yield number, text
                return
            for number, line in enumerate(content, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    message = (
                        f"{path}:{number} is not UTF-8 at byte {error.start} of the line "
                        f"(0x{line[error.start]:02X}).\n"
                        f"  Convert the file, for example with: iconv -f ISO-8859-1 {convert}"
                    )
                    if undecodable is None:
                        raise InvalidInput(message) from None
                    undecodable(message)
                    continue
                if text.removeprefix("\ufeff").strip():
                    yield number, text
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path}:{number + 1} or shortly after it is not UTF-16: {error.reason}.\n"
            f"  Convert the file, for example with: iconv -f UTF-16 {convert}"
        ) from None
    except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        # zipfile raises RuntimeError if the file is encrypted or compressed with an unknown method.
        raise InvalidInput(
            f"{path} cannot be decompressed after line {number}: {error}\n"
            "  Download or compress the file again."
        ) from None


@contextlib.contextmanager
def _open(path: Path, member: str | None) -> Iterator[Any]:
    """Open the bytes of a file, which can be peeked at."""
    if member is None:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if PurePosixPath(name).name == member]
        if len(names) != 1:
            raise InvalidInput(
                f"{path} has {len(names)} files {member}; it must have one.\n  Remove the others."
            )
        with archive.open(names[0]) as file:
            yield file


def _json_type(value: object) -> str:
    if isinstance(value, list):
        return "array"
    return "null" if value is None else type(value).__name__.replace("str", "string")
