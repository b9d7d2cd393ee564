"""One run of ``m3 ingest``: open the collection and its ledger, store the documents, and say what became of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from m3_connectors.backends.registry import is_persistent
from m3_connectors.backends.urls import redacted
from m3_connectors.cli.console import INTERRUPTED, err, print_json, warn
from m3_connectors.cli.ingest_curation import Curating
from m3_connectors.cli.ingest_embeddings import open_target, print_saved, saving
from m3_connectors.cli.ingest_report import as_json, print_report
from m3_connectors.cli.ingest_shard import shown_shard
from m3_connectors.cli.opening import create_index
from m3_connectors.cli.reading import Reading, stored
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, M3Error

if TYPE_CHECKING:
    from m3_connectors.backends.schema import Schema, Storage
    from m3_connectors.blocking import Index
    from m3_connectors.ingestion import IngestReport, SavedReport
    from m3_connectors.shards import EmbeddingsFolder, Part

    Result = tuple[IngestReport, Schema, int, SavedReport | None]
    """The report of a run, the schema of the collection, the number of ids in the store, and what was saved."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Where documents are stored, and how.

    Attributes:
        url: The store.
        collection: The name of the collection.
        model: The value of ``--model``.
        storage: How a new collection stores its vectors; None for the default.
        chunking: How documents are cut, as ``Chunking.parse`` reads it.
        saved: The folder that the documents come from with their embeddings; None if they are encoded.
        save: The folder in which the embeddings are kept; None for no folder.
        shard: Which documents are stored, as ``Shard.parse`` reads it; None for all.
    """

    url: str
    collection: str
    model: str | None
    storage: Storage | None
    chunking: str
    saved: EmbeddingsFolder | None = None
    save: Path | None = None
    shard: str | None = None

    def open(self) -> Index:
        """Open the collection, or create it."""
        if self.saved is not None:
            return open_target(self.saved, self.url, self.collection, self.storage)
        return create_index(self.url, self.collection, self.model, self.storage)

    def ingest(self, documents: Iterable[Any], index: Index, **options: Any) -> IngestReport:
        """Store documents, or parts of a folder of embeddings."""
        from m3_connectors.ingestion import Chunking, ingest, ingest_embedded

        if self.saved is not None:
            return ingest_embedded(documents, index, saved=self.saved.schema, **options)
        return ingest(documents, index, chunking=Chunking.parse(self.chunking), **options)

    @property
    def ledger_path(self) -> Path | None:
        """The ledger of the collection; None if the collection is discarded with this process."""
        from m3_connectors.ingestion import ledger_path

        return ledger_path(self.url, self.collection) if is_persistent(self.url) else None


def store(
    target: Target,
    reading: Reading,
    documents: Iterator[Document] | Iterator[Part],
    nothing: Callable[[], InvalidInput],
    *,
    json: bool,
    curating: Curating | None = None,
    **options: Any,
) -> None:
    """Store documents, and print the report.

    Args:
        target: Where.
        reading: Follows the documents.
        documents: The documents, or parts of the folder ``target.saved``.
        nothing: Returns the error if there are none, or none can be stored.
        json: Whether to print the report as JSON.
        curating: What was dropped of the documents.
        **options: Further options of ``ingest``.

    Raises:
        InvalidInput: There are no documents, or none can be stored.
        BackendError: The store failed.
        typer.Exit: The user has interrupted the run.
    """
    from m3_connectors.ingestion import Ledger, Shard

    url, collection = target.url, target.collection
    path = target.ledger_path
    if path is None:
        warn(
            f"{redacted(url)} is discarded when this command ends; use a folder such as qdrant:./data to keep it"
        )

    def run() -> Result:
        first = next(documents, None)
        if first is None:  # checked before a collection is created and bound to this model
            raise nothing()
        with (
            Ledger(path, url, collection) as ledger,
            target.open() as index,
            saving(target.save, index) as keeper,
            reading.shown(),
        ):
            if keeper is not None:
                options["on_embedded"] = keeper.on_embedded
            report = target.ingest(
                itertools.chain([first], documents),
                index,
                ledger=ledger,
                origin=reading.origin,
                shard=Shard.parse(target.shard or "1/1"),
                unread=reading.may_have,
                progress=reading.stored,
                on_cut=reading.on_cut,
                on_refused=reading.refused,
                on_wait=reading.waiting,
                **options,
            )
            kept = keeper.finish() if keeper is not None and not reading.interrupted else None
            return report, index.schema, index.count(), kept

    follow(run, target, reading, nothing, json=json, curating=curating, sync=bool(options.get("sync")))


def follow(
    run: Callable[[], Result],
    target: Target,
    reading: Reading,
    nothing: Callable[[], InvalidInput],
    *,
    json: bool,
    curating: Curating | None = None,
    sync: bool = False,
) -> None:
    """Run an ingestion, and print its report, or how to continue; the arguments are those of ``store``."""
    url, collection = target.url, target.collection
    try:
        report, schema, count, kept = run()
    except KeyboardInterrupt:
        reading.interrupted = True
    except M3Error as error:
        if reading.stored_count:
            error.add_note(f"  {stored(reading.stored_count)}. Run the same command to continue.")
        raise
    if reading.interrupted:
        err.print(f"{stored(reading.stored_count)}. Run the same command to continue.")
        raise typer.Exit(INTERRUPTED)
    if report.refused and not report.documents + report.unchanged:
        raise nothing()
    reading.warn()
    if json:
        print_json(
            {
                "url": redacted(url),
                "collection": collection,
                "chunking": target.chunking,
                "shard": target.shard,
                **as_json(report, reading, curating, schema, count),
                "saved": kept and {"folder": str(target.save), **dataclasses.asdict(kept)},
            }
        )
    else:
        print_report(report, reading, curating, schema, sync=sync, of=shown_shard(target.shard))
        if kept is not None:
            print_saved(kept, target.save)
