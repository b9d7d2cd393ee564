"""``m3 ingest``: store files and folders in a collection, and only what is new or changed; compare both."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3_connectors.adding import CutDocument
from m3_connectors.backends.registry import DEFAULT_COLLECTION, is_persistent
from m3_connectors.backends.urls import redacted
from m3_connectors.cli.console import INTERRUPTED, duration, err, out, plural, print_json, warn
from m3_connectors.cli.ingest_curation import (
    Characters,
    Curating,
    DropDuplicates,
    Languages,
    MaxBroken,
    MaxRepeated,
    MinLetters,
    TagLanguages,
    Words,
    curation_of,
)
from m3_connectors.cli.ingest_dry_run import DryRun, Show, show_first
from m3_connectors.cli.ingest_verify import To, print_verification, verify
from m3_connectors.cli.opening import create_index
from m3_connectors.cli.options import (
    Collection,
    Components,
    Debug,
    Json,
    Model,
    RunByDefault,
    at_least,
    check_store,
)
from m3_connectors.cli.progress import Progress, acknowledging_interrupts
from m3_connectors.cli.sources import (
    Delimiter,
    Encoding,
    Exclude,
    FormatName,
    IdField,
    LongDocuments,
    MainContent,
    Mapping,
    MaxExpandedGib,
    MaxExpansion,
    MetadataFields,
    MultivectorDtype,
    PoolFactor,
    PoolFromRows,
    Query,
    Sources,
    TextField,
    fields_of,
    read_options,
    storage_of,
    store_folder,
    with_query,
)
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, M3Error
from m3_connectors.readers import (
    CUT_SUFFIX,
    CutLetter,
    DeadLetter,
    DeadLetterFiles,
    Fields,
    Limits,
    ReadOptions,
    ReportFiles,
    Source,
    check_sources,
    origin_name,
    read_documents,
)
from m3_connectors.readers.inputs import is_stream, parents_of, shown

if TYPE_CHECKING:
    from m3_connectors.ingestion import IngestReport, Origin
    from m3_connectors.ingestion.ledger import Version

_NAMED = 20

ingest = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    help="Store what is new or changed with m3 ingest SOURCE… --to URL, or compare with m3 ingest verify --to URL.",
)

ingest.command()(verify)


def _check_chunking(value: str) -> str:
    from m3_connectors.ingestion import Chunking

    try:
        Chunking.parse(value)
    except InvalidInput as error:
        raise typer.BadParameter(str(error)) from None
    return value


@ingest.command()
def run(
    sources: Sources,
    to: To,
    collection: Collection = DEFAULT_COLLECTION,
    model: Model = None,
    chunk: Annotated[
        str,
        typer.Option(
            "--chunk",
            metavar="HOW",
            callback=_check_chunking,
            help="none, tokens:512:64 (tokens of the model and overlap) or headings:512 (Markdown sections).",
        ),
    ] = "none",
    sync: Annotated[
        bool, typer.Option("--sync", help="Remove the documents that SOURCE no longer has.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare store and ledger first, as m3 ingest verify does.")
    ] = False,
    max_errors: Annotated[
        int | None,
        typer.Option(
            "--max-errors",
            metavar="N",
            parser=at_least(0),
            help="Stop when more than N records cannot be read.",
            show_default="no limit",
        ),
    ] = None,
    text: TextField = "text",
    id: IdField = None,
    metadata: MetadataFields = None,
    mapping: Mapping = None,
    query: Query = None,
    main_content: MainContent = False,
    max_expansion: MaxExpansion = Limits.expansion,
    max_expanded_gib: MaxExpandedGib = Limits.expanded_bytes // 2**30,
    dry_run: DryRun = False,
    show: Show = 10,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    format: FormatName = None,
    exclude: Exclude = None,
    languages: Languages = None,
    tag_languages: TagLanguages = False,
    drop_duplicates: DropDuplicates = None,
    characters: Characters = None,
    words: Words = None,
    min_letters: MinLetters = None,
    max_broken: MaxBroken = None,
    max_repeated: MaxRepeated = None,
    long_documents: LongDocuments = None,
    pool_factor: PoolFactor = None,
    pool_from_rows: PoolFromRows = None,
    components: Components = None,
    multivector_dtype: MultivectorDtype = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Store the documents of files and folders. Run it again to continue, or to update what has changed.

    A ledger on this machine records what the store has acknowledged: what is unchanged is not encoded again. Records
    that cannot be read are skipped and written to SOURCE.dead.jsonl with the reason, and documents that curation drops
    to SOURCE.dropped.jsonl.
    """
    from m3_connectors.ingestion import Chunking, Ledger, ledger_path

    check_store(to, collection)
    options = read_options(
        encoding,
        delimiter,
        format,
        exclude,
        main_content=main_content,
        max_expansion=max_expansion,
        max_expanded_gib=max_expanded_gib,
    )
    sources = with_query(sources, query)
    fields = fields_of(text, id, metadata, mapping)
    check_sources(sources, options)
    curation = curation_of(
        languages, tag_languages, drop_duplicates, characters, words, min_letters, max_broken, max_repeated
    )
    if dry_run:
        show_first(
            sources, fields, options, curation, Chunking.parse(chunk), model=model, count=show, json=json
        )
        return
    if not is_persistent(to):
        raise typer.BadParameter(
            f"{redacted(to)} is discarded when this command ends. Use a folder such as qdrant:./data.",
            param_hint="--to",
        )
    if sync and any(map(is_stream, sources)):
        raise typer.BadParameter(
            "--sync removes what a source no longer has, which a stream cannot say. Give files or folders.",
            param_hint="--sync",
        )
    storage = storage_of(components, multivector_dtype, long_documents, pool_factor, pool_from_rows)
    with (
        DeadLetterFiles(Path.cwd()) as dead,
        ReportFiles(Path.cwd(), CUT_SUFFIX) as cut,
        Ledger(ledger_path(to, collection), to, collection) as ledger,
        Curating(curation, sources, Path.cwd(), ledger.path) as curating,
    ):
        reading = _Reading(dead, cut, max_errors)
        documents = curating.curated(
            reading.documents(sources, fields, options, store_folder(to)),
            reading.place,
        )
        first = next(documents, None)
        if first is None:  # also with --sync: a folder that is not mounted looks like an empty one
            raise curating.nothing_kept() or _nothing_read(sources, dead)
        with create_index(to, collection, model, storage) as index, reading.shown():
            from m3_connectors.ingestion import ingest as run_ingest

            try:
                report = run_ingest(
                    itertools.chain([first], documents),
                    index,
                    ledger=ledger,
                    chunking=Chunking.parse(chunk),
                    origin=reading.origin,
                    sync=[] if not sync else [origin_name(source) for source in sources],
                    unread=reading.may_have,
                    check=check,
                    progress=reading.stored,
                    on_cut=reading.on_cut,
                    on_refused=reading.refused,
                )
            except M3Error as error:
                error.add_note(f"  {_so_far(reading.done)}. Run the same command to continue.")
                raise
    if reading.interrupted:
        err.print(f"{_so_far(reading.done)}. Run the same command to continue.")
        raise typer.Exit(INTERRUPTED)
    if json:
        about = {"url": redacted(to), "collection": collection, "chunking": chunk}
        print_json({**about, **_as_json(report, dead, cut), "curation": curating.as_json()})
    else:
        _print(report, dead, cut, curating.summary(sync))


