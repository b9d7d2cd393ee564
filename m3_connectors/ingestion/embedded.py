"""Store documents whose embeddings are known: saved ones, for example, without the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from m3_connectors.backends.checks import check_model
from m3_connectors.backends.schema import Schema
from m3_connectors.blocking import Index, store_batches, writer_of
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import InvalidInput
from m3_connectors.ingestion.chunking import Chunking
from m3_connectors.ingestion.failures import WAIT_SECONDS, OnWait
from m3_connectors.ingestion.ledger import Ledger, Version
from m3_connectors.ingestion.origin import Origin
from m3_connectors.ingestion.pipeline import IngestReport, OnProgress, finished, tell
from m3_connectors.ingestion.run import OnCut, OnRefused, Run
from m3_connectors.ingestion.sharding import ALL, Shard
from m3_connectors.ingestion.telemetry import telemetry_of
from m3_connectors.ingestion.verifying import compared
from m3_connectors.shards import changes_of, stored_as


def ingest_embedded(
    batches: Iterable[tuple[Sequence[Document], M3Embeddings]],
    index: Index,
    *,
    ledger: Ledger,
    saved: Schema | None = None,
    origin: Callable[[], Origin] = Origin,
    sync: Sequence[str] = (),
    unread: Callable[[Version], bool] = lambda _: False,
    check: bool = False,
    shard: Shard = ALL,
    wait_seconds: float = WAIT_SECONDS,
    progress: OnProgress = lambda progress: None,
    on_cut: OnCut = lambda cut, origin: None,
    on_refused: OnRefused = lambda refused: None,
    on_wait: OnWait = lambda wait: None,
) -> IngestReport:
    """Store documents with their embeddings as ``ingest`` does: what is unchanged is skipped, what changed is replaced.

    No encoder is used, and no document is cut: chunks are documents here. A document is unchanged if the collection
    holds it with the same text and metadata, embedded by the same model. Use it for a folder of saved embeddings::

        folder = EmbeddingsFolder(Path("kept"))
        ingest_embedded(folder.parts(), index, ledger=ledger, saved=folder.schema)

    Args:
        batches: Documents and their embeddings, row i for document i; read once, in this thread.
        index: The collection.
        ledger: The ledger of this collection.
        saved: The collection that the embeddings were read from. It is compared with this one before anything is
            stored, and rows that were pooled there are not pooled again.
        origin: As for ``ingest``; so are all others.
        sync: Sources that are read completely by this run.
        unread: Says of a document that its source may still have it.
        check: Compare store and ledger before the run in any case.
        shard: Which documents this run takes care of.
        wait_seconds: For how long to wait for a store that is down.
        progress: Called after each batch.
        on_cut: Called with each document that is longer than the encoder's maximum.
        on_refused: Called with each document that is left out.
        on_wait: Called before each pause, and when the store answers again.

    Raises:
        InvalidInput: The embeddings lack a component that the collection stores; or the ledger cannot be used.
        ModelMismatch: The embeddings come from a different model than the collection's.
        BackendError: The store failed. What it has acknowledged is in the ledger.
    """
    began = time.monotonic()
    as_they_are, name = False, index.describe().collection
    if saved is not None:
        changes_of(saved, index.schema, name, "the source")
        as_they_are = stored_as(saved, index.schema)
    telemetry = telemetry_of(index.schema.model.name)
    kind = partial(telemetry.writer, wait_seconds=wait_seconds, on_wait=on_wait, as_they_are=as_they_are)
    writer = writer_of(index, kind)
    run = Run(index, writer, None, ledger, Chunking(), origin, shard, on_cut, on_refused)
    with telemetry.run():
        missing = compared(index, ledger, shard, check=check)
        parts = run.embedded(_checked(batches, index, name))
        for stored in store_batches(index, writer, parts, before=run.begin):
            run.acknowledge(stored)
            tell(run, telemetry, progress, began)
        return finished(run, writer, telemetry, sync, unread, missing, began)


def _checked(
    batches: Iterable[tuple[Sequence[Document], M3Embeddings]], index: Index, name: str
) -> Iterator[tuple[Sequence[Document], M3Embeddings]]:
    """Yield batches whose embeddings have what the collection stores: otherwise no document could be stored."""
    for documents, embeddings in batches:
        if len(documents) != len(embeddings):
            raise InvalidInput(
                f"a batch has {len(documents)} documents and {len(embeddings)} embeddings.\n"
                "  Pass one embedding for each document."
            )
        missing = [component for component in index.schema.written if component not in embeddings.components]
        if missing:
            raise InvalidInput(
                f'collection "{name}" stores {", ".join(index.schema.written)}; a batch of embeddings does not have '
                f"{', '.join(missing)}.\n  Encode with components={index.schema.written}."
            )
        check_model(index.schema.model, name, embeddings.model)
        yield documents, embeddings
