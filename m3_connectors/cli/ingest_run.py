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
from m3_connectors.cli.opening import create_index
from m3_connectors.cli.reading import Reading, stored
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, M3Error

if TYPE_CHECKING:
    from m3_connectors.backends.schema import Storage


@dataclasses.dataclass(frozen=True)
class Target:
    """Where documents are stored, and how.

    Attributes:
        url: The store.
        collection: The name of the collection.
        model: The value of ``--model``.
        storage: How a new collection stores its vectors; None for the default.
        chunking: How documents are cut, as ``Chunking.parse`` reads it.
    """

    url: str
    collection: str
    model: str | None
    storage: Storage | None
    chunking: str


def store(
    target: Target,
    reading: Reading,
    documents: Iterator[Document],
    nothing: Callable[[], InvalidInput],
    *,
    json: bool,
    more_json: Callable[[], dict[str, object]] = dict,
    more_words: Callable[[], str | None] = lambda: None,
    **options: Any,
) -> None:
    """Store documents, and print the report.

    Args:
        target: Where.
        reading: Follows the documents.
        documents: The documents.
        nothing: Returns the error if there are none, or none can be stored.
        json: Whether to print the report as JSON.
        more_json: Returns what else the JSON report has.
        more_words: Returns what else the printed report says of the documents; None for nothing.
        **options: Further options of ``ingest``.

    Raises:
        InvalidInput: There are no documents, or none can be stored.
        BackendError: The store failed.
        typer.Exit: The user has interrupted the run.
    """
    from m3_connectors.ingestion import Chunking, Ledger, ingest, ledger_path

    url, collection = target.url, target.collection
    path = ledger_path(url, collection) if is_persistent(url) else None
    if path is None:
        warn(
            f"{redacted(url)} is discarded when this command ends; use a folder such as qdrant:./data to keep it"
        )
    try:
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
                unread=reading.may_have,
                progress=reading.stored,
                on_cut=reading.on_cut,
                on_refused=reading.refused,
                on_wait=reading.waiting,
                **options,
            )
            schema, count = index.schema, index.count()
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
                **as_json(report, reading, schema, count),
                **more_json(),
            }
        )
    else:
        print_report(report, reading, schema, more_words())
