"""Lines of text files, plain or ``.gz``, as JSON objects or cells; every error names the file and the line.

A measure over a file that was read in part would be wrong without a sign of it, so a malformed line is an
error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from m3_connectors.documents import Document, check_documents, check_unicode
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.dataset import Corpus
from m3_connectors.json_lines import Decoder, NotARecord, numbered_lines

Record = dict[str, Any]

_FIX = "\n  Fix or remove the line."


def find(directory: Path, name: str) -> Path:
    """The file of that name, plain or compressed.

    Raises:
        InvalidInput: There is neither.
    """
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    raise InvalidInput(
        f"{directory} has neither {name} nor {name}.gz.\n  Add the file; docs/datasets.md describes it."
    )


def records(path: Path, member: str | None = None) -> Iterator[tuple[str, Record]]:
    """The JSON objects of a file (see ``numbered_lines``), a line each, with ``FILE:LINE`` for errors.

    Raises:
        InvalidInput: A line holds something else.
    """
    decoder = Decoder()
    for line, raw in numbered_lines(path, member):
        where = f"{path}:{line}" if member is None else f"{path}:{member}:{line}"
        try:
            record = decoder.record(raw)
        except NotARecord as error:
            raise InvalidInput(f"{where}: {error}.{_FIX}") from None
        yield where, record


def cells(path: Path, *columns: str) -> Iterator[tuple[str, list[str]]]:
    """The cells of a file of tab-separated values, a row each, with ``FILE:LINE`` for errors.

    Args:
        path: The file.
        columns: What its cells are, for the error.

    Raises:
        InvalidInput: A row has another number of cells.
    """
    for line, raw in numbered_lines(path):
        row = raw.rstrip("\r\n").split("\t")
        if len(row) != len(columns):
            raise InvalidInput(f"{path}:{line}: {raw.strip()!r} is not '{' TAB '.join(columns)}'.{_FIX}")
        yield f"{path}:{line}", row


def whole_number(text: str, where: str, what: str) -> int:
    """A grade.

    Raises:
        InvalidInput: The text is no whole number.
    """
    try:
        return int(text)
    except ValueError:
        raise InvalidInput(f"{where}: {what} is {text!r}; it must be an integer.{_FIX}") from None


def string(record: Record, field: str, where: str) -> str:
    """A field that must be text.

    Raises:
        InvalidInput: It is missing, something else, or no valid Unicode (JSON can write a lone surrogate).
    """
    value = record.get(field)
    if not isinstance(value, str):
        raise InvalidInput(f"{where}: {field} is {type(value).__name__}; it must be a string.{_FIX}")
    check_unicode(value, f"{where}: {field}")
    return value


def as_id(value: object, where: str, what: str) -> str:
    """An id as JSON may give it: a string or a whole number.

    Raises:
        InvalidInput: It is something else, or no valid Unicode.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidInput(
            f"{where}: {what} is {type(value).__name__}; an id must be a string or an integer.{_FIX}"
        )
    check_unicode(str(value), f"{where}: {what}")
    return str(value)


def identifier(record: Record, fields: Sequence[str], where: str) -> str:
    """The id of a record: a string or a whole number, in the first of these fields that it has.

    Raises:
        InvalidInput: It has none, or something else there.
    """
    value = next((record[field] for field in fields if field in record), None)
    return as_id(value, where, fields[0])


def document_with_title(record: Record, where: str, ids: Sequence[str]) -> Document:
    """A document of a folder; title and metadata are optional.

    Raises:
        InvalidInput: A field is of another type.
    """
    title = record.get("title") or ""
    if not isinstance(title, str):
        raise InvalidInput(f"{where}: title is {type(title).__name__}; it must be a string.{_FIX}")
    text = titled(title, string(record, "text", where))
    return Document(identifier(record, ids, where), text, record.get("metadata") or {})


def titled(title: str, text: str) -> str:
    """A passage as the paper's scripts give it to the model: the title on a line of its own, if there is one."""
    return f"{title}\n{text}" if title else text


def read_corpus(
    paths: Iterable[Path],
    document: Callable[[Record, str], Document],
    notice: Callable[[Document], None] = lambda document: None,
    rows: Callable[[Path], Iterator[tuple[str, Record]]] = records,
) -> Corpus:
    """Documents of files, checked, read anew at each iteration.

    Args:
        paths: The files in their order.
        document: Makes a document of a record; its second argument is ``FILE:LINE``.
        notice: Called with each document of the first pass.
        rows: The records of a file, with their places; JSON lines by default.

    Raises:
        InvalidInput: A line is no fit document, two have one id, or there is none.
    """
    files = tuple(paths)

    def read() -> Iterator[Document]:
        for path in files:
            for where, record in rows(path):
                made = document(record, where)
                try:
                    check_documents([made])
                except InvalidInput as error:
                    raise InvalidInput(f"{where}: {error}") from None
                yield made

    return Corpus(read, ", ".join(map(str, files[:3])) + (", …" if len(files) > 3 else ""), notice)
