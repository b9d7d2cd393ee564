"""Report files of a run: dead letters (skipped records with reasons), truncated texts, and dropped documents."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from m3_connectors.errors import InvalidInput
from m3_connectors.readers.inputs import STDIN, Source
from m3_connectors.readers.urls import Url

SUFFIX = ".dead.jsonl"
CUT_SUFFIX = ".cut.jsonl"
DROPPED_SUFFIX = ".dropped.jsonl"
_LONGEST_LINE_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class DeadLetter:
    """One record or file that was skipped.

    Attributes:
        file: The path of the file, as the caller would type it.
        line: Where the record is, from 1: the number of its line, of its row (Parquet, Arrow) or of its page
            (PDF); None if the whole file (or folder) was skipped.
        reason: Why it was skipped, in one line.
        stage: Where it was skipped: ``"read"``, or ``"cut"``, ``"encode"`` or ``"write"`` for a document that was read;
            ``"column"`` if all records were read, without a column.
        source: The source of a document that was read, as the ledger knows it; so is ``path``, its file.
        path: The file.
        chunking: How the document was to be cut.
        id: The id of the document.
        text: Its text.
        metadata: Its metadata.
    """

    file: str
    line: int | None
    reason: str
    stage: str = "read"
    source: str | None = None
    path: str | None = None
    chunking: str | None = None
    id: str | None = None
    metadata: dict[str, Any] | None = None
    text: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The letter as JSON takes it; without the fields of a document if it is about a record that was not read."""
        return _letter(self)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class CutLetter:
    """One document of which only the beginning was encoded.

    Attributes:
        id: The id of the document.
        file: The path of the file that it came from, as the caller would type it.
        tokens: The number of tokens of its whole text.
        kept: The number of tokens, from the first, that were encoded.
        lost_share: The share of tokens that were not encoded, 0 to 1.
    """

    id: str
    file: str
    tokens: int
    kept: int
    lost_share: float


@dataclasses.dataclass(frozen=True)
class DroppedLetter:
    """One document that curation dropped.

    Attributes:
        id: The id of the document.
        file: The path of the file that it came from, as the caller would type it.
        stage: The stage that dropped it.
        reason: Why it was dropped, in one line.
        value: The value that decided, such as a share or a similarity.
        duplicate_of: The id of the earlier document that it duplicates; None if it is not a duplicate.
        known: Whether the ledger knows a document of this id, which the collection may hold.
    """

    id: str
    file: str
    stage: str
    reason: str
    value: float | str
    duplicate_of: str | None
    known: bool


def is_report(path: Path) -> bool:
    """Return whether a file is a report of an earlier run, judged by its name and its first line."""
    for suffix, kind in ((SUFFIX, DeadLetter), (CUT_SUFFIX, CutLetter), (DROPPED_SUFFIX, DroppedLetter)):
        if path.name.endswith(suffix):
            try:
                with path.open("rb") as file:
                    line = file.readline(_LONGEST_LINE_BYTES)
                if len(line) == _LONGEST_LINE_BYTES:
                    # The text of a document, which may be long, is the end of its letter.
                    line = line.partition(b', "text": ')[0] + b"}"
                first = json.loads(line)
            except (OSError, ValueError):
                return False
            fields = {field.name for field in dataclasses.fields(kind)}
            return isinstance(first, dict) and "file" in first and first.keys() <= fields
    return False


class ReportFiles:
    """Writes a report for each source to ``<source-name><suffix>``, one JSON object per line.

    A file is created with its first line. A report of an earlier run is replaced when its source is read again. A file
    of that name that was not written by a run is left unchanged: the name of the report then gets a number. This is a
    context manager.

    Args:
        directory: The folder of the files.
        suffix: The suffix of their names.
    """

    def __init__(self, directory: Path, suffix: str) -> None:
        self._directory = directory
        self._suffix = suffix
        self._open: dict[Path, TextIO] = {}
        self.count = 0
        """The number of lines written so far."""

    @property
    def paths(self) -> list[Path]:
        """The files that were written."""
        return list(self._open)

    def begin(self, source: Source) -> None:
        """Called before a source is read: deletes the report of an earlier run, which is stale."""
        path = self._path(source)
        if path not in self._open:
            with self._needed(path):
                path.unlink(missing_ok=True)

    def write(self, source: Source, letter: DeadLetter | CutLetter | DroppedLetter) -> None:
        """Write one line about a source.

        Raises:
            InvalidInput: The file cannot be written.
        """
        path = self._path(source)
        with self._needed(path):
            if path not in self._open:
                self._open[path] = path.open("w", encoding="utf-8")
            # A file name may contain bytes that are not UTF-8; JSON escapes make it possible to write them.
            self._open[path].write(json.dumps(_letter(letter)) + "\n")
            self._open[path].flush()
        self.count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._open.values():
            file.close()

    @contextlib.contextmanager
    def _needed(self, path: Path) -> Iterator[None]:
        """Without its report a run would lose documents silently, so a report that cannot be written ends it."""
        try:
            yield
        except OSError as error:
            raise InvalidInput(
                f"the report {path} cannot be written: {error.strerror or error}. It would name documents that are "
                "skipped, cut or dropped.\n  Run m3 ingest in a folder where files can be written."
            ) from error

    def _path(self, source: Source) -> Path:
        name = self._name(source)
        names = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(2)))
        paths = (self._directory / f"{name}{self._suffix}" for name in names)
        return next(path for path in paths if path in self._open or not path.exists() or is_report(path))

    @staticmethod
    def _name(source: Source) -> str:
        if source == STDIN:
            return "stdin"
        if isinstance(source, Url):
            name = re.sub(r"[^\w.-]+", "_", source.name or source.scheme)
        else:
            name = source.resolve().name
        for ending in (".gz", ".zst", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow"):
            if name.lower().endswith(ending):
                name = name[: -len(ending)]
        return name or "root"


class DeadLetterFiles(ReportFiles):
    """Writes each source's dead letters to ``<source-name>.dead.jsonl``; ``count`` is their number so far."""

    def __init__(self, directory: Path, suffix: str = SUFFIX) -> None:
        super().__init__(directory, suffix)
        self.first: DeadLetter | None = None
        """The first dead letter."""

    def add(self, source: Source, letter: DeadLetter) -> None:
        """Write one dead letter of a source.

        Raises:
            InvalidInput: The file cannot be written.
        """
        self.write(source, letter)
        self.first = self.first or letter


def _letter(letter: DeadLetter | CutLetter | DroppedLetter) -> dict[str, Any]:
    own = dataclasses.asdict(letter)
    return {name: value for name, value in own.items() if value is not None or name == "line"}
