"""What type a column of a CSV file is of: whole numbers, numbers or text, in all rows the same."""

from __future__ import annotations

import enum
import re

EXACT_INTEGER = 2**53
"""Whole numbers up to here are the same in every store; longer ones are identifiers, kept as they are written."""

_DIGITS = re.compile(r"-?[0-9]{1,16}", re.ASCII)
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?", re.ASCII)


class ColumnType(enum.IntEnum):
    """From the narrowest to the widest."""

    INTEGER = 0
    NUMBER = 1
    TEXT = 2


class Columns:
    """Column types, found by looking at every cell once, before any is read for good."""

    def __init__(self) -> None:
        self._types: dict[str, ColumnType] = {}
        self._with_numbers: set[str] = set()
        self._first_texts: dict[str, str] = {}

    def look_at(self, column: str, cell: str) -> None:
        """Widen a column's type so that it holds a cell; an empty one says nothing."""
        if not cell or (column in self._first_texts and column in self._with_numbers):
            return
        type = _type_of(cell)
        self._types[column] = max(self._types.get(column, type), type)
        if type == ColumnType.TEXT:
            self._first_texts.setdefault(column, cell)
        else:
            self._with_numbers.add(column)

    @property
    def mixed(self) -> dict[str, str]:
        """The columns that are text though they have numbers, each with the first cell that is none."""
        return {column: cell for column, cell in self._first_texts.items() if column in self._with_numbers}

    def value(self, column: str, cell: str) -> str | int | float:
        """A cell as its column's type; text if it is not of that type, as when the file has changed since."""
        type = self._types.get(column, ColumnType.TEXT)
        if type == ColumnType.TEXT or _type_of(cell) > type:
            return cell
        return int(cell) if type == ColumnType.INTEGER else float(cell)


def _type_of(cell: str) -> ColumnType:
    """A number is one that reads back as it is written: "007", "1.10" and "1e3" would lose something."""
    if _DIGITS.fullmatch(cell):
        number = int(cell)
        exact = str(number) == cell and abs(number) <= EXACT_INTEGER
        return ColumnType.INTEGER if exact else ColumnType.TEXT
    if _DECIMAL.fullmatch(cell) and repr(float(cell)) == cell:
        return ColumnType.NUMBER
    return ColumnType.TEXT
