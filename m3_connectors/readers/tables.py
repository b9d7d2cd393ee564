"""Read CSV and TSV: one document per row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TextIO

from m3_connectors.errors import InvalidInput
from m3_connectors.readers.columns import Columns
from m3_connectors.readers.csv_rows import Row, Rows
from m3_connectors.readers.encodings import UNDECODABLE, written
from m3_connectors.readers.fields import Fields
from m3_connectors.readers.inputs import Input
from m3_connectors.readers.lines import text_lines
from m3_connectors.readers.outcomes import Outcome, Skipped, outcome_of
from m3_connectors.readers.settings import ReadSettings

_DELIMITERS = (",", ";", "\t")
"""Possible delimiters of a CSV file; the one with which the header has a text column is used."""


def read_csv(file: Input, settings: ReadSettings) -> Iterator[Outcome]:
    """Yield the documents of a CSV file."""
    yield from _read(file, settings)


def read_tsv(file: Input, settings: ReadSettings) -> Iterator[Outcome]:
    """Yield the documents of a TSV file."""
    yield from _read(file, settings)


def column_names(file: Input, settings: ReadSettings) -> list[str]:
    """Return the columns of a CSV or TSV file.

    Raises:
        OSError, InvalidInput, MissingDependency: The file cannot be read.
    """
    with file.open_text(settings.codec) as text:
        return _table(file, settings).names(text)


def look_at_columns(file: Input, settings: ReadSettings) -> None:
    """Infer the types of the columns of a CSV or TSV file, as far as it can be read.

    Raises:
        OSError, InvalidInput: The file cannot be read, or not to its end.
    """
    with file.open_text(settings.codec) as text:
        _table(file, settings).look(text, settings.columns)


def _read(file: Input, settings: ReadSettings) -> Iterator[Outcome]:
    with file.open_text(settings.codec) as text:
        yield from _table(file, settings).read(text, file.name, settings.columns)


def _table(file: Input, settings: ReadSettings) -> Table:
    return Table(settings.fields, settings.delimiter, is_tsv=file.ending == ".tsv")


class Table:
    """A CSV or TSV file.

    Args:
        fields: The columns of text and id.
        delimiter: The delimiter; None detects it.
        is_tsv: Whether the file is TSV: cells are separated by tabs and never quoted, unless a delimiter is
            given.
    """

    def __init__(self, fields: Fields, delimiter: str | None, *, is_tsv: bool) -> None:
        self._fields = fields
        self._delimiter = delimiter
        self._is_tsv = is_tsv

    def look(self, stream: TextIO, columns: Columns) -> None:
        """Infer the types of the columns that become metadata."""
        for row in self._rows(stream):
            if not isinstance(row, Skipped):
                for column, cell in row[1].items():
                    if not self._is_text(column):
                        columns.look_at(column, cell)

    def read(self, stream: TextIO, name: str, columns: Columns) -> Iterator[Outcome]:
        """Yield the documents; empty metadata cells are omitted.

        Args:
            stream: The text of the file with its original line ends; undecodable bytes match ``UNDECODABLE``.
            name: The prefix of the ids of rows without an id: ``name:line``.
            columns: The types of the columns, inferred by ``look``.
        """
        for row in self._rows(stream):
            if isinstance(row, Skipped):
                yield row
                continue
            line, cells = row
            record: dict[str, Any] = {}
            for column, cell in cells.items():
                if self._is_text(column):
                    record[column] = cell
                elif cell:
                    record[column] = columns.value(column, cell)
            yield outcome_of(record, self._fields, f"{name}:{line}", line)

    def names(self, stream: TextIO) -> list[str]:
        """Return the names of the columns; none if the header cannot be read."""
        rows, delimiter = self._begun(stream)
        header = rows.first(delimiter)
        return _names(header.cells) if isinstance(header, Row) else []

    def _is_text(self, column: str) -> bool:
        return self._fields.is_text(column) or self._fields.is_id(column)

    def _rows(self, stream: TextIO) -> Iterator[tuple[int, dict[str, str]] | Skipped]:
        """Yield each row as its first line number and its cells by column."""
        codec = written(stream.encoding)
        rows, delimiter = self._begun(stream)
        header = rows.first(delimiter)
        if header is None:
            yield Skipped(None, "empty: a CSV file must begin with a header")
            return
        if isinstance(header, Skipped):
            yield Skipped(None, f"the header, line {header.line}: {header.reason}")
            return
        names = _names(header.cells)
        unnamed_end = len(names)
        while unnamed_end and not header.cells[unnamed_end - 1]:
            unnamed_end -= 1
        problem = self._problem(names, codec)
        if problem:
            yield Skipped(None, problem)
            return
        for row in rows.read(delimiter):
            if isinstance(row, Skipped):
                yield row
            elif row.cells and row.line != header.line:
                yield _check_row(row, names, unnamed_end, codec)

    def _begun(self, stream: TextIO) -> tuple[Rows, str | None]:
        """Return the rows from the header on, and their delimiter; None for tabs without quoting."""
        rows = Rows(text_lines(stream))
        if self._is_tsv:
            return rows, self._delimiter
        declared = rows.declared_delimiter()
        return rows, self._delimiter or declared or self._found_delimiter(rows)

    def _found_delimiter(self, rows: Rows) -> str:
        headers = {delimiter: rows.first(delimiter) for delimiter in _DELIMITERS}
        cells = {d: row.cells for d, row in headers.items() if isinstance(row, Row)}
        has_text = [d for d, names in cells.items() if not set(self._fields.texts).isdisjoint(names)]
        if (
            has_text or "," not in cells
        ):  # or the quotes of the header are wrong, which is reported for the usual delimiter
            return has_text[0] if has_text else ","
        # Without a text column, use the delimiter that gives most columns, so that the message can list them.
        return max(cells, key=lambda delimiter: len(cells[delimiter]))

    def _problem(self, names: list[str], codec: str) -> str | None:
        if any(map(UNDECODABLE.search, names)):
            return f"the header is not {codec}: give the encoding with --encoding"
        if len(set(names)) < len(names):
            return f"two columns have the same name: {names}"
        try:
            self._fields.check(names)
        except InvalidInput as error:
            return str(error)
        return None


def _names(header: list[str]) -> list[str]:
    return [name or f"column_{number}" for number, name in enumerate(header, 1)]


def _check_row(row: Row, names: list[str], named: int, codec: str) -> tuple[int, dict[str, str]] | Skipped:
    """Return a row's cells by column if it has the header's columns; other cells must be empty."""
    lines = f", lines {row.line} to {row.last_line}" if row.last_line > row.line else ""
    if any(map(UNDECODABLE.search, row.cells)):
        return Skipped(row.line, f"not {codec}{lines}")
    if len(row.cells) < named or any(row.cells[len(names) :]):
        return Skipped(row.line, f"{len(row.cells)} cells{lines}, but the header has {len(names)}")
    return row.line, dict(zip(names, row.cells, strict=False))
