"""Parallel sentences: two files whose lines belong together, a table, or records with two fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from m3_connectors.errors import InvalidInput
from m3_connectors.training_data.examples import Example, NotAnExample, Unusable, broken, text_of
from m3_connectors.training_data.lines import json_records, text_rows

KIND = "parallel"
_JSON = (".jsonl", ".ndjson")
_COMPRESSED = (".gz", ".zst")


@dataclasses.dataclass(frozen=True)
class Parallel:
    """Where the two sentences of a pair are.

    Attributes:
        files: Two files whose lines belong together; or one, with a pair per line: JSON Lines or TSV.
        fields: The two fields of JSON Lines, or the names of two columns in the first line of a TSV file; None for
            the first two columns of a TSV file without such a line.
        lang_q: The language of the first sentences; None to detect it.
        lang_p: The language of the second.
        both_ways: Whether each pair is also yielded with its sides exchanged.

    Raises:
        InvalidInput: The fields do not fit the files.
    """

    files: tuple[Path, ...]
    fields: tuple[str, str] | None = None
    lang_q: str | None = None
    lang_p: str | None = None
    both_ways: bool = False

    def __post_init__(self) -> None:
        if len(self.files) not in (1, 2):
            raise InvalidInput(
                f"{len(self.files)} files were given.\n"
                "  Give two files whose lines belong together, or one of JSON Lines or TSV."
            )
        if len(self.files) == 2 and self.fields is not None:
            raise InvalidInput(
                f"fields {','.join(self.fields)} have no effect with two files, whose lines are the sentences.\n"
                "  Omit them, or give one file of JSON Lines or TSV."
            )
        if len(self.files) == 1 and self.fields is None and _ending(self.files[0]) in _JSON:
            raise InvalidInput(
                f"{self.files[0]} is JSON Lines, and nothing says which two fields have the sentences.\n"
                "  Give their names, such as --fields source,target."
            )

    def __iter__(self) -> Iterator[Example | Unusable]:
        """Yield the pairs, and what is no pair.

        Raises:
            InvalidInput: Two files have different numbers of lines, so their lines do not belong together.
        """
        if len(self.files) == 2:
            rows = self._aligned(*self.files)
        elif _ending(self.files[0]) in _JSON:
            rows = self._records(self.files[0])
        else:
            rows = self._columns(self.files[0])
        for row in rows:
            if isinstance(row, Unusable):
                yield row
                continue
            place, first, second = row
            if not first.strip() or not second.strip():
                side = "first" if not first.strip() else "second"
                yield Unusable(place, "empty", f"the {side} sentence is empty")
                continue
            yield Example(first, (second,), place, KIND, lang_q=self.lang_q, lang_p=self.lang_p)
            if self.both_ways:
                yield Example(
                    second, (first,), f"{place} exchanged", KIND, lang_q=self.lang_p, lang_p=self.lang_q
                )

    def _aligned(self, first: Path, second: Path) -> Iterator[tuple[str, str, str] | Unusable]:
        counts = [sum(1 for _ in text_rows(path)) for path in (first, second)]
        if counts[0] != counts[1]:
            raise InvalidInput(
                f"{first} has {counts[0]:,} lines and {second} has {counts[1]:,}, so their lines do not belong "
                "together.\n  Give files that are aligned line by line."
            )
        for one, other in zip(text_rows(first), text_rows(second), strict=True):
            if isinstance(one, Unusable) or isinstance(other, Unusable):
                yield one if isinstance(one, Unusable) else other  # type: ignore[misc]
            else:
                yield one[0], one[1], other[1]

    def _records(self, path: Path) -> Iterator[tuple[str, str, str] | Unusable]:
        assert self.fields is not None
        for row in json_records(path):
            if isinstance(row, Unusable):
                yield row
                continue
            place, record = row
            try:
                yield place, text_of(record, self.fields[0]), text_of(record, self.fields[1])
            except NotAnExample as error:
                yield broken(place, str(error))

    def _columns(self, path: Path) -> Iterator[tuple[str, str, str] | Unusable]:
        columns: Sequence[int] | None = None if self.fields else (0, 1)
        for row in text_rows(path):
            if isinstance(row, Unusable):
                yield row
                continue
            place, line = row
            cells = line.split("\t")
            if columns is None:
                columns = self._named(cells, place)
            elif not line.strip():
                continue
            elif len(cells) <= max(columns):
                yield broken(
                    place,
                    f"it has {len(cells)} columns separated by tabs, at least {max(columns) + 1} are needed",
                )
            else:
                yield place, cells[columns[0]], cells[columns[1]]

    def _named(self, header: Sequence[str], place: str) -> tuple[int, int]:
        assert self.fields is not None
        for name in self.fields:
            if name not in header:
                raise InvalidInput(
                    f"{place} has no column {name!r}, only {', '.join(map(repr, header))}.\n"
                    "  Give two names of the first line, or omit --fields for the first two columns."
                )
        return header.index(self.fields[0]), header.index(self.fields[1])


def _ending(path: Path) -> str:
    name = path.name.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix
