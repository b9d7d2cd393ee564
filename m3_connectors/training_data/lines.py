"""Lines of files as JSON objects or cells. A line that cannot be read is named, and the rest of the file is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

from m3_connectors.errors import InvalidInput
from m3_connectors.readers.encodings import UNDECODABLE, written
from m3_connectors.readers.inputs import Input
from m3_connectors.readers.jsonl import json_objects
from m3_connectors.readers.lines import TOO_LONG, text_lines
from m3_connectors.training_data.examples import Unusable, broken

Record = dict[str, Any]


def json_records(path: Path) -> Iterator[tuple[str, Record] | Unusable]:
    """Yield the place and the JSON object of each line of a file that is not blank.

    The file may be compressed (``.gz``, ``.zst``), in UTF-8, or in UTF-16 with a byte order mark.
    """
    last = 0
    try:
        with _open(path) as text:
            for last, record in json_objects(text_lines(text), written(text.encoding)):
                place = f"{path}:{last}"
                yield broken(place, record) if isinstance(record, str) else (place, record)
    except (OSError, InvalidInput) as error:
        yield unreadable(path, last, error)


def text_rows(path: Path) -> Iterator[tuple[str, str] | Unusable]:
    """Yield the place and the text of each line of a file, blank ones too, without its line end."""
    number = 0
    try:
        with _open(path) as text:
            encoding = written(text.encoding)
            for number, line in enumerate(text_lines(text), 1):
                place = f"{path}:{number}"
                if line is None:
                    yield broken(place, TOO_LONG)
                elif undecodable := UNDECODABLE.search(line):
                    yield broken(place, f"not {encoding} at character {undecodable.start() + 1} of the line")
                else:
                    yield place, line.removeprefix("\ufeff").rstrip("\r\n")
    except (OSError, InvalidInput) as error:
        yield unreadable(path, number, error)


def unreadable(path: Path, line: int, error: Exception) -> Unusable:
    """Return what the rest of a file is reported as if reading it failed after a line."""
    if isinstance(error, OSError) and error.strerror:
        what = error.strerror
    else:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
    return broken(f"{path}:{line}" if line else str(path), f"the file cannot be read further: {what}")


def _open(path: Path) -> AbstractContextManager[TextIO]:
    # Only a line feed ends a line: a text may contain other line ends.
    return Input(path, path, path.name, "").open_text(None, "\n")
