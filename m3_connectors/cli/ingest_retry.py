"""``m3 ingest retry``: store documents again that could not be cut, encoded or written."""

from __future__ import annotations

import json as json_text
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.cli.console import plural, warn
from m3_connectors.cli.ingest_run import Target, store
from m3_connectors.cli.ingest_verify import To
from m3_connectors.cli.options import Collection, Debug, Json, Model, at_least, check_store
from m3_connectors.cli.reading import Reading
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import CUT_SUFFIX, DeadLetter, DeadLetterFiles, ReportFiles, Source

WAIT_SECONDS = 300

Wait = Annotated[
    int,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        parser=at_least(0),
        help="How long to wait for a store that is down or overloaded.",
    ),
]


def retry(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The dead letters of a run, SOURCE.dead.jsonl.")
    ],
    to: To,
    collection: Collection = DEFAULT_COLLECTION,
    model: Model = None,
    wait: Wait = WAIT_SECONDS,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Store the documents of dead letters again. FILE then holds what is left, and is removed if nothing is.

    Records that could not be read are left: fix their files, and run m3 ingest again.
    """
    check_store(to, collection)
    chunkings = {letter.chunking for letter in _letters(file) if letter.text is not None}
    if len(chunkings) != 1:
        raise _cannot_retry(file, chunkings)
    chunking = chunkings.pop() or "none"
    with _Left(file) as left, ReportFiles(Path.cwd(), CUT_SUFFIX) as cut:
        reading = _Retrying(file, left, cut, chunking)
        store(
            Target(to, collection, model, None, chunking),
            reading,
            reading.following(reading.again()),
            lambda: InvalidInput(
                f"nothing was stored: the first of {plural(left.count, 'record')} is {left.first}\n"
                f"  {file} is unchanged."
            ),
            json=json,
            wait_seconds=wait,
        )
        left.replace()
    if reading.unread_count:
        warn(
            f"{plural(reading.unread_count, 'record')} in {file} could not be read. Fix the files that they name, and "
            "run m3 ingest again."
        )


class _Left(DeadLetterFiles):
    """The letters that are left: a new file beside the old one, which it replaces at the end of the run."""

    def __init__(self, file: Path) -> None:
        super().__init__(file.parent)
        self._file = file
        self._new = file.with_name(f".{file.name}.new")

    @property
    def paths(self) -> list[Path]:
        """The file, if a letter is left."""
        return [self._file] if self.count else []

    def replace(self) -> None:
        """Replace the old file."""
        if self.count:
            os.replace(self._new, self._file)
        else:
            self._file.unlink()

    def __exit__(self, *error: object) -> None:
        for file in self._open.values():
            file.close()
        self._new.unlink(missing_ok=True)

    def _path(self, source: Source) -> Path:
        return self._new


class _Retrying(Reading):
    """Follows the documents of dead letters."""

    def __init__(self, file: Path, dead: DeadLetterFiles, cut: ReportFiles, chunking: str) -> None:
        super().__init__(dead, cut, None, chunking, [file])
        self._letters = file
        self.unread_count = 0
        """The number of letters without a document."""

    def again(self) -> Iterator[Document]:
        """Yield the documents of the letters, and keep the letters that have none."""
        self._begin_file(self._letters, self._letters)
        for letter in _letters(self._letters):
            if letter.text is None or letter.id is None:
                self.unread_count += 1
                self.dead.add(self._letters, letter)
            else:
                self._from(letter.source or "", letter.path or "")
                yield Document(letter.id, letter.text, letter.metadata or {})


def _letters(file: Path) -> Iterator[DeadLetter]:
    """Yield the letters of a file.

    Raises:
        InvalidInput: It has something else.
        FileNotFoundError: It does not exist.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json_text.loads(line)
                if not isinstance(record, dict):
                    raise TypeError(f"it is {type(record).__name__}, not an object")
                if not isinstance(record.get("metadata") or {}, dict):
                    raise TypeError(f"metadata is {type(record['metadata']).__name__}, not an object")
                letter = DeadLetter(**record)
            except (ValueError, TypeError) as error:
                raise InvalidInput(
                    f"{file}:{number} is not a dead letter: {error}\n"
                    "  Give a file that m3 ingest or m3 index wrote, such as SOURCE.dead.jsonl."
                ) from None
            yield letter


def _cannot_retry(file: Path, chunkings: set[str | None]) -> InvalidInput:
    if chunkings:
        return InvalidInput(
            f"the documents of {file} were cut in several ways: {', '.join(sorted(map(str, chunkings)))}.\n"
            "  Give the letters of one run."
        )
    return InvalidInput(
        f"{file} has no document: its records could not be read.\n  Fix their files, and run m3 ingest again."
    )
