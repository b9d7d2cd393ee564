"""``m3 ingest URL#COLLECTION --to URL``: another M3 collection as a source, copied with its vectors."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from m3_connectors.backends.registry import is_persistent
from m3_connectors.backends.schema import Storage
from m3_connectors.backends.urls import redacted
from m3_connectors.cli.collection_source import CollectionSource
from m3_connectors.cli.console import INTERRUPTED, duration, err, out, plural, print_json, warn
from m3_connectors.cli.ingest_verify import print_verification
from m3_connectors.cli.options import check_store
from m3_connectors.cli.progress import Progress, acknowledging_interrupts
from m3_connectors.errors import CollectionNotFound, InvalidInput, M3Error

if TYPE_CHECKING:
    from m3_connectors.backends.schema import Schema
    from m3_connectors.blocking import Index
    from m3_connectors.ingestion import IngestProgress, IngestReport

_APPLIES = frozenset(
    (
        *("sources", "url", "to", "collection", "sync", "check", "wait", "json", "debug"),
        *("components", "multivector_dtype", "long_documents", "pool_factor", "pool_from_rows"),
    )
)
"""The parameters of ``m3 ingest`` that have an effect here."""


def only_collection(context: typer.Context, sources: Sequence[object]) -> CollectionSource | None:
    """Return the collection that is the source of a command; None if its sources are files.

    Raises:
        typer.BadParameter: There are several sources, or an option has no effect on a collection.
    """
    collection = next((source for source in sources if isinstance(source, CollectionSource)), None)
    if collection is None:
        return None
    if len(sources) > 1:
        raise typer.BadParameter(
            f"{collection} is a collection; run m3 ingest once for it and once for the other sources.",
            param_hint="SOURCE",
        )
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        given = source is not None and source.name == "COMMANDLINE"
        if given and parameter.name not in _APPLIES:
            raise typer.BadParameter(
                f"it has no effect when the source is a collection ({collection}), whose documents are stored as they "
                "are. Omit it.",
                param_hint=parameter.opts[0],
            )
    return collection


def copy(
    source: CollectionSource,
    to: str,
    collection: str,
    storage: Storage | None,
    *,
    sync: bool,
    check: bool,
    wait_seconds: float,
    json: bool,
) -> None:
    """Copy a collection into another one, which is created with the same storage unless options say otherwise."""
    from m3_connectors.blocking import connect
    from m3_connectors.ingestion import Ledger, ingest_collection, ledger_path
    from m3_connectors.shards import changes_of

    check_store(source.url, source.collection)
    if not is_persistent(to):
        raise typer.BadParameter(
            f"{redacted(to)} is discarded when this command ends. Use a folder such as qdrant:./data.",
            param_hint="--to",
        )
    if ledger_path(source.url, source.collection) == ledger_path(to, collection):
        raise typer.BadParameter(
            f"{source} is also the target. Choose another --to or --collection.", param_hint="SOURCE"
        )
    copying = _Copying()
    with (
        connect(source.url, source.collection, create=False) as read,
        _opened(to, collection, read.schema, storage) as index,
        Ledger(ledger_path(to, collection), to, collection) as ledger,
    ):
        count = read.count()
        if sync and not count:
            raise InvalidInput(
                f"{source} has no documents, so --sync would remove everything that was copied from it.\n"
                f'  Nothing was removed. To remove everything, drop the collection "{collection}".'
            )
        changes = changes_of(read.schema, index.schema, collection, str(source))
        for change in changes:
            warn(change)
        with copying.shown(count):
            try:
                report = ingest_collection(
                    read,
                    index,
                    ledger=ledger,
                    name=str(source),
                    sync=sync,
                    check=check,
                    wait_seconds=wait_seconds,
                    wanted=lambda: not copying.interrupted,
                    progress=copying.update,
                )
            except M3Error as error:
                error.add_note(f"  {copying.so_far}")
                raise
    if copying.interrupted:
        err.print(copying.so_far)
        raise typer.Exit(INTERRUPTED)
    if json:
        print_json({"url": redacted(to), "collection": collection, **_as_json(report, changes)})
    else:
        _print(report)


class _Copying:
    """Shows the progress of a copy, and ends it at the first Ctrl-C."""

    def __init__(self) -> None:
        self.interrupted = False
        self._total = self._stored = 0
        self._progress = Progress()

    @property
    def so_far(self) -> str:
        return f"{plural(self._stored, 'document')} stored by this run. Run the same command to continue."

    @contextlib.contextmanager
    def shown(self, total: int) -> Iterator[None]:
        self._total = total
        with (
            self._progress,
            acknowledging_interrupts(
                self._progress, lambda: "Stopping after what is under way", self._interrupt
            ),
        ):
            yield

    def update(self, so_far: IngestProgress) -> None:
        self._stored = so_far.documents
        self._progress.update("copying", so_far.documents + so_far.unchanged, self._total, unit="documents")

    def _interrupt(self) -> None:
        self.interrupted = True


def _opened(to: str, collection: str, source: Schema, storage: Storage | None) -> Index:
    """Open the target, or create it with the storage of the source, unless another one is given."""
    from m3_connectors.blocking import connect

    try:
        return connect(to, collection, storage=storage, create=False)
    except CollectionNotFound:
        return connect(to, collection, model=source.model, storage=storage or source.storage)


def _as_json(report: IngestReport, changes: Sequence[str]) -> dict[str, object]:
    counts = ("read", "unchanged", "documents", "replaced", "removed", "refused")
    return {
        **{name: getattr(report, name) for name in counts},
        "changes": list(changes),
        "missing": report.missing and dataclasses.asdict(report.missing),
        "seconds": round(report.seconds, 3),
    }


def _print(report: IngestReport) -> None:
    if report.missing is not None:
        print_verification(report.missing)
    parts = [f"{plural(report.documents, 'document')} copied"]
    for count, what in (
        (report.replaced, "of them replaced earlier ones"),
        (report.unchanged, "unchanged"),
        (report.removed, "removed"),
        (report.refused, "refused"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    out.print(f"  {' · '.join([*parts, duration(report.seconds)])}", markup=False, soft_wrap=True)
