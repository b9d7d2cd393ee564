"""Lines of text files, plain or ``.gz``, as JSON objects or cells; every error names the file and the line.

A measure over a partly read file would be wrong without any sign of it, so a malformed line is an error.
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
    """Return the file of this name, plain or compressed.

    Raises:
        InvalidInput: Neither exists.
    """
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    raise InvalidInput(
        f"{directory} has neither {name} nor {name}.gz.\n  Add the file; docs/datasets.md describes it."
    )


def records(path: Path, member: str | None = None) -> Iterator[tuple[str, Record]]:
    """Yield the JSON objects of a file, one per line, with ``FILE:LINE`` for errors (see ``numbered_lines``).

    Raises:
        InvalidInput: A line is not a JSON object.
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
    """Yield the cells of each row of a tab-separated file, with ``FILE:LINE`` for errors.

    Args:
        path: The file.
        columns: The names of its columns, for errors.

    Raises:
        InvalidInput: A row has a different number of cells.
    """
    for line, raw in numbered_lines(path):
        row = raw.rstrip("\r\n").split("\t")
        if len(row) != len(columns):
            raise InvalidInput(f"{path}:{line}: {raw.strip()!r} is not '{' TAB '.join(columns)}'.{_FIX}")
        yield f"{path}:{line}", row


def whole_number(text: str, where: str, what: str) -> int:
    """Return the integer in a text, such as a grade.

    Raises:
        InvalidInput: The text is not an integer.
    """
    try:
        return int(text)
    except ValueError:
        raise InvalidInput(f"{where}: {what} is {text!r}; it must be an integer.{_FIX}") from None


def string(record: Record, field: str, where: str) -> str:
    """Return a field that must be a string.

    Raises:
        InvalidInput: It is missing, not a string, or not valid Unicode (JSON can contain a lone surrogate).
    """
    value = record.get(field)
    if not isinstance(value, str):
        raise InvalidInput(f"{where}: {field} is {type(value).__name__}; it must be a string.{_FIX}")
    check_unicode(value, f"{where}: {field}")
    return value


def as_id(value: object, where: str, what: str) -> str:
    """Return an id, which is a string or an integer in JSON, as a string.

    Raises:
        InvalidInput: It has another type, or is not valid Unicode.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidInput(
            f"{where}: {what} is {type(value).__name__}; an id must be a string or an integer.{_FIX}"
        )
    check_unicode(str(value), f"{where}: {what}")
    return str(value)


def identifier(record: Record, fields: Sequence[str], where: str) -> str:
    """Return the id of a record from the first of these fields that it has.

    Raises:
        InvalidInput: It has none of the fields, or the value is not a string or an integer.
    """
    value = next((record[field] for field in fields if field in record), None)
    return as_id(value, where, fields[0])


def document_with_title(record: Record, where: str, ids: Sequence[str]) -> Document:
    """Return the document of a record; title and metadata are optional.

    Raises:
        InvalidInput: A field has the wrong type.
    """
    title = record.get("title") or ""
    if not isinstance(title, str):
        raise InvalidInput(f"{where}: title is {type(title).__name__}; it must be a string.{_FIX}")
    text = titled(title, string(record, "text", where))
    return Document(identifier(record, ids, where), text, record.get("metadata") or {})


def titled(title: str, text: str) -> str:
    """Return a passage in the form of the paper's scripts: the title, if there is one, is on a separate line."""
    return f"{title}\n{text}" if title else text


def read_corpus(
    paths: Iterable[Path],
    document: Callable[[Record, str], Document],
    notice: Callable[[Document], None] = lambda document: None,
    rows: Callable[[Path], Iterator[tuple[str, Record]]] = records,
) -> Corpus:
    """Return the checked documents of files, which are read again at each iteration.

    Args:
        paths: The files in their order.
        document: Converts a record to a document; its second argument is ``FILE:LINE``.
        notice: Called with each document of the first pass.
        rows: The records of a file, with their places; JSON lines by default.

    Raises:
        InvalidInput: A line is not a valid document, two documents have the same id, or there is no document.
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
