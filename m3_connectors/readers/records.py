"""JSON Lines and CSV: one document a record."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from m3_connectors.documents import Document, check_documents
from m3_connectors.errors import InvalidInput
from m3_connectors.readers.fields import Fields

Skip = Callable[[int | None, str], None]
"""Called with the line number (None: the file) and the reason."""

_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,14})?", re.ASCII)
_LONGEST_CELL = 2**31 - 1
"""The csv module refuses cells over 128 KiB unless told otherwise."""


def read_jsonl(path: Path, name: str, fields: Fields, skip: Skip) -> Iterator[Document]:
    """Documents of a JSON Lines file, plain or ``.gz``.

    Args:
        path: The file.
        name: Prefix of the ids of records without one: ``name:line``.
        fields: Which fields are text and id.
        skip: Told of each record that is no document.
    """
    with _open(path) as file:
        for line, raw in _lines(file, skip):
            if not raw.strip():
                continue
            try:
                record = json.loads(raw.decode("utf-8-sig" if line == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                skip(line, f"not UTF-8 at byte {error.start} of the line")
            except json.JSONDecodeError as error:
                skip(line, f"not JSON: {error.msg} at character {error.pos + 1}")
            except (RecursionError, ValueError):  # absurd nesting; a whole number of thousands of digits
                skip(line, "not JSON that can be read: nested too deeply, or a number too long")
            else:
                if not isinstance(record, dict):
                    skip(line, f"a JSON {_json_type(record)}, not an object")
                else:
                    yield from _document(record, fields, f"{name}:{line}", line, skip)


def read_csv(path: Path, name: str, fields: Fields, skip: Skip) -> Iterator[Document]:
    """Documents of a CSV file (``.tsv``: tabs) with a header; arguments as ``read_jsonl``'s.

    Cells that are written as JSON numbers become numbers; empty ones are left out.
    """
    csv.field_size_limit(_LONGEST_CELL)
    separator = "\t" if ".tsv" in path.suffixes else ","
    # Undecodable bytes become lone surrogates, which only their own row is skipped for.
    with _open(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        rows = _rows(reader, skip)
        header = next(rows, (1, []))[1]
        if not header:
            return skip(None, "empty: a CSV file begins with a header")
        if len(set(header)) < len(header):
            return skip(None, f"two columns have one name: {header}")
        if fields.text not in header:
            return skip(None, f"no column {fields.text!r}, only {header}: name the one to read with --text")
        for line, cells in rows:
            if not cells:
                continue
            if len(cells) != len(header):
                skip(line, f"{len(cells)} cells, but the header has {len(header)}")
                continue
            record: dict[str, Any] = {}
            for column, cell in zip(header, cells, strict=True):
                if fields.is_text(column) or fields.is_id(column):
                    record[column] = cell
                elif cell:
                    record[column] = _number(cell)
            if any(_undecoded(cell) for cell in cells):
                skip(line, "not UTF-8")
            else:
                yield from _document(record, fields, f"{name}:{line}", line, skip)


def _document(
    record: Mapping[str, Any], fields: Fields, default_id: str, line: int, skip: Skip
) -> Iterator[Document]:
    try:
        document = fields.document(record, default_id)
        check_documents([document])
    except InvalidInput as error:
        skip(line, str(error).splitlines()[0].removeprefix("documents[0]").removeprefix("."))
    else:
        yield document


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _lines(file: IO[bytes], skip: Skip) -> Iterator[tuple[int, bytes]]:
    line = 0
    try:
        for line, raw in enumerate(file, 1):
            yield line, raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        skip(line + 1, f"the compressed file is damaged from here on: {error}")


def _rows(reader: Any, skip: Skip) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line that each begins at."""
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            skip(line, f"not CSV: {error}")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            return skip(line, f"the compressed file is damaged from here on: {error}")


def _number(cell: str) -> str | int | float:
    """A number, if it is written as one and reads back as it is written ("1.10" is not 1.1)."""
    if not _NUMBER.fullmatch(cell):
        return cell
    value = float(cell) if "." in cell else int(cell)
    return value if str(value) == cell else cell


def _undecoded(cell: str) -> bool:
    return not cell.isascii() and any("\udc80" <= letter <= "\udcff" for letter in cell)


def _json_type(value: object) -> str:
    if isinstance(value, list):
        return "array"
    return "null" if value is None else type(value).__name__.replace("str", "string")
