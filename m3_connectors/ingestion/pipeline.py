"""Documents on their way into a collection: read, compared with the ledger, cut, encoded, written, acknowledged.

While one batch is encoded, another is written and the next is read and cut. Batches, and the vectors that wait for the
store, are bounded in bytes (``writing``), so memory does not grow with the corpus.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from functools import partial

from m3_connectors.adding import AddReport
from m3_connectors.blocking import (
    Index,
    check_wanted,
    encoder_of,
    in_thread,
    run_on,
    store_batches,
    writer_of,
)
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import InvalidInput
from m3_connectors.index import AsyncIndex
from m3_connectors.ingestion.chunking import Chunking
from m3_connectors.ingestion.failures import WAIT_SECONDS, OnWait, TolerantWriter
from m3_connectors.ingestion.ledger import Ledger, Version
from m3_connectors.ingestion.origin import Origin
from m3_connectors.ingestion.progress import IngestProgress
from m3_connectors.ingestion.run import OnCut, OnRefused, Run
from m3_connectors.ingestion.sharding import ALL, Shard
from m3_connectors.ingestion.telemetry import Telemetry, telemetry_of
from m3_connectors.ingestion.verifying import Verification, compared

_WHOLE = Chunking()

OnProgress = Callable[[IngestProgress], object]
OnEmbedded = Callable[[Sequence[Document], M3Embeddings], object]
"""Called with the chunks of a batch that the store has acknowledged, and their embeddings, row i for chunk i."""


@dataclasses.dataclass(frozen=True)
class IngestReport:
    """The result of ``ingest``.

    Attributes:
        read: The number of documents read, of the run's shard.
        unchanged: The number of those that the store held already, with the same content, model and chunking.
        documents: The number of documents stored.
        chunks: The number of chunks stored for them; that of the documents if they are not cut.
        replaced: The number of documents of which the ledger knew an earlier version.
        removed: The number of documents removed because their source no longer has them.
        kept: The ids of documents that their source may still have: their file could not be read completely.
        refused: The number of documents that are not valid, or could not be cut, encoded or written.
        repeated_count: The number of ids that were read more than once; the last document of each was kept.
        repeated: The first 1,000 of them.
        missing: What the comparison before the run found missing; None without a comparison.
        tokens: The number of tokens encoded of what was stored; 0 if the encoder does not count them.
        batches: The number of batches stored.
        add: What was written. Truncated documents are counted if they are unchanged, too.
        writing_seconds: For how long the store was writing.
        waited_seconds: For how long the run waited for a store that was down.
        seconds: How long the run took.
    """

    read: int
    unchanged: int
    documents: int
    chunks: int
    replaced: int
    removed: int
    kept: tuple[str, ...]
    refused: int
    repeated_count: int
    repeated: tuple[str, ...]
    missing: Verification | None
    tokens: int
    batches: int
    add: AddReport
    writing_seconds: float
    waited_seconds: float
    seconds: float

    @property
    def encoder_busy_share(self) -> float:
        """The share of the time in which texts were being encoded, 0 to 1."""
        return min(self.add.encoding_seconds / self.seconds, 1.0) if self.seconds else 0.0


def ingest(
    documents: Iterable[Document],
    index: Index,
    *,
    ledger: Ledger,
    chunking: Chunking = _WHOLE,
    origin: Callable[[], Origin] = Origin,
    sync: Sequence[str] = (),
    unread: Callable[[Version], bool] = lambda _: False,
    check: bool = False,
    shard: Shard = ALL,
    wait_seconds: float = WAIT_SECONDS,
    progress: OnProgress = lambda progress: None,
    on_cut: OnCut = lambda cut, origin: None,
    on_embedded: OnEmbedded = lambda documents, embeddings: None,
    on_refused: OnRefused = lambda refused: None,
    on_wait: OnWait = lambda wait: None,
) -> IngestReport:
    """Store the documents that the collection does not hold yet, and replace those that have changed.

    Running it again with the same documents does nothing. If the store holds fewer documents than the ledger knows,
    both are compared before the run (``verify``), and what is missing is stored again. A document that is not valid,
    or cannot be cut, encoded or written, is left out and named; the others are stored. If that happens to 100 documents
    in a row in the encoder or the store, the run ends.

    Args:
        documents: The documents, read once, in this thread.
        index: The collection.
        ledger: The ledger of this collection.
        chunking: How documents are cut.
        origin: Returns where the document comes from that was read last.
        sync: Sources that are read completely by this run: documents that they no longer have are removed.
        unread: Says of such a document that its source may still have it, because reading failed.
        check: Compare store and ledger before the run in any case.
        shard: Which documents this run takes care of; the others are read, but neither stored nor removed. Such a run
            always compares, because the number of documents in the store does not tell whether it lacks one of these.
        wait_seconds: For how long to wait for a store that is down, overloaded, or asks for fewer requests.
        progress: Called after each batch with how far the run is.
        on_cut: Called with each chunk that is longer than the encoder's maximum, and the origin of its document:
            only its beginning is searchable. Chunks of unchanged documents are included.
        on_embedded: Called with each batch and its embeddings when the store has acknowledged it, before the ledger
            does: after an interruption, a batch may come a second time, but none is left out.
        on_refused: Called with each document that is left out.
        on_wait: Called before each pause in which the store is waited for, and when it answers again. This may be in
            another thread.

    Raises:
        InvalidInput: The index has no encoder, or one without tokens where documents are cut; ``documents`` is
            asynchronous; or the ledger cannot be used.
        BackendError: The store failed. What it has acknowledged is in the ledger.
    """
    asynchronous: dict[str, object] = {"index": index, "documents": documents}
    for what, given in asynchronous.items():
        if isinstance(given, AsyncIndex | AsyncIterable):
            raise InvalidInput(
                f"{what} is {type(given).__name__}, which ingest cannot wait for.\n"
                "  Use await aingest(documents, index, …) with the AsyncIndex that aconnect returns."
            )
    began = time.monotonic()
    encoder = encoder_of(index)
    telemetry = telemetry_of(encoder.info.name)
    writer = writer_of(index, partial(telemetry.writer, wait_seconds=wait_seconds, on_wait=on_wait))
    run = Run(index, writer, encoder, ledger, chunking, origin, shard, on_cut, on_refused)

    with telemetry.run():
        missing = compared(index, ledger, shard, check=check)
        for stored in store_batches(index, writer, run.batches(documents), before=run.begin):
            if stored.embeddings is not None:
                on_embedded(stored.documents, stored.embeddings)
            run.acknowledge(stored)
            tell(run, telemetry, progress, began)
        return finished(run, writer, telemetry, sync, unread, missing, began)


def tell(run: Run, telemetry: Telemetry, progress: OnProgress, began: float) -> None:
    """Tell how far a run is."""
    now = run.progress(time.monotonic() - began)
    telemetry.progress(now)
    progress(now)


def finished(
    run: Run,
    writer: TolerantWriter,
    telemetry: Telemetry,
    sync: Sequence[str],
    unread: Callable[[Version], bool],
    missing: Verification | None,
    began: float,
) -> IngestReport:
    """Remove what the sources no longer have, and return the report of a run."""
    removed, kept = run.remove_gone(sync, unread)
    telemetry.progress(run.progress(time.monotonic() - began))
    return IngestReport(
        read=run.read,
        unchanged=run.unchanged,
        documents=run.documents,
        chunks=run.chunks,
        replaced=run.replaced,
        removed=removed,
        kept=tuple(kept),
        refused=run.refused,
        repeated_count=run.repeated_count,
        repeated=tuple(run.repeated),
        missing=missing,
        tokens=run.tokens,
        batches=run.batch_count,
        add=AddReport(
            written=run.chunks,
            truncated=run.cuts.count,
            lost_tokens=run.cuts.lost_tokens,
            cut=tuple(run.cuts.first),
            pooled=run.pooled,
            encoding_seconds=writer.encoding_seconds,
        ),
        writing_seconds=writer.writing_seconds,
        waited_seconds=writer.waited_seconds,
        seconds=time.monotonic() - began,
    )


async def aingest(
    documents: Iterable[Document] | AsyncIterable[Document],
    index: AsyncIndex,
    *,
    ledger: Ledger,
    chunking: Chunking = _WHOLE,
    origin: Callable[[], Origin] = Origin,
    sync: Sequence[str] = (),
    unread: Callable[[Version], bool] = lambda _: False,
    check: bool = False,
    shard: Shard = ALL,
    wait_seconds: float = WAIT_SECONDS,
    progress: OnProgress = lambda progress: None,
    on_cut: OnCut = lambda cut, origin: None,
    on_embedded: OnEmbedded = lambda documents, embeddings: None,
    on_refused: OnRefused = lambda refused: None,
    on_wait: OnWait = lambda wait: None,
) -> IngestReport:
    """Store new and changed documents as ``ingest`` does, into an AsyncIndex, without blocking the event loop.

    The documents are compared and cut in a worker thread. An asynchronous iterable is read on the event loop; any other
    iterable is read in the worker thread, and the callbacks are called there. If the call is cancelled, what is under
    way is cancelled too; the next call goes on.

    Args:
        documents: The documents, read once.
        index: The collection.
        ledger: As for ``ingest``; so are all others.
        chunking: How documents are cut.
        origin: Returns where the document comes from that was read last.
        sync: Sources that are read completely by this run.
        unread: Says of a document that its source may still have it.
        check: Compare store and ledger before the run in any case.
        shard: Which documents this run takes care of.
        wait_seconds: For how long to wait for a store that is down.
        progress: Called after each batch.
        on_cut: Called with each chunk that is longer than the encoder's maximum.
        on_embedded: Called with each batch and its embeddings.
        on_refused: Called with each document that is left out.
        on_wait: Called before each pause, and when the store answers again.

    Raises:
        InvalidInput: As for ``ingest``, or ``index`` is not an AsyncIndex.
        BackendError: The store failed. What it has acknowledged is in the ledger.
    """
    if not isinstance(index, AsyncIndex):
        raise InvalidInput(
            f"index is {type(index).__name__}, and aingest needs an AsyncIndex.\n"
            "  Open it with aconnect, or use ingest without await."
        )

    def run(lent: Index) -> IngestReport:
        return ingest(
            _read_in_thread(documents, lent),
            lent,
            ledger=ledger,
            chunking=chunking,
            origin=origin,
            sync=sync,
            unread=unread,
            check=check,
            shard=shard,
            wait_seconds=wait_seconds,
            progress=progress,
            on_cut=on_cut,
            on_embedded=on_embedded,
            on_refused=on_refused,
            on_wait=on_wait,
        )

    return await in_thread(index, run)


def _read_in_thread(
    documents: Iterable[Document] | AsyncIterable[Document], lent: Index
) -> Iterator[Document]:
    """Yield documents in a worker thread, until the call that waits for the thread is cancelled."""
    if isinstance(documents, AsyncIterable):
        iterator = aiter(documents)

        async def following() -> Document | None:
            return await anext(iterator, None)

        while (document := run_on(lent, following)) is not None:
            yield document
    else:
        for document in documents:
            check_wanted(lent)
            yield document
