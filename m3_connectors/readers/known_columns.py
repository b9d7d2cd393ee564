"""Whether the columns that the caller named are there, before anything is stored."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import columnar, tables
from m3_connectors.readers.fields import Fields, nearest
from m3_connectors.readers.formats import FORMATS, is_records
from m3_connectors.readers.inputs import Input, is_stream
from m3_connectors.readers.settings import ReadSettings

_TABLES = {
    ".csv": tables.column_names,
    ".tsv": tables.column_names,
    ".parquet": columnar.column_names,
    ".arrow": columnar.column_names,
    ".feather": columnar.column_names,
}
_LOOKED_AT = 1000


class KnownColumns:
    """Collects the columns of files until all that the caller named are found.

    Databases and datasets check theirs themselves: their columns are known once the query is run.
    """

    def __init__(self, settings: ReadSettings) -> None:
        self._settings = settings
        self._wanted = dict(settings.fields.chosen)
        self._known: dict[str, None] = {}
        self._is_complete = True
        """Whether the columns of all records are known, and not only those of the first ones."""

    def look(self, file: Input) -> None:
        """Note the columns of a file; what cannot be read is reported when it is read."""
        if not self._wanted.keys() - self._known or not _has_columns(file):
            return
        try:
            self._known |= dict.fromkeys(self._names(file))
        except Exception:  # noqa: BLE001 (a reader of another author may raise anything)
            self._is_complete = False

    def check(self) -> Iterator[str]:
        """Yield what the first records lack; they may be the exception.

        Raises:
            InvalidInput: No file has a column.
        """
        for column, option in self._wanted.items():
            if column in self._known or not self._known:
                continue
            near = nearest(column, self._known)
            if self._is_complete or column in (self._settings.fields.id, self._settings.fields.text):
                meant = f"Did you mean {near!r}? " if near else ""
                raise InvalidInput(
                    f"no source has a column {column!r}, which {option} or --mapping names.\n"
                    f"  {meant}The columns are {', '.join(map(repr, self._known))}."
                )
            meant = f"; did you mean {near!r}?" if near else ""
            yield f"the first records have no field {column!r}, which {option} or --mapping names{meant}"

    def _names(self, file: Input) -> Iterable[str]:
        if file.ending in _TABLES:
            return _TABLES[file.ending](file, self._settings)
        if file.reader or is_stream(file.path):
            self._is_complete = False
            return ()
        seen = _Recording()
        records = FORMATS[file.ending](file, dataclasses.replace(self._settings, fields=seen))
        looked_at = sum(1 for _ in itertools.islice(records, _LOOKED_AT))
        self._is_complete = self._is_complete and looked_at < _LOOKED_AT
        return seen.names


def _has_columns(file: Input) -> bool:
    return bool(file.reader) or (is_records(file.path, file.ending) and file.ending != ".pdf")


@dataclasses.dataclass(frozen=True)
class _Recording(Fields):
    """Notes the fields of records."""

    names: dict[str, None] = dataclasses.field(default_factory=dict)

    def document(self, record: Mapping[str, Any], default_id: str) -> Document:
        nested = record.get("metadata")
        self.names.update(dict.fromkeys([*record, *(nested if isinstance(nested, Mapping) else ())]))
        return Document(default_id, "")
