"""The ledger of an ingestion on Ray, which one process keeps; and which of several documents with one id is stored."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from m3_connectors.ingestion.ledger import Ledger, Version
from m3_connectors.ingestion.run import cut_documents
from m3_connectors.ingestion.sharding import Shard
from m3_connectors.writing import CutDocument

Place = tuple[int, int]
"""Where a document is: the number of its part, and its position among the part's documents."""

Answer = Literal["store", "unchanged", "later", "replaced"]
"""What happens to a document: it is stored; not stored, because it is unchanged; stored by the next pass, because an
earlier one with its id is under way; not stored, because a later one with its id is."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many documents a run has stored so far, replaced, and found unchanged."""

    documents: int
    replaced: int
    unchanged: int


class LedgerKeeper:
    """The one process that uses the ledger; it also decides which of several documents with one id is stored."""

    def __init__(self, path: Path) -> None:
        self._ledger = Ledger(path)
        self._turns = _Turns()

    def select(
        self, versions: Sequence[Version], places: Sequence[Place]
    ) -> list[tuple[Answer, list[CutDocument]]]:
        """Say what to do with the documents of a batch, and which chunks of unchanged ones were truncated.

        Asked again about the same batch, it says the same; what has been stored meanwhile is unchanged then.
        """
        ids = [version.id for version in versions]
        self._ledger.see(ids)
        known = self._ledger.look_up(ids)
        moved: list[Version] = []
        answers = [
            self._answer(version, place, known, moved)
            for version, place in zip(versions, places, strict=True)
        ]
        self._ledger.relocate(moved)
        return answers

    def _answer(
        self, version: Version, place: Place, known: Mapping[str, Version | None], moved: list[Version]
    ) -> tuple[Answer, list[CutDocument]]:
        turn = self._turns.take(version.id, place)
        if turn == "later" or turn == "replaced":
            return turn, []
        before = known.get(version.id)
        if before is None or before.what != version.what:
            if turn == "first":
                self._turns.mark(version.id, replaces=version.id in known)
            return "store", []
        if (before.source, before.file) != (version.source, version.file):
            moved.append(version)
        if turn == "first":
            self._turns.mark(version.id, unchanged=True)
        return "unchanged", list(cut_documents(before))

    def begin(self, versions: Sequence[Version]) -> None:
        """Enter versions before they are written."""
        self._ledger.begin(versions)

    def left_over(self, versions: Sequence[Version]) -> list[str]:
        """Return the ids that earlier versions of written documents may have left in the store."""
        return [id for version in versions for id in self._ledger.left_over(version)]

    def acknowledge(self, versions: Sequence[Version]) -> Counts:
        """Enter versions that the store holds, and nothing of earlier ones."""
        self._ledger.acknowledge(versions)
        for version in versions:
            self._turns.mark(version.id, stored=True)
        return self._turns.counts()

    def counts(self) -> Counts:
        """Return the counts so far."""
        return self._turns.counts()

    def next_pass(self) -> dict[int, set[int]]:
        """Return the positions by part of the documents that had to wait, and let them have their turn."""
        return self._turns.next_pass()

    def gone(self, sources: Sequence[str], shard: Shard) -> list[tuple[Version, list[str]]]:
        """Return the versions that their sources no longer have, with the ids that no other document uses."""
        return [
            (version, self._ledger.others(version))
            for version in self._ledger.gone(sources)
            if shard.has(version.id)
        ]

    def forget(self, ids: Sequence[str]) -> None:
        """Remove documents whose ids are no longer in the store."""
        self._ledger.forget(ids)


class _Turns:
    """Which document of each id has its turn, in a temporary database: memory does not grow with the ids.

    Documents of one id may be read in any order. They are never under way at the same time: the first that comes is
    taken; of the others the last in the order of the sources is stored by the next pass, if it is behind that one.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(
            "CREATE TABLE turns (id TEXT PRIMARY KEY, part INTEGER, position INTEGER, last_part INTEGER, "
            "last_position INTEGER, replaces INTEGER DEFAULT 0, unchanged INTEGER DEFAULT 0, "
            "stored INTEGER DEFAULT 0) WITHOUT ROWID"
        )
        self._documents = self._replaced = self._unchanged = 0

    def take(self, id: str, place: Place) -> Literal["first", "again", "later", "replaced"]:
        query = "SELECT part, position, last_part, last_position FROM turns WHERE id = ?"
        row = self._db.execute(query, (id,)).fetchone()
        if row is None:
            row = (id, *place, *place)
            self._db.execute(
                "INSERT INTO turns (id, part, position, last_part, last_position) VALUES (?, ?, ?, ?, ?)", row
            )
            return "first"
        taken, last = (row[0], row[1]), (row[2], row[3])
        if place == taken:
            return "again"
        if place < last:
            return "replaced"
        self._db.execute("UPDATE turns SET last_part = ?, last_position = ? WHERE id = ?", (*place, id))
        return "later"

    def mark(self, id: str, *, replaces: bool = False, unchanged: bool = False, stored: bool = False) -> None:
        """Note what became of an id; each is counted once, however often its batch is repeated."""
        query = "SELECT replaces, unchanged, stored FROM turns WHERE id = ?"
        before = self._db.execute(query, (id,)).fetchone()
        if stored and not before[2]:
            self._documents += 1
            self._replaced += before[0]
        if unchanged and not before[1]:
            self._unchanged += 1
        after = (before[0] or replaces, before[1] or unchanged, before[2] or stored, id)
        self._db.execute("UPDATE turns SET replaces = ?, unchanged = ?, stored = ? WHERE id = ?", after)

    def counts(self) -> Counts:
        return Counts(self._documents, self._replaced, self._unchanged)

    def next_pass(self) -> dict[int, set[int]]:
        waiting = "(last_part, last_position) > (part, position)"
        places: dict[int, set[int]] = {}
        for part, position in self._db.execute(f"SELECT last_part, last_position FROM turns WHERE {waiting}"):
            places.setdefault(part, set()).add(position)
        self._db.execute(f"UPDATE turns SET part = last_part, position = last_position WHERE {waiting}")
        return places
