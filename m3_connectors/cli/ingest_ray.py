"""``m3 ingest --ray``: the processes of a Ray cluster read, encode and write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3_connectors.backends.registry import is_persistent
from m3_connectors.backends.urls import redacted
from m3_connectors.cli.console import warn
from m3_connectors.cli.ingest_run import Target, follow
from m3_connectors.cli.opening import DEFAULT_MODEL, MISMATCH_ADVICE, advice
from m3_connectors.cli.options import at_least
from m3_connectors.cli.reading import Reading
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, ModelMismatch, NotFound
from m3_connectors.readers import (
    DeadLetter,
    Fields,
    Found,
    Input,
    Outcome,
    ReadOptions,
    Skipped,
    Source,
    Url,
    files_to_read,
    letter_of,
    origin_name,
)
from m3_connectors.readers.inputs import is_stream, shown

if TYPE_CHECKING:
    from m3_connectors.cli.ingest_run import Result
    from m3_connectors.encoder.encoder import M3Encoder
    from m3_connectors.ingestion import IngestProgress

_WRITERS = 2

RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Read, encode and write in the processes of a Ray cluster: HOST:PORT, auto (the cluster of this machine) "
        "or local (start one here).",
        show_default="one process",
    ),
]
RayWorkers = Annotated[
    int | None,
    typer.Option(
        "--ray-workers",
        metavar="N",
        parser=at_least(1),
        help="The number of processes that encode, with --ray.",
        show_default="one per GPU, or per machine",
    ),
]
RayWriters = Annotated[
    int | None,
    typer.Option(
        "--ray-writers",
        metavar="N",
        parser=at_least(1),
        help="The number of processes that write to a server, with --ray.",
        show_default=str(_WRITERS),
    ),
]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The values of ``--ray``, ``--ray-workers`` and ``--ray-writers``."""

    address: str
    workers: int | None
    writers: int


def cluster_of(
    address: str | None,
    workers: int | None,
    writers: int | None,
    url: str,
    sources: Sequence[Source],
    unfit: Sequence[str],
) -> Cluster | None:
    """Return the cluster that a command asks for; None without one.

    Raises:
        typer.BadParameter: The options do not fit together, or the store or a source is bound to this process.
    """
    if address is None:
        if workers is not None or writers is not None:
            option = "--ray-workers" if workers is not None else "--ray-writers"
            raise typer.BadParameter("it has a meaning with --ray only. Add --ray local.", param_hint=option)
        return None
    if not is_persistent(url):
        raise typer.BadParameter(
            f"{redacted(url)} exists in this process only. Use a folder such as qdrant:./data, or a server.",
            param_hint="--ray",
        )
    if unfit:
        raise typer.BadParameter(
            f"it cannot be combined with {unfit[0]}, which needs one process. Leave one of them out.",
            param_hint="--ray",
        )
    for source in sources:
        if isinstance(source, Url):
            raise typer.BadParameter(
                f"{source} is a URL, which only this process can read. Give files or folders that all machines of the "
                "cluster have.",
                param_hint="--ray",
            )
    for source in filter(is_stream, sources):
        raise typer.BadParameter(
            f"{shown(source)} is a stream, which only this process can read. Give files or folders that all "
            "machines of the cluster have.",
            param_hint="--ray",
        )
    return Cluster(address, workers, _WRITERS if writers is None else writers)


class _Read:
    """Reads one file in a process of Ray."""

    def __init__(self, outcomes: Callable[[Input], Iterator[Outcome]]) -> None:
        self._outcomes = outcomes
        self._directory = Path.cwd()  # the process that reads may have another

    def __call__(self, input: Input) -> Iterator[Document | Skipped]:
        """Yield its documents, and what is skipped."""
        assert isinstance(input.path, Path), "URLs are refused before"
        at = dataclasses.replace(input, path=self._directory / input.path)
        for outcome in self._outcomes(at):
            yield outcome.document if isinstance(outcome, Found) else outcome


def store_on_ray(
    cluster: Cluster,
    target: Target,
    reading: Reading,
    sources: Sequence[Source],
    fields: Fields,
    options: ReadOptions,
    without: Path | None,
    nothing: Callable[[], InvalidInput],
    *,
    json: bool,
    sync: Sequence[str],
    check: bool,
    wait_seconds: float,
) -> None:
    """Store the documents of files in the processes of a cluster, and print the report.

    Raises:
        InvalidInput: There are no documents, the model of the collection must be named, or see ``ingest_on_ray``.
        ModelMismatch: Another model wrote the collection.
        typer.Exit: The user has interrupted the run.
    """
    from m3_connectors.ingestion import Chunking, Origin, Shard, ingest_on_ray, ledger_path
    from m3_connectors.ingestion.ray_stages import connect_when_free

    def skip(input: Input, skipped: Skipped) -> None:
        reading.skip(input.source, letter_of(input.path, skipped))

    def replaced(input: Input, id: str) -> None:
        reason = f"replaced: several documents have the id {id!r}, and the last remains (to keep all, use other ids)"
        reading.replaced(input.source, DeadLetter(shown(input.path), None, reason))

    def stored(now: IngestProgress) -> None:
        reading.stored(now)
        if reading.interrupted:
            raise KeyboardInterrupt

    def run() -> Result:
        for source in sources:
            reading.begin_source(source)
        inputs, outcomes = files_to_read(
            sources,
            fields=fields,
            options=options,
            on_dead_letter=reading.skip,
            on_mixed_column=reading.mixed_columns.__setitem__,
            on_notice=warn,
            without=without,
        )
        if not inputs:
            raise nothing()
        for input in inputs:
            reading.found_in(origin_name(input.source))
        with advice(MISMATCH_ADVICE, ModelMismatch), reading.shown():
            report = ingest_on_ray(
                inputs,
                _Read(outcomes),
                target.url,
                target.collection,
                encoder=_encoder_for(target),
                ledger=ledger_path(target.url, target.collection),
                address=cluster.address,
                encoders=cluster.workers,
                writers=cluster.writers,
                storage=target.storage,
                chunking=Chunking.parse(target.chunking),
                origin=lambda input: Origin(origin_name(input.source), origin_name(input.path)),
                sync=sync,
                unread=reading.may_have,
                check=check,
                shard=Shard.parse(target.shard or "1/1"),
                wait_seconds=wait_seconds,
                progress=stored,
                on_cut=reading.on_cut,
                on_refused=reading.refused,
                on_repeated=replaced,
                on_skipped=skip,
            )
        with connect_when_free(target.url, target.collection, {}) as index:
            return report, index.schema, index.count(), None

    follow(run, target, reading, nothing, json=json)


def _encoder_for(target: Target) -> Callable[[], M3Encoder]:
    """Return what creates the encoder on any machine of the cluster.

    Raises:
        InvalidInput: The collection does not record where its model is.
    """
    from m3_connectors.blocking import connect
    from m3_connectors.encoder.encoder import M3Encoder

    model, revision = target.model, None
    if model is None:
        try:
            with connect(target.url, target.collection, create=False) as index:
                written_by = index.schema.model
        except NotFound:
            model = DEFAULT_MODEL
        else:
            model, revision = written_by.name, written_by.revision
            if revision is None:
                raise InvalidInput(
                    f'collection "{target.collection}" was written by {written_by}, which is in a directory.\n'
                    "  Name it with --model DIRECTORY; all machines of the cluster must have it."
                )
    directory = Path(model).expanduser()
    return partial(M3Encoder, str(directory.resolve()) if directory.is_dir() else model, revision=revision)
