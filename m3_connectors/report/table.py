"""A table of a report and its forms: Markdown, JSON, and (in ``page``) HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

Cell = str | int | float | None
"""The content of a cell: a text, a count, a measurement, or nothing."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Heading, with the unit where there is one.
        decimals: Of measurements; counts have none.
        best: Its best cells are set in bold: the largest or the smallest of the column, or of the row
            (together with the row's other columns that say so).
    """

    name: str
    decimals: int = 3
    best: Callable[[Sequence[float]], float] | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under columns.

    Attributes:
        name: Key in JSON and anchor in the page.
        title: Heading.
        columns: Left to right.
        rows: Each as long as ``columns``.
        note: What a reader must know to read it; plain text.
        by_row: The best cells are those of each row instead of each column.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    by_row: bool = False

    def without_empty(self, *names: str) -> Table:
        """Return the table without those of the given columns that are empty in every row."""
        kept = [
            i
            for i, column in enumerate(self.columns)
            if column.name not in names or any(row[i] not in (None, "") for row in self.rows)
        ]
        return dataclasses.replace(
            self,
            columns=tuple(self.columns[i] for i in kept),
            rows=tuple(tuple(row[i] for i in kept) for row in self.rows),
        )

    def shown(self) -> list[list[tuple[str, bool]]]:
        """Return every cell as text, and whether it is among the best."""
        return [
            [
                (_text(cell, column.decimals), self._is_best(row, position))
                for position, (cell, column) in enumerate(zip(cells, self.columns, strict=True))
            ]
            for row, cells in enumerate(self.rows)
        ]

    def to_markdown(self) -> str:
        """Return the heading, the table and the note."""
        lines = [f"### {self.title}", "", "| " + " | ".join(_escape(c.name) for c in self.columns) + " |"]
        lines.append(
            "|" + "|".join("---:" if self.numeric(i) else "---" for i in range(len(self.columns))) + "|"
        )
        for row in self.shown():
            cells = (f"**{_escape(text)}**" if best else _escape(text) for text, best in row)
            lines.append(f"| {' | '.join(cells)} |")
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with unrounded numbers."""
        return {
            "name": self.name,
            "title": self.title,
            "columns": [column.name for column in self.columns],
            "rows": [list(row) for row in self.rows],
            "note": self.note,
        }

    def numeric(self, position: int) -> bool:
        """Whether a column holds numbers."""
        cells = [row[position] for row in self.rows if row[position] is not None]
        return bool(cells) and not any(isinstance(cell, str) for cell in cells)

    def _is_best(self, row: int, position: int) -> bool:
        best = self.columns[position].best
        cell = self.rows[row][position]
        if best is None or not isinstance(cell, int | float):
            return False
        rivals = (
            [value for value, column in zip(self.rows[row], self.columns, strict=True) if column.best is best]
            if self.by_row
            else [cells[position] for cells in self.rows]
        )
        numbers = [value for value in rivals if isinstance(value, int | float)]
        # Values that are displayed equally count as equal, because a reader could not see why only one is bold.
        decimals = self.columns[position].decimals
        return len(numbers) > 1 and _text(cell, decimals) == _text(best(numbers), decimals)


def _text(cell: Cell, decimals: int) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.{decimals}f}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
