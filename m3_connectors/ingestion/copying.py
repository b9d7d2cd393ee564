"""Another M3 collection as a source: its documents come with their stored vectors, and nothing is encoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from m3_connectors.blocking import Index, present, scan_chosen
from m3_connectors.documents import Document
from m3_connectors.ingestion.embedded import ingest_embedded
from m3_connectors.ingestion.failures import WAIT_SECONDS
from m3_connectors.ingestion.ledger import Ledger, Version, content_hash
from m3_connectors.ingestion.origin import Origin
from m3_connectors.ingestion.pipeline import IngestReport, OnProgress
from m3_connectors.ingestion.progress import IngestProgress

C = TypeVar("C", IngestReport, IngestProgress)


def ingest_collection(
    source: Index,
    index: Index,
    *,
    ledger: Ledger,
    name: str,
    sync: bool = False,
    check: bool = False,
    wait_seconds: float = WAIT_SECONDS,
    wanted: Callable[[], bool] = lambda: True,
    progress: OnProgress = lambda progress: None,
) -> IngestReport:
    """Store the documents of another collection with their vectors, only what is new or changed, without a model.

    A chunk is a document of its own here, and keeps its id and metadata. A document is read together with its vectors,
    also while other programs write to the source. Of documents that are unchanged, the vectors are not read.

    Args:
        source: The collection that is read.
        index: The collection that is written, of the same model.
        ledger: The ledger of ``index``.
        name: The name of the source in the ledger.
        sync: Whether to remove the documents of this source that it no longer has.
        check: Compare store and ledger before the run in any case.
        wait_seconds: For how long to wait for a store that is down.
        wanted: Asked before each part; when it says no, the run ends with what is under way.
        progress: Called after each batch.

    Raises:
        ModelMismatch: Another model wrote the source.
        InvalidInput: The source lacks a component, or its rows would be pooled a second time; or the ledger cannot be
            used.
        BackendError: A store failed. What ``index`` has acknowledged is in the ledger.
    """
    skipped = 0

    def choose(documents: list[Document]) -> list[Document]:
        nonlocal skipped
        if not wanted():
            return []
        known = ledger.look_up([document.id for document in documents])
        same = [each for each in documents if _is_same(each, known.get(each.id))]
        there = present(index, [document.id for document in same])
        unchanged = [document.id for document in same if document.id in there]
        if unchanged:
            ledger.see(unchanged)
        skipped += len(unchanged)
        return [document for document in documents if document.id not in set(unchanged)]

    report = ingest_embedded(
        scan_chosen(source, choose),
        index,
        ledger=ledger,
        saved=source.schema,
        origin=lambda: Origin(name),
        sync=[name] if sync else [],
        unread=lambda _: not wanted(),
        check=check,
        wait_seconds=wait_seconds,
        progress=lambda so_far: progress(_with(so_far, skipped)),
    )
    return _with(report, skipped)


def _with(counts: C, skipped: int) -> C:
    return dataclasses.replace(counts, read=counts.read + skipped, unchanged=counts.unchanged + skipped)


def _is_same(document: Document, version: Version | None) -> bool:
    return (
        version is not None
        and version.chunks == 0
        and version.chunking == "none"
        and version.content == content_hash(document)
    )
