"""The documents that later ones are compared with, in a temporary database: memory does not grow with them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from m3_connectors.curation.words import normalised
from m3_connectors.errors import InvalidInput

_log = logging.getLogger(__name__)

_CACHE_KIB = 32 * 1024
_HASH_BYTES = 16
_TABLES = (
    "CREATE TABLE originals (number INTEGER PRIMARY KEY, id TEXT UNIQUE, duplicate TEXT, signature BLOB)",
    "CREATE TABLE texts (hash BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID",
)


def text_hash(text: str) -> bytes:
    """Return a hash of the normalised text: 16 bytes, so that two texts with the same hash do not occur."""
    return hashlib.blake2b(normalised(text).encode(), digest_size=_HASH_BYTES).digest()


@dataclasses.dataclass(frozen=True)
class Original:
    """A kept document to which a later one is compared.

    Attributes:
        number: Its number; numbers rise in the order of the documents.
        id: Its id.
        similarity: How similar the later text is to its own; 1 if they are the same.
    """

    number: int
    id: str
    similarity: float = 1.0


class Originals:
    """Kept documents, found by their texts; a context manager.

    Args:
        tables: The definitions of further tables by which a stage finds them.
    """

    def __init__(self, *tables: str) -> None:
        # An empty name means a database in memory that moves to a temporary file when it is larger than its cache.
        # Documents may be read from a thread other than the one that created it.
        self._entered = 0
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            f"PRAGMA cache_size = -{_CACHE_KIB}",
            *_TABLES,
            *tables,
            "BEGIN",
        ):
            self._db.execute(statement)

    def of_text(self, hash: bytes) -> Original | None:
        """Return the kept document that has a text."""
        query = "SELECT number, id FROM texts JOIN originals USING (number) WHERE hash = ?"
        rows = self.run(query, (hash,))
        return Original(*rows[0]) if rows else None

    def keep(self, id: str, hash: bytes, signature: bytes = b"") -> int:
        """Enter a document that is kept, and return its number. An earlier one with its id is replaced by it."""
        rows = self.run("SELECT duplicate FROM originals WHERE id = ?", (id,))
        if rows:
            self.run("DELETE FROM originals WHERE id = ?", (id,))
        if rows and rows[0][0] is not None:
            _log.warning(
                f"the id {id!r} occurs again with another text; {rows[0][0]!r} was dropped as a duplicate of the text "
                "that is now replaced. Give the documents different ids to keep both"
            )
        number, self._entered = self._entered, self._entered + 1
        self.run("INSERT INTO originals (number, id, signature) VALUES (?, ?, ?)", (number, id, signature))
        self.run("INSERT OR REPLACE INTO texts VALUES (?, ?)", (hash, number))
        return number

    def note_duplicate(self, original: Original, id: str) -> None:
        """Note that a document was dropped because of a kept one."""
        self.run(
            "UPDATE originals SET duplicate = ? WHERE number = ? AND duplicate IS NULL", (id, original.number)
        )

    def run(self, statement: str, values: Sequence[object]) -> list[Any]:
        """Run one statement and return its rows."""
        with self._usable():
            return self._db.execute(statement, values).fetchall()

    def run_many(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        """Run one statement for each row of values."""
        with self._usable():
            self._db.executemany(statement, rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise InvalidInput(
                f"the temporary database of duplicates in {tempfile.gettempdir()} cannot be used: {error}.\n"
                "  Free space there, or set SQLITE_TMPDIR to a folder with space."
            ) from error
