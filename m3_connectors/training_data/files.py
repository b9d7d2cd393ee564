"""The files that a command writes: the examples, and beside them what was dropped."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from m3_connectors.errors import InvalidInput
from m3_connectors.files import replacing

_ENDINGS = (".jsonl", ".jsonl.gz")
DROPPED_SUFFIX = ".dropped.jsonl"


def check_output(path: Path, sources: Iterable[object] = ()) -> None:
    """Check where examples are to be written, before they are made.

    Args:
        path: The file.
        sources: What is read; only paths are checked.

    Raises:
        InvalidInput: The name has another ending than the trainer reads, its folder does not exist, or the file is
            one of the sources, or already exists in one of them.
    """
    if not path.name.lower().endswith(_ENDINGS):
        raise InvalidInput(
            f"{path} does not end in .jsonl or .jsonl.gz, which m3 train reads.\n  Give such a name, like pairs.jsonl."
        )
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"is in a folder that does not exist ({path.parent})"
        raise InvalidInput(f"{path} {what}.\n  Give a file in a folder that exists.")
    for source in sources:
        if path.exists() and isinstance(source, Path) and source.resolve() in _with_parents(path):
            raise InvalidInput(
                f"{path} is to be written, and would be read as a part of {source}.\n"
                "  Choose another file for the output, outside of what is read."
            )


def _with_parents(path: Path) -> tuple[Path, ...]:
    whole = path.resolve()
    return (whole, *whole.parents)


def beside(path: Path, suffix: str) -> Path:
    """Return the path of a file about the examples of another one: ``pairs.dropped.jsonl`` beside ``pairs.jsonl``."""
    return path.with_name(path.name[: path.name.lower().rindex(".jsonl")] + suffix)


class Lines:
    """Writes JSON Lines into a text file.

    Args:
        stream: The file.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.count = 0
        """The number of lines written so far."""

    def write(self, record: dict[str, Any]) -> None:
        """Write one line."""
        self._stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.count += 1


@contextlib.contextmanager
def lines_to(path: Path) -> Iterator[Lines]:
    """Write a file as a whole: it replaces an earlier one only at the end of the block, if that raises no error.

    If nothing was written, there is no file.
    """
    with replacing(path) as partial, _opened(partial, compressed=path.name.lower().endswith(".gz")) as stream:
        lines = Lines(stream)
        yield lines
    if not lines.count:
        path.unlink()


@contextlib.contextmanager
def _opened(path: Path, *, compressed: bool) -> Iterator[TextIO]:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("wb"))
        # Without name and time, so that the same examples are the same bytes.
        binary = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0)) if compressed else file
        yield stack.enter_context(io.TextIOWrapper(binary, "utf-8", newline="\n"))
