"""Find ids that occurred before, and where."""

from __future__ import annotations

import os
import sqlite3
from types import TracebackType

from m3_connectors.readers.inputs import Input, Source
from m3_connectors.readers.outcomes import Found
from m3_connectors.readers.urls import Url, source_of


class Repeats:
    """Stores the position of each id in a temporary database, so that memory does not grow with the ids.

    This is a context manager.
    """

    def __init__(self) -> None:
        # An empty name means a database in memory that moves to a temporary file when it is large. Documents
        # may be read from a thread other than the one that created it.
        self._places = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._places.execute("PRAGMA journal_mode = OFF")
        self._places.execute("PRAGMA synchronous = OFF")
        self._places.execute(
            "CREATE TABLE places (id TEXT PRIMARY KEY, source BLOB, file BLOB, line INTEGER) WITHOUT ROWID"
        )
        self._places.execute("BEGIN")

    def replaced(self, input: Input, found: Found) -> tuple[Source, Source, int | None] | None:
        """Record a document's position; return source, file and line of an earlier one with its id, or None.

        The same record of the same file, read twice, does not count as a repeat.
        """
        id = found.document.id
        query = self._places.execute("SELECT source, file, line FROM places WHERE id = ?", (id,))
        before = query.fetchone()
        here = (id, os.fsencode(str(input.source)), os.fsencode(str(input.path)), found.line)
        self._places.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?)", here)
        if before is None:
            return None
        source, file = source_of(os.fsdecode(before[0])), source_of(os.fsdecode(before[1]))
        if before[2] == found.line and _same(file, input.path):
            return None
        return source, file, before[2]

    def __enter__(self) -> Repeats:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._places.close()


def _same(one: Source, other: Source) -> bool:
    if isinstance(one, Url) or isinstance(other, Url):
        return str(one) == str(other)
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False
