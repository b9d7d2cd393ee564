"""Sources, files and folders, as one stream of documents."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.readers.dead_letters import DeadLetter, is_report
from m3_connectors.readers.fields import Fields
from m3_connectors.readers.pages import read_page
from m3_connectors.readers.records import Skip, read_csv, read_jsonl

FORMATS = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".rst", ".md", ".markdown", ".html", ".htm")
"""Endings of the files that are read; the first four also with ``.gz`` behind."""

_JSONL = (".jsonl", ".ndjson")
_CSV = (".csv", ".tsv")
_MARKUP: dict[str, Literal["html", "markdown"]] = {
    ".html": "html",
    ".htm": "html",
    ".md": "markdown",
    ".markdown": "markdown",
}
_DEFAULT_FIELDS = Fields()


def read_documents(
    sources: Iterable[Path],
    *,
    fields: Fields = _DEFAULT_FIELDS,
    on_dead_letter: Callable[[Path, DeadLetter], None],
    on_source: Callable[[Path], None] = lambda _: None,
    on_file: Callable[[Path, Path], None] = lambda source, file: None,
    without: Path | None = None,
) -> Iterator[Document]:
    """The documents of files and folders, one after another, each fit to be stored.

    A record of JSON Lines or CSV is a document; so is a file of text, Markdown or HTML, with its path below
    the source folder (or its name) as id; where several folders are given, the folder's name stands before it.
    Folders are read in the order of their paths; links to folders are
    not followed.

    Args:
        sources: Files and folders.
        fields: How a record becomes a document.
        on_dead_letter: Called with the source and each record or file that was skipped.
        on_source: Called with each source before it is read.
        on_file: Called with the source and each of its files before the file is read.
        without: A folder to leave out, such as the one that the store keeps its data in.

    Raises:
        InvalidInput: A source is no file of a format that is read.
        FileNotFoundError: A source does not exist.
    """
    sources = list(sources)
    prefixes = _prefixes([source for source in sources if source.is_dir()])
    for source in sources:
        on_source(source)
        for path, below in _files(source, without, on_dead_letter):
            name = prefixes.get(source, "") + below

            def skip(line: int | None, reason: str, path: Path = path, source: Path = source) -> None:
                on_dead_letter(source, DeadLetter(str(path), line, reason))

            on_file(source, path)
            try:
                yield from _read(path, name, fields, skip)
            except OSError as error:
                skip(None, f"cannot be read: {error.strerror or error}")


def check_sources(sources: Iterable[Path]) -> None:
    """Raise InvalidInput or FileNotFoundError if a source cannot be read at all, before any is."""
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"{source} does not exist.\n  Give files or folders to read.")
        if not source.is_dir() and _format(source) not in FORMATS:
            raise InvalidInput(f"{source} is {_not_read(source)}.\n  Give a folder, or {', '.join(FORMATS)}.")


def _not_read(path: Path) -> str:
    """Why a file is of no format that is read."""
    if Path(path.stem).suffix.lower() in FORMATS and path.suffix.lower() == ".gz":
        return "compressed, and only JSON Lines and CSV may be"
    return f"of no format that is read ({path.suffix or 'no ending'})"


def is_records(path: Path) -> bool:
    """Whether a file holds one document a record (JSON Lines, CSV), not one in all."""
    return _format(path) in _JSONL + _CSV


def _read(path: Path, name: str, fields: Fields, skip: Skip) -> Iterator[Document]:
    kind = _format(path)
    if kind in _JSONL:
        yield from read_jsonl(path, name, fields, skip)
    elif kind in _CSV:
        yield from read_csv(path, name, fields, skip)
    else:
        try:
            document = read_page(path, name, _MARKUP.get(kind))
        except InvalidInput as error:
            skip(None, str(error).splitlines()[0].removeprefix("documents[0]."))
        else:
            yield document


def _format(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        inner = Path(path.stem).suffix.lower()
        return inner if inner in _JSONL + _CSV else suffix
    return suffix


def _prefixes(folders: list[Path]) -> dict[Path, str]:
    """What stands before the ids of each of several folders, so that equal names below them are not one id."""
    if len(folders) < 2:
        return {}
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):  # a/notes and b/notes
        names = [folder.as_posix() for folder in folders]
    return {folder: f"{name}/" for folder, name in zip(folders, names, strict=True)}


def _files(
    source: Path, without: Path | None, on_dead_letter: Callable[[Path, DeadLetter], None]
) -> Iterator[tuple[Path, str]]:
    """Files to read with their names below the source, in the order of their paths."""
    check_sources([source])
    if not source.is_dir():
        yield source, source.name
        return

    def skip(path: str | Path, reason: str) -> None:
        on_dead_letter(source, DeadLetter(str(path), None, reason))

    left_out = without.resolve() if without else None
    walk = os.walk(source, onerror=lambda error: skip(error.filename, f"cannot be read: {error.strerror}"))
    for folder, folders, files in walk:
        here = Path(folder)
        for name in [name for name in folders if name.startswith(".")]:
            skip(here / name, "a hidden folder")
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (here / name).resolve() != left_out
        )
        for name in sorted(files):
            path = here / name
            if is_report(path):
                continue  # what an earlier run wrote about this very folder
            if name.startswith("."):
                skip(path, "a hidden file")
            elif _format(path) not in FORMATS:
                skip(path, _not_read(path))
            elif not path.is_file():
                skip(path, "no regular file" if path.exists() else "a link to nothing")
            else:
                yield path, path.relative_to(source).as_posix()
