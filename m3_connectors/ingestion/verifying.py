"""Compare a collection with its ledger, and mend the ledger: what is not as it was is written again next time.

The store is asked for its ids, and on request for its texts and metadata, whose hash is compared with that of what was
written. The hash is computed from what the store returns, and not kept beside it: a text that is edited in a database
would keep the hash that was written with it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from m3_connectors.blocking import Index
from m3_connectors.documents import Document
from m3_connectors.ingestion.ledger import Ledger, Version, combined, piece_hash
from m3_connectors.ingestion.sharding import ALL, Shard

_MOST_NAMED = 1000
_MENDED_AT_ONCE = 1000
_NOTED_AT_ONCE = 10_000
_ASKED_AT_ONCE = 500

Get = Callable[[Sequence[str]], Sequence[Document | None]]
"""Returns the documents that the store holds now, None for ids that it lacks."""


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
        changed: The number of documents whose text or metadata in the store are not those that were written; None
            if only ids were compared.
        changed_ids: The ids of the first 1,000 of them.
        unhashed: The number of documents whose chunks could not be compared, because an earlier version of this
            package wrote them.
    """

    documents: int
    stored: int
    missing: int
    missing_ids: tuple[str, ...]
    stale: int
    unknown: int
    changed: int | None = None
    changed_ids: tuple[str, ...] = ()
    unhashed: int = 0

    @property
    def agrees(self) -> bool:
        """Whether nothing was found that the next run writes again or removes."""
        return not (self.missing or self.stale or self.changed)


def verify(index: Index, ledger: Ledger, shard: Shard = ALL, *, hashes: bool = False) -> Verification:
    """Ask the store for all its ids, and note in the ledger what the next run must write again.

    Args:
        index: The collection.
        ledger: Its ledger.
        shard: Which documents are looked at.
        hashes: Whether to read the texts and metadata too, and compare them with what was written.

    Raises:
        InvalidInput: The ledger cannot be used.
        BackendError: The store failed.
    """
    if hashes:
        found = ((document.id, piece_hash(document)) for document in index.scan())
    else:
        found = ((id, "") for id in index.scan_ids())
    return _compare(ledger, found, index.get, shard, hashes=hashes)


def verify_dropped(ledger: Ledger) -> Verification:
    """Note that the next run must write all documents again, because their collection does not exist."""
    return _compare(ledger, iter(()), lambda ids: [None] * len(ids), ALL, hashes=False)


def _compare(
    ledger: Ledger, found: Iterator[tuple[str, str]], get: Get, shard: Shard, *, hashes: bool
) -> Verification:
    documents = stored = 0
    ledger.begin_comparison()
    while some := list(itertools.islice(found, _NOTED_AT_ONCE)):
        stored += len(some)
        ledger.note_stored(some)
    missing, changed = _Named(), _Named()
    unhashed = 0
    for page in ledger.compared():
        suspects: list[Version] = []
        for version, there in page:
            if not shard.has(version.id):
                continue
            documents += 1
            if hashes and not version.stored and len(there) == len(version.stored_ids):
                unhashed += 1
            elif not _is_stored(version, there, hashes=hashes):
                suspects.append(version)
        wrong: list[Version] = []
        for version, there in _asked_again(suspects, ledger, get):
            if not _is_stored(version, there, hashes=hashes):
                (missing if len(there) < len(version.stored_ids) else changed).add(version.id)
                wrong.append(version)
        ledger.distrust(wrong)
    stale, unknown = _mend_stale(ledger, get, shard)
    return Verification(
        documents,
        stored,
        missing.count,
        tuple(missing.first),
        stale,
        unknown,
        changed.count if hashes else None,
        tuple(changed.first),
        unhashed,
    )


def _is_stored(version: Version, there: list[str], *, hashes: bool) -> bool:
    """Return whether a version is stored, given the hashes of those of its ids that are."""
    if len(there) < len(version.stored_ids):
        return False
    return not hashes or not version.stored or combined(there) == version.stored


def _asked_again(versions: list[Version], ledger: Ledger, get: Get) -> Iterator[tuple[Version, list[str]]]:
    """Yield what the store holds now of versions: another run may have written them since the scan."""
    now = ledger.look_up([version.id for version in versions])
    versions = [version for version in versions if now.get(version.id) == version]
    ids = [id for version in versions for id in version.stored_ids]
    hashes: dict[str, str] = {}
    for start in range(0, len(ids), _ASKED_AT_ONCE):
        found = get(ids[start : start + _ASKED_AT_ONCE])
        hashes |= {document.id: piece_hash(document) for document in found if document is not None}
    for version in versions:
        yield version, [hashes[id] for id in version.stored_ids if id in hashes]


class _Named:
    """Counts documents, and keeps the ids of the first."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, id: str) -> None:
        self.count += 1
        if self.count <= _MOST_NAMED:
            self.first.append(id)


def _mend_stale(ledger: Ledger, get: Get, shard: Shard) -> tuple[int, int]:
    """Note what earlier versions left in the store; return how many ids, and how many the ledger does not know."""
    unknown = 0

    def stale() -> Iterator[Version]:
        nonlocal unknown
        unclaimed = ledger.unclaimed()
        while ids := list(itertools.islice(unclaimed, _ASKED_AT_ONCE)):
            longer = {id: version for id in ids if (version := _longer(ledger, id)) is not None}
            unknown += len(ids) - len(longer)
            for document in get(list(longer)) if longer else ():
                if document is None:
                    continue  # it was removed since the scan
                version = longer[document.id]
                passage = document.passage
                # Another program's document may have such an id; it is not removed.
                if passage is None or passage.position != version.chunks - 1:
                    unknown += 1
                elif shard.has(version.id):
                    yield version

    count = 0
    # Complete before the first is noted: each claims the ids of a longer version.
    for some in _by_count(list(stale()), _MENDED_AT_ONCE):
        count += len(some)
        ledger.distrust(some)
    return count, unknown


def _by_count(versions: list[Version], count: int) -> Iterable[list[Version]]:
    return (versions[start : start + count] for start in range(0, len(versions), count))


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
