"""Compare a collection with its ledger, by ids, and mend the ledger: what is missing is written again next time."""

from __future__ import annotations

import dataclasses

from m3_connectors.blocking import Index, scan_ids
from m3_connectors.ingestion.ledger import Ledger, Version
from m3_connectors.ingestion.sharding import ALL, Shard

_MOST_NAMED = 1000
_MENDED_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Attributes:
        documents: The number of documents (of the shard) that the ledger took for stored.
        stored: The number of ids in the store: chunks, or documents that were not cut.
        missing: The number of documents that the store lacks, or of which it lacks a chunk.
        missing_ids: The ids of the first 1,000 of them.
        stale: The number of ids in the store that an earlier version of a document left there; the next run that
            reads this document removes them.
        unknown: The number of ids in the store that this ledger does not know: other programs wrote them, or runs with
            a ledger of their own. They are left alone.
    """

    documents: int
    stored: int
    missing: int
    missing_ids: tuple[str, ...]
    stale: int
    unknown: int


def verify(index: Index, ledger: Ledger, shard: Shard = ALL) -> Verification:
    """Ask the store for all its ids, and note in the ledger what the next run must write again.

    Args:
        index: The collection.
        ledger: The ledger of this collection.
        shard: Which documents are looked at.

    Raises:
        InvalidInput: The ledger cannot be used.
        BackendError: The store failed.
    """
    documents = stored = 0

    def note(ids: list[str]) -> None:
        nonlocal stored
        stored += len(ids)
        ledger.note_stored(ids)

    ledger.begin_comparison()
    scan_ids(index, note)
    missing: list[Version] = []
    for version, lacking in ledger.compared():
        if shard.has(version.id):
            documents += 1
            if lacking:
                missing.append(version)
    stale: list[Version] = []
    stale_count = unknown = 0
    for id in ledger.unclaimed():
        longer = _longer(ledger, id)
        if longer is None:
            unknown += 1
        elif shard.has(longer.id):
            stale.append(longer)
            stale_count += 1
    for start in range(0, len(missing + stale), _MENDED_AT_ONCE):
        ledger.distrust((missing + stale)[start : start + _MENDED_AT_ONCE])
    return Verification(
        documents,
        stored,
        len(missing),
        tuple(version.id for version in missing[:_MOST_NAMED]),
        stale_count,
        unknown,
    )


def _longer(ledger: Ledger, stored_id: str) -> Version | None:
    """Return the longer version of a document that left a chunk in the store, or None if there is no such document."""
    parent, _, position = stored_id.rpartition("#")
    version = ledger.known(parent) if parent and position.isdecimal() and len(position) <= 9 else None
    if version is None or version.chunks == 0:
        return None
    return dataclasses.replace(version, chunks=int(position) + 1)


def compared(index: Index, ledger: Ledger, shard: Shard, *, check: bool) -> Verification | None:
    """Compare before a run if it is asked for, or if the store may lack a document.

    The number of ids in the store tells nothing about one shard, so its runs always compare.
    """
    expected = ledger.stored_count()  # before the store is asked, because other runs may be storing
    check = check or (shard.count > 1 and expected > 0) or index.count() < expected
    return verify(index, ledger, shard) if check else None
