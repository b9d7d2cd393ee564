"""Read rows of CSV and TSV with their line numbers."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections import deque
from collections.abc import Iterator

from m3_connectors.readers.lines import TOO_LONG
from m3_connectors.readers.outcomes import Skipped

MAX_ROW_CHARACTERS = 8 * 2**20
"""The limit for a row of several lines; in a longer one, a quote is assumed to be unclosed."""

_LONGEST_CELL = 2**31 - 1
"""The limit for a cell; the default of the csv module is 128 KiB."""

_DELIMITER_LINE = re.compile(r'"?sep=([^"\r\n])"?\r?\n?', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Row:
    """The cells of a row with its first and last line number; a blank line has no cells."""

    line: int
    last_line: int
    cells: list[str]


class Rows:
    """The rows of a stream of lines.

    Args:
        lines: Lines with their line ends; None stands for a line that is too long.
    """

    def __init__(self, lines: Iterator[str | None]) -> None:
        self._lines = _Lines(lines)
        self._doubtful_until = 0
        """The last line of a row with a wrong quote; the rows up to it are read, but may be wrong."""

    def declared_delimiter(self) -> str | None:
        """Return the delimiter of a first line such as ``sep=;`` (used by Excel), and consume that line."""
        try:
            declared = _DELIMITER_LINE.fullmatch(next(self._lines, ""))
        except _TooLong:
            declared = None
        if declared is None:
            self._lines.again()
            return None
        self._lines.forget()
        return declared[1]

    def first(self, delimiter: str | None) -> Row | Skipped | None:
        """Return the first row that is not blank, without consuming it."""
        row = next((row for row in self.read(delimiter) if isinstance(row, Skipped) or row.cells), None)
        self._lines.again()
        return row

    def read(self, delimiter: str | None) -> Iterator[Row | Skipped]:
        """Yield the rows.

        Cells may be quoted, as in RFC 4180. If a quote is closed before the end of its cell, or never, the
        row in which it opens is skipped, and the lines after the first line of that row are read as rows.
        Such a row is skipped too if it has a quote in an unquoted cell, because it may be the end of a cell
        of several lines.

        Args:
            delimiter: The delimiter; None means tabs without quoting.
        """
        return self._tab_separated() if delimiter is None else self._quoted(delimiter)

    def _tab_separated(self) -> Iterator[Row | Skipped]:
        while True:
            try:
                for line in self._lines:
                    text = line.removesuffix("\n").removesuffix("\r")
                    yield Row(self._lines.first, self._lines.last, text.split("\t") if text else [])
                    self._lines.forget()
                return
            except _TooLong:
                yield Skipped(self._lines.first, TOO_LONG)
                self._lines.forget()

    def _quoted(self, delimiter: str) -> Iterator[Row | Skipped]:
        csv.field_size_limit(_LONGEST_CELL)
        while True:
            try:
                for cells in csv.reader(self._lines, delimiter=delimiter, strict=True):
                    if self._lines.first <= self._doubtful_until and not _well_formed(
                        self._lines.held, delimiter
                    ):
                        yield Skipped(
                            self._lines.first, "a quote in an unquoted cell, after a row with a wrong quote"
                        )
                    else:
                        yield Row(self._lines.first, self._lines.last, cells)
                    self._lines.forget()
                return
            except csv.Error as error:
                never = "end of data" in str(error)
                yield self._wrong("is never closed" if never else "is closed before the end of its cell")
            except _TooLong:
                one_line = self._lines.first == self._lines.last
                yield Skipped(self._lines.first, TOO_LONG) if one_line else self._wrong("is not closed")
            self._lines.all_but_first_again()

    def _wrong(self, what: str) -> Skipped:
        first, last = self._lines.first, self._lines.last
        if first == last:
            return Skipped(first, f'a quote {what} (inside a quoted cell, write "" for a quote)')
        self._doubtful_until = max(last, self._doubtful_until)
        lines = f"line {last} is" if last == first + 1 else f"lines {first + 1} to {last} are"
        where = f", on line {last}" if "before" in what else ""
        return Skipped(first, f"a quote that opens in this row {what}{where}; {lines} read as rows")


def _well_formed(text: str, delimiter: str) -> bool:
    """Return whether quotes occur only around cells, and doubled inside them."""
    cell = rf'(?:"[^"]*(?:""[^"]*)*"|[^"{re.escape(delimiter)}]*)'
    return re.fullmatch(rf"{cell}(?:{re.escape(delimiter)}{cell})*", text.rstrip("\r\n")) is not None


class _TooLong(Exception):
    """A line, or a row of several lines, exceeds the memory limit."""


class _Lines:
    """Lines that are buffered until ``forget``, so that they can be read again."""

    def __init__(self, lines: Iterator[str | None]) -> None:
        self.last = 0
        """The number of the last line that was read."""
        self._lines = lines
        self._held: list[str | None] = []
        self._held_characters = 0
        self._again: deque[str | None] = deque()

    @property
    def first(self) -> int:
        """The number of the first buffered line."""
        return self.last - len(self._held) + 1

    @property
    def held(self) -> str:
        """The text of the buffered lines."""
        return "".join(line or "" for line in self._held)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.last += 1
        self._held.append(line)
        self._held_characters += len(line or "")
        if line is None or (len(self._held) > 1 and self._held_characters > MAX_ROW_CHARACTERS):
            raise _TooLong
        return line

    def forget(self) -> None:
        self._held.clear()
        self._held_characters = 0

    def again(self) -> None:
        """Push the buffered lines back, so that they are read again."""
        self.last -= len(self._held)
        self._again.extendleft(reversed(self._held))
        self.forget()

    def all_but_first_again(self) -> None:
        self.last -= len(self._held) - 1
        self._again.extendleft(reversed(self._held[1:]))
        self.forget()
