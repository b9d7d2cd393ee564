"""One run of ``m3 ingest``: open the collection and its ledger, store the documents, and say what became of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from m3_connectors.backends.registry import is_persistent
from m3_connectors.backends.urls import redacted
from m3_connectors.cli.console import INTERRUPTED, err, print_json, warn
from m3_connectors.cli.ingest_report import as_json, print_report
from m3_connectors.cli.ingest_shard import shown_shard
from m3_connectors.cli.opening import create_index
from m3_connectors.cli.reading import Reading, stored
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, M3Error

if TYPE_CHECKING:
    from m3_connectors.backends.schema import Schema, Storage
    from m3_connectors.ingestion import IngestReport

    Result = tuple[IngestReport, Schema, int]
    """The report of a run, the schema of the collection, and the number of ids in the store."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Where documents are stored, and how.

    Attributes:
        url: The store.
        collection: The name of the collection.
        model: The value of ``--model``.
        storage: How a new collection stores its vectors; None for the default.
        chunking: How documents are cut, as ``Chunking.parse`` reads it.
        shard: Which documents are stored, as ``Shard.parse`` reads it; None for all.
    """

    url: str
    collection: str
    model: str | None
    storage: Storage | None
    chunking: str
    shard: str | None = None


def store(
    target: Target,
    reading: Reading,
    documents: Iterator[Document],
    nothing: Callable[[], InvalidInput],
    *,
    json: bool,
    **options: Any,
) -> None:
    """Store documents, and print the report.

    Args:
        target: Where.
        reading: Follows the documents.
        documents: The documents.
        nothing: Returns the error if there are none, or none can be stored.
        json: Whether to print the report as JSON.
        **options: Further options of ``ingest``.

    Raises:
        InvalidInput: There are no documents, or none can be stored.
        BackendError: The store failed.
        typer.Exit: The user has interrupted the run.
    """
    from m3_connectors.ingestion import Chunking, Ledger, Shard, ingest, ledger_path

    url, collection = target.url, target.collection
    path = ledger_path(url, collection) if is_persistent(url) else None
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
            create_index(url, collection, target.model, target.storage) as index,
            reading.shown(),
        ):
            report = ingest(
                itertools.chain([first], documents),
                index,
                ledger=ledger,
                chunking=Chunking.parse(target.chunking),
                origin=reading.origin,
                shard=Shard.parse(target.shard or "1/1"),
                unread=reading.may_have,
                progress=reading.stored,
                on_cut=reading.on_cut,
                on_refused=reading.refused,
                on_wait=reading.waiting,
                **options,
            )
            return report, index.schema, index.count()

    follow(run, target, reading, nothing, json=json)


def follow(
    run: Callable[[], Result],
    target: Target,
    reading: Reading,
    nothing: Callable[[], InvalidInput],
    *,
    json: bool,
) -> None:
    """Run an ingestion, and print its report, or how to continue; the arguments are those of ``store``."""
    url, collection = target.url, target.collection
    try:
        report, schema, count = run()
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
                **as_json(report, reading, schema, count),
            }
        )
    else:
        print_report(report, reading, schema, shown_shard(target.shard))
