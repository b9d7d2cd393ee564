"""Dead letters: what was not read, and why, so that it can be mended and read again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import TracebackType
from typing import TextIO

from m3_connectors.readers.inputs import STDIN

SUFFIX = ".dead.jsonl"


@dataclasses.dataclass(frozen=True)
class DeadLetter:
    """One record or file that was skipped.

    Attributes:
        file: Path of the file, as the caller would type it.
        line: Its line number, from 1; None if the whole file (or folder) was skipped.
        reason: What is wrong with it, in one line.
    """

    file: str
    line: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


class DeadLetterFiles:
    """Writes each source's dead letters to ``<source-name>.dead.jsonl``, made when the first one comes.

    A file of that name from an earlier run is replaced when its source is read again. A context manager.

    Args:
        directory: Where the files go.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: dict[Path, TextIO] = {}
        self.count = 0
        """Dead letters so far."""
        self.first: DeadLetter | None = None
        """The first of them."""

    @property
    def paths(self) -> list[Path]:
        """The files written."""
        return list(self._open)

    def begin(self, source: Path) -> None:
        """A source is about to be read: what an earlier run said about it is out of date."""
        path = self._path(source)
        if path not in self._open:
            path.unlink(missing_ok=True)

    def add(self, source: Path, letter: DeadLetter) -> None:
        """Write one dead letter of a source.

        Raises:
            OSError: The file cannot be written.
        """
        path = self._path(source)
        if path not in self._open:
            self._open[path] = path.open("w", encoding="utf-8")
        # A file name may hold bytes that are not UTF-8; JSON's escapes keep it writable.
        self._open[path].write(json.dumps(dataclasses.asdict(letter)) + "\n")
        self._open[path].flush()
        self.count += 1
        self.first = self.first or letter

    def __enter__(self) -> DeadLetterFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._open.values():
            file.close()

    def _path(self, source: Path) -> Path:
        if source == STDIN:
            return self._directory / f"stdin{SUFFIX}"
        name = source.resolve().name
        for ending in (".gz", ".jsonl", ".ndjson", ".json", ".csv", ".tsv"):
            if name.lower().endswith(ending):
                name = name[: -len(ending)]
        return self._directory / f"{name or 'root'}{SUFFIX}"
