"""The ledger of a collection: which documents the store has acknowledged, of which content, model and chunking.

A version of a document is entered before its first chunk is written, and acknowledged after the store has acknowledged
its last: whatever is killed in between, the next run writes the document again, and knows every id that may be left of
it. SQLite in WAL mode with full synchronisation: what is acknowledged here survives a crash of the machine.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import platformdirs

from m3_connectors.backends.registry import store_for
from m3_connectors.backends.urls import redacted
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.ingestion.chunking import chunk_ids

_FORMAT = 2
_TABLES = """
CREATE TABLE IF NOT EXISTS documents (
    id TEXT NOT NULL,
    chunks INTEGER NOT NULL,  -- 0: stored whole, under its own id
    source TEXT NOT NULL,
    file TEXT NOT NULL,
    content TEXT NOT NULL,
    model TEXT NOT NULL,
    chunking TEXT NOT NULL,
    stored TEXT NOT NULL DEFAULT '',  -- the hash of its chunks
    acknowledged REAL,        -- NULL: it may be stored, partly or not at all
    cut TEXT NOT NULL DEFAULT '',  -- the chunks of which only the beginning was encoded, as JSON
    PRIMARY KEY (id, chunks)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS documents_by_source ON documents (source);
CREATE TABLE IF NOT EXISTS collection (url TEXT NOT NULL, name TEXT NOT NULL)
"""
_TEMPORARY = """
CREATE TEMP TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TEMP TABLE stored (id TEXT PRIMARY KEY, hash TEXT NOT NULL) WITHOUT ROWID;
"""
_VOIDED = "UPDATE documents SET acknowledged = NULL, content = ''"
_LONGEST_WAIT_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Version:
    """One version of a document.

    Attributes:
        id: The id of the document.
        chunks: Under how many chunks it is stored; 0 if it is stored whole.
        source: The source that it comes from.
        file: The file of that source.
        content: A hash of its text and metadata.
        model: The fingerprint of the model that encodes it.
        chunking: How it is cut.
        stored: The ``stored_hash`` of its chunks; empty if unknown.
        cut: The chunks of which only the beginning is searchable: a JSON array of ``[position, tokens, kept tokens]``,
            or an empty text if there are none. It is known when it is stored.
    """

    id: str
    chunks: int
    source: str
    file: str
    content: str
    model: str
    chunking: str
    cut: str = ""
    stored: str = ""

    def __post_init__(self) -> None:
        if not self.stored and not self.chunks and self.content:
            object.__setattr__(self, "stored", combined([_piece(self.id, self.content)]))

    @property
    def what(self) -> tuple[str, str, str]:
        """Content, model and chunking: storing a version in place of one with the same changes nothing."""
        return self.content, self.model, self.chunking

    @property
    def stored_ids(self) -> list[str]:
        """The ids under which it is stored."""
        return chunk_ids(self.id, self.chunks)


_COLUMNS = ", ".join(field.name for field in dataclasses.fields(Version))
_VALUES = ", ".join("?" for _ in dataclasses.fields(Version))


def content_hash(document: Document) -> str:
    """Return a hash of a document's text and metadata."""
    metadata = json.dumps(document.metadata, sort_keys=True, ensure_ascii=False, default=dict)
    return hashlib.sha256(json.dumps([document.text, metadata]).encode()).hexdigest()


def stored_hash(documents: Iterable[Document]) -> str:
    """Return a hash of the documents under which one is stored, which does not depend on their order."""
    return combined(map(piece_hash, documents))


def piece_hash(document: Document) -> str:
    """Return what one stored document adds to a ``stored_hash``."""
    return _piece(document.id, content_hash(document))


def combined(pieces: Iterable[str]) -> str:
    """Return the ``stored_hash`` of documents, given their ``piece_hash``."""
    return f"{sum(int(piece, 16) for piece in pieces) % 2**128:032x}"


def _piece(id: str, content: str) -> str:
    return hashlib.sha256(f"{content}{id}".encode()).hexdigest()[:32]


def ledger_path(url: str, collection: str) -> Path:
    """Return where the ledger of a collection is on this machine.

    The same collection, given by another relative path or with other credentials, has the same ledger.

    Raises:
        InvalidInput: The URL names no store.
    """
    where = _identity(url)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", collection)
    key = hashlib.sha256(f"{where}\n{collection}".encode()).hexdigest()[:16]
    return platformdirs.user_state_path("m3-connectors") / "ledgers" / f"{name}-{key}.sqlite"


def _identity(url: str) -> str:
    store, url = store_for(url)
    scheme, _, rest = url.partition(":")
    if store.takes_path and not rest.startswith("//"):
        return f"{scheme}:{Path(rest).expanduser().resolve()}"
    return redacted(url).rstrip("/")


class Ledger:
    """An open ledger; a context manager.

    Args:
        path: The file, which is created with its folder if it does not exist; None keeps the ledger in memory, for a
            collection that is discarded as well.
        url: The store, which the file names for people who find it.
        collection: The name of the collection.

    Raises:
        InvalidInput: The file cannot be used; the message says why. The methods raise it too.
    """

    def __init__(self, path: Path | None, url: str = "", collection: str = "") -> None:
        self.path = path
        with self._usable():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            # Ids of the store are noted in the thread of the index (``note_stored``), while this one waits, and an
            # AsyncIndex is filled in a thread.
            self._db = sqlite3.connect(
                path or ":memory:",
                isolation_level=None,
                check_same_thread=False,
                timeout=_LONGEST_WAIT_SECONDS,
            )
            _use_wal(self._db)
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_TEMPORARY)
        with self._transaction():  # another run may open a new ledger at the same moment
            (format,) = self._db.execute("PRAGMA user_version").fetchone()
            if format not in (0, 1, _FORMAT):
                raise InvalidInput(
                    f"the ledger {path} was written by another version of m3 (format {format}).\n"
                    "  Use that version, or delete the file: everything is then encoded again."
                )
            for statement in _TABLES.split(";\n"):
                self._db.execute(statement)
            # Ledgers of earlier versions do not know what is stored, nor what was truncated.
            columns = {column[1] for column in self._db.execute("PRAGMA table_info(documents)")}
            for name in ("stored", "cut"):
                if name not in columns:
                    self._db.execute(f"ALTER TABLE documents ADD COLUMN {name} TEXT NOT NULL DEFAULT ''")
            self._db.execute(f"PRAGMA user_version = {_FORMAT}")
            if not self._db.execute("SELECT count(*) FROM collection").fetchone()[0]:
                where = (redacted(url), collection)
                self._db.execute("INSERT INTO collection VALUES (?, ?)", where)

    def look_up(self, ids: Sequence[str]) -> dict[str, Version | None]:
        """Return those of the ids that the ledger knows, with the version that the store holds.

        It is None if the store may hold several versions of the document, a part of one, or none.
        """
        query = (
            f"SELECT acknowledged, {_COLUMNS} FROM documents WHERE id IN ({_marks(ids, '?')}) "
            "ORDER BY acknowledged"  # NULL comes first
        )
        with self._usable():
            rows = self._db.execute(query, ids).fetchall()
        return {row[1]: None if row[0] is None else Version(*row[1:]) for row in rows}

    def begin(self, versions: Iterable[Version]) -> None:
        """Enter versions before the first of their chunks is written.

        Earlier versions no longer count as stored, and neither do other documents under the same ids: ``a#0``, for
        example, may have been stored whole before ``a`` is cut.
        """
        with self._transaction():
            for version in versions:
                self._void(version.id)
                self._void_others(version)
                self._enter(version)

    def left_over(self, version: Version) -> list[str]:
        """Return the ids that earlier versions of a document may have left in the store."""
        with self._usable():
            rows = self._db.execute("SELECT chunks FROM documents WHERE id = ?", (version.id,)).fetchall()
            earlier = dict.fromkeys(id for (chunks,) in rows for id in chunk_ids(version.id, chunks))
            for id in version.stored_ids:
                earlier.pop(id, None)
            return [id for id in earlier if not self._claimed(id, version.id)]

    def acknowledge(self, versions: Iterable[Version]) -> None:
        """Note that the store holds versions, and nothing of earlier ones.

        If another run has begun to write the same document since ``begin``, nobody knows which version was written
        last: neither is acknowledged, and the next run writes the document again.
        """
        now = time.time()
        with self._transaction():
            for version in versions:
                key = (version.id, version.chunks)
                own = self._db.execute(
                    "UPDATE documents SET acknowledged = ?, cut = ? "
                    "WHERE id = ? AND chunks = ? AND content = ? AND model = ? AND chunking = ?",
                    (now, version.cut, *key, *version.what),
                )
                if own.rowcount:
                    self._db.execute("DELETE FROM documents WHERE id = ? AND chunks != ?", key)
                else:
                    self._void(version.id)

    def relocate(self, versions: Iterable[Version]) -> None:
        """Note that unchanged documents come from another source or file now."""
        where = [(version.source, version.file, version.id) for version in versions]
        if where:
            with self._transaction():
                self._db.executemany("UPDATE documents SET source = ?, file = ? WHERE id = ?", where)

    def begin_reading(self) -> None:
        """Forget which documents an earlier run has read."""
        with self._usable():
            self._db.execute("DELETE FROM temp.seen")

    def see(self, ids: Sequence[str]) -> list[str]:
        """Note that this run has read documents; return the ids that it has read before."""
        known = f"SELECT id FROM temp.seen WHERE id IN ({_marks(ids, '?')})"
        with self._usable():
            again = [id for (id,) in self._db.execute(known, ids)]
            self._db.execute(f"INSERT OR IGNORE INTO temp.seen VALUES {_marks(ids, '(?)')}", ids)
        counts = collections.Counter(ids)
        return list(dict.fromkeys([*again, *(id for id, count in counts.items() if count > 1)]))

    def gone(self, sources: Iterable[str]) -> Iterator[Version]:
        """Yield the versions of these sources that this run has not read."""
        query = (
            f"SELECT {_COLUMNS} FROM documents WHERE source = ? AND id NOT IN (SELECT id FROM temp.seen) "
            "ORDER BY id, chunks"
        )
        for source in sources:
            with self._usable():
                rows = self._db.execute(query, (source,)).fetchall()
            yield from (Version(*row) for row in rows)

    def cut_into(self, id: str) -> Version | None:
        """Return the document of which a chunk is, or may be, stored under an id; None if there is none."""
        place = _chunk_place(id)
        if place is None:
            return None
        with self._usable():
            query = f"SELECT {_COLUMNS} FROM documents WHERE id = ? AND chunks > ?"
            row = self._db.execute(query, place).fetchone()
        return None if row is None else Version(*row)

    def others(self, version: Version) -> list[str]:
        """Return the ids of a version that no other document uses."""
        with self._usable():
            return [id for id in version.stored_ids if not self._claimed(id, version.id)]

    def forget(self, ids: Iterable[str]) -> None:
        """Remove documents whose ids are no longer in the store."""
        with self._transaction():
            self._db.executemany("DELETE FROM documents WHERE id = ?", ((id,) for id in ids))

    def stored_count(self) -> int:
        """Return the number of ids that the store must hold at least."""
        query = "SELECT coalesce(sum(max(chunks, 1)), 0) FROM documents WHERE acknowledged IS NOT NULL"
        with self._usable():
            count: int = self._db.execute(query).fetchone()[0]
        return count

    def document_count(self) -> int:
        """Return the number of documents that the store holds, as far as the ledger knows."""
        with self._usable():
            query = "SELECT count(*) FROM documents WHERE acknowledged IS NOT NULL"
            count: int = self._db.execute(query).fetchone()[0]
        return count

    # -- comparing it with the store

    def begin_comparison(self) -> None:
        """Forget the ids of an earlier comparison."""
        with self._usable():
            self._db.execute("DELETE FROM temp.stored")

    def note_stored(self, found: Iterable[tuple[str, str]]) -> None:
        """Note ids that the store holds, each with its ``piece_hash``, or an empty text if that is not known."""
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO temp.stored VALUES (?, ?)", found)

    def compared(self) -> Iterator[list[tuple[Version, list[str]]]]:
        """Yield the versions that should be stored, each with the hashes noted for those of its ids that are stored.

        They come in pages; what was yielded may be changed before the next page.
        """
        query = f"SELECT {_COLUMNS} FROM documents WHERE acknowledged IS NOT NULL AND id > ? ORDER BY id LIMIT 1000"
        after = ""
        while True:
            with self._usable():
                page = [Version(*row) for row in self._db.execute(query, (after,))]
                compared = [(version, self._hashes(version.stored_ids)) for version in page]
            if not page:
                return
            yield compared
            after = page[-1].id

    def unclaimed(self) -> Iterator[str]:
        """Yield the ids of the store under which the ledger knows no document."""
        with self._usable():
            for (id,) in self._db.execute("SELECT id FROM temp.stored ORDER BY id"):
                if not self._claimed(id, None):
                    yield id

    def distrust(self, versions: Iterable[Version]) -> None:
        """Note that documents must be written again by the next run, over the ids of these versions."""
        with self._transaction():
            for version in versions:
                self._void(version.id)
                self._enter(version)

    def known(self, id: str) -> Version | None:
        """Return a version of a document, stored or not."""
        with self._usable():
            query = f"SELECT {_COLUMNS} FROM documents WHERE id = ? ORDER BY chunks DESC"
            row = self._db.execute(query, (id,)).fetchone()
        return None if row is None else Version(*row)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _void(self, id: str) -> None:
        """Note that no version of a document is known to be stored, and that none under way is acknowledged later."""
        self._db.execute(f"{_VOIDED} WHERE id = ?", (id,))

    def _void_others(self, version: Version) -> None:
        """Void documents that are stored under an id of this version."""
        if version.chunks:
            whole = ((id,) for id in version.stored_ids)
            self._db.executemany(f"{_VOIDED} WHERE id = ? AND chunks = 0", whole)
        elif place := _chunk_place(version.id):
            self._db.execute(f"{_VOIDED} WHERE id = ? AND chunks > ?", place)

    def _enter(self, version: Version) -> None:
        self._db.execute(
            f"INSERT OR REPLACE INTO documents ({_COLUMNS}) VALUES ({_VALUES})",
            dataclasses.astuple(version),
        )

    def _claimed(self, stored_id: str, but: str | None) -> bool:
        """Return whether a document other than ``but`` is, or may be, stored under an id."""
        whole = "SELECT 1 FROM documents WHERE id = ? AND chunks = 0"
        if stored_id != but and self._db.execute(whole, (stored_id,)).fetchone():
            return True
        place = _chunk_place(stored_id)
        if place is None or place[0] == but:
            return False
        cut = "SELECT 1 FROM documents WHERE id = ? AND chunks > ?"
        return self._db.execute(cut, place).fetchone() is not None

    def _hashes(self, ids: Iterable[str]) -> list[str]:
        query = "SELECT hash FROM temp.stored WHERE id = ?"
        found = (self._db.execute(query, (id,)).fetchone() for id in ids)
        return [row[0] for row in found if row is not None]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._usable():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk ends it
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise InvalidInput(
                f"the ledger {self.path} cannot be used: {error}.\n  Mend it or its disk and run the same command "
                "again. If it is damaged, delete it: everything is then encoded again."
            ) from error


def _chunk_place(id: str) -> tuple[str, int] | None:
    """Return the document and the position of the chunk that has this id; None if it is not the id of a chunk."""
    parent, mark, position = id.rpartition("#")
    if not mark or not position.isdecimal() or len(position) > 9:
        return None
    return parent, int(position)


def _marks(values: Sequence[str], mark: str) -> str:
    """Return as many parameters as there are values: at most those of a batch, which SQLite allows."""
    return ", ".join([mark] * len(values))


def _use_wal(db: sqlite3.Connection) -> None:
    """Switch to WAL. If several processes open a new file at once, SQLite lets one of them do so without waiting."""
    until = time.monotonic() + _LONGEST_WAIT_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