class _Reading:
    """Follows the documents of a run: where each comes from, what could not be read, how much is stored."""

    def __init__(self, dead: DeadLetterFiles, cut: ReportFiles, max_errors: int | None) -> None:
        self._dead = dead
        self._cut = cut
        self._max_errors = max_errors
        self._source: Source = Path()
        self._file: Source = Path()
        self._unread: set[str] = set()
        self._progress: Progress | None = None
        self._errors = 0
        self.interrupted = False
        self.done = 0

    def documents(
        self, sources: list[Source], fields: Fields, options: ReadOptions, without: Path | None
    ) -> Iterator[Document]:
        """Yield the documents until the user interrupts."""
        documents = read_documents(
            sources,
            fields=fields,
            options=options,
            on_source=self._begin_source,
            on_file=self._begin_file,
            on_dead_letter=self._skip,
            on_replaced=self._dead.add,
            on_mixed_column=self._mixed,
            on_notice=warn,
            without=without,
        )
        for document in documents:
            if self.interrupted:
                return
            yield document

    def place(self) -> tuple[Source, Source]:
        """Return the source and the file of the document that was read last."""
        return self._source, self._file

    def origin(self) -> Origin:
        """Return where the document comes from that was read last."""
        from m3_connectors.ingestion import Origin

        return Origin(origin_name(self._source), origin_name(self._file))

    def may_have(self, version: Version) -> bool:
        """Return whether the source of a document may still have it, because it was not read completely."""
        return self.interrupted or not self._unread.isdisjoint((version.source, *parents_of(version.file)))

    def refused(self, document: Document, reason: str) -> None:
        """Called for a document that cannot be cut."""
        self._skip(self._source, DeadLetter(shown(self._file), None, f"document {document.id!r}: {reason}"))

    def on_cut(self, document: CutDocument) -> None:
        """Called for a stored chunk that is longer than the maximum of the model."""
        tokens, kept = document.token_count or 0, document.kept_token_count or 0
        share = round(document.lost_share or 0.0, 4)
        self._cut.write(self._source, CutLetter(document.id, shown(self._source), tokens, kept, share))

    def stored(self, count: int, unchanged: int) -> None:
        """Called after each batch."""
        self.done = count
        if self._progress is not None:
            self._progress.update("storing", count, unit="documents", note=f"{unchanged:,} unchanged")

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress. The first Ctrl-C ends the reading: what is under way is stored."""
        with (
            Progress() as self._progress,
            acknowledging_interrupts(
                self._progress, lambda: "Stopping after what is under way", self._interrupt
            ),
        ):
            yield

    def _interrupt(self) -> None:
        self.interrupted = True

    def _begin_source(self, source: Source) -> None:
        self._source = source
        self._dead.begin(source)
        self._cut.begin(source)

    def _begin_file(self, source: Source, file: Source) -> None:
        self._source, self._file = source, file

    def _mixed(self, column: str, cell: str) -> None:
        warn(f"column {column!r} contains numbers but is stored as text, because of {cell[:40]!r}")

    def _skip(self, source: Source, letter: DeadLetter) -> None:
        self._unread.add(origin_name(letter.file))
        self._dead.add(source, letter)
        self._errors += 1
        if self._max_errors is not None and self._errors > self._max_errors:
            raise InvalidInput(
                f"more than {plural(self._max_errors, 'record')} cannot be read, the last is {letter}\n"
                "  Fix them, or raise --max-errors."
            )


def _nothing_read(sources: list[Source], dead: DeadLetterFiles) -> InvalidInput:
    if dead.first:
        return InvalidInput(
            f"nothing was stored: {plural(dead.count, 'record')} skipped, the first is {dead.first}\n"
            f"  Fix the records, which are listed with their reasons in {_names(dead)}"
        )
    return InvalidInput(
        f"{', '.join(map(shown, sources))}: no documents found.\n"
        "  Nothing was stored or removed. To remove everything, drop the collection."
    )


def _as_json(report: IngestReport, dead: DeadLetterFiles, cut: ReportFiles) -> dict[str, object]:
    return {
        "read": report.read,
        "unchanged": report.unchanged,
        "documents": report.documents,
        "chunks": report.chunks,
        "replaced": report.replaced,
        "removed": report.removed,
        "kept": list(report.kept[:_NAMED]),
        "kept_count": len(report.kept),
        "skipped": dead.count,
        "dead_letters": [str(path) for path in dead.paths],
        "truncated": report.add.truncated,
        "lost_tokens": report.add.lost_tokens,
        "cut_documents": [str(path) for path in cut.paths],
        "missing": report.missing and dataclasses.asdict(report.missing),
        "seconds": round(report.seconds, 3),
        "encoder_busy_share": round(report.encoder_busy_share, 3),
    }


def _print(report: IngestReport, dead: DeadLetterFiles, cut: ReportFiles, dropped: str | None) -> None:
    if report.missing is not None:
        print_verification(report.missing)
    parts = [plural(report.documents, "document")]
    if report.chunks != report.documents:
        parts.append(plural(report.chunks, "chunk"))
    for count, what in (
        (report.replaced, "of them replaced earlier ones"),
        (report.unchanged, "unchanged"),
        (report.removed, "removed"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    if report.add.truncated:
        parts.append(
            f"{report.add.truncated:,} truncated to the model's limit, {report.add.lost_tokens:,} tokens lost "
            f"(see {_names(cut)})"
        )
    if dead.count:
        parts.append(f"{dead.count:,} skipped (see {_names(dead)})")
    if dropped is not None:
        parts.append(dropped)
    parts.append(duration(report.seconds))
    if report.documents:
        parts.append(f"encoder busy {report.encoder_busy_share:.0%}")
    out.print(f"  {' · '.join(parts)}", markup=False, soft_wrap=True)
    if report.kept:
        names = ", ".join(map(repr, report.kept[:3]))
        warn(
            f"{plural(len(report.kept), 'document')} not found and not removed, because a file could not be read "
            f"completely: {names}{', …' if len(report.kept) > 3 else ''}"
        )


def _so_far(count: int) -> str:
    return f"{plural(count, 'document')} stored by this run"


def _names(files: ReportFiles) -> str:
    return ", ".join(path.name for path in files.paths)
