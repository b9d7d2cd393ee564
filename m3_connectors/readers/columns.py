"""Infer the type of a CSV column: integer, number or text, the same in all rows."""

from __future__ import annotations

import enum
import re

EXACT_INTEGER = 2**53
"""The largest integer that every store represents exactly; longer ones are kept as text, as identifiers."""

_DIGITS = re.compile(r"-?[0-9]{1,16}", re.ASCII)
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?", re.ASCII)


class ColumnType(enum.IntEnum):
    """The types of a column, from the narrowest to the widest."""

    INTEGER = 0
    NUMBER = 1
    TEXT = 2


class Columns:
    """Column types, inferred in a first pass over all cells."""

    def __init__(self) -> None:
        self._types: dict[str, ColumnType] = {}
        self._with_numbers: set[str] = set()
        self._first_texts: dict[str, str] = {}

    def look_at(self, column: str, cell: str) -> None:
        """Widen a column's type so that it can represent a cell; empty cells are ignored."""
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
        """The text columns that contain numbers, each with its first cell that is not a number."""
        return {column: cell for column, cell in self._first_texts.items() if column in self._with_numbers}

    def value(self, column: str, cell: str) -> str | int | float:
        """Return a cell as its column's type, or as text if it does not fit, as in a changed file."""
        type = self._types.get(column, ColumnType.TEXT)
        if type == ColumnType.TEXT or _type_of(cell) > type:
            return cell
        return int(cell) if type == ColumnType.INTEGER else float(cell)


def _type_of(cell: str) -> ColumnType:
    """Return a numeric type only if the number converts back to the same text, unlike "007" or "1e3"."""
    if _DIGITS.fullmatch(cell):
        number = int(cell)
        exact = str(number) == cell and abs(number) <= EXACT_INTEGER
        return ColumnType.INTEGER if exact else ColumnType.TEXT
    if _DECIMAL.fullmatch(cell) and repr(float(cell)) == cell:
        return ColumnType.NUMBER
    return ColumnType.TEXT
