"""``m3 index``: store files and folders in a collection."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import typer

from m3_connectors.adding import AddReport, CutDocument
from m3_connectors.backends.registry import DEFAULT_COLLECTION, is_persistent
from m3_connectors.backends.schema import Storage
from m3_connectors.backends.urls import redacted
from m3_connectors.cli.console import INTERRUPTED, duration, err, out, plural, print_json, warn
from m3_connectors.cli.opening import create_index
from m3_connectors.cli.options import (
    Collection,
    Components,
    Debug,
    Json,
    Model,
    Url,
    check_store,
)
from m3_connectors.cli.progress import Progress, acknowledging_interrupts
from m3_connectors.cli.reading import Reading
from m3_connectors.cli.sources import (
    Delimiter,
    Encoding,
    Exclude,
    FormatName,
    IdField,
    LongDocuments,
    MultivectorDtype,
    PoolFactor,
    PoolFromRows,
    Sources,
    TextField,
    read_options,
    storage_of,
    store_folder,
)
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, M3Error
from m3_connectors.readers import (
    CUT_SUFFIX,
    FORMATS,
    CutLetter,
    DeadLetter,
    DeadLetterFiles,
    Fields,
    ReportFiles,
    Source,
    check_sources,
    files_of,
    read_documents,
)
from m3_connectors.readers.inputs import is_folder
from m3_connectors.readers.inputs import shown as shown_path


def index(
    url: Url,
    sources: Sources,
    collection: Collection = DEFAULT_COLLECTION,
    model: Model = None,
    text: TextField = "text",
    id: IdField = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    format: FormatName = None,
    exclude: Exclude = None,
    long_documents: LongDocuments = None,
    pool_factor: PoolFactor = None,
    pool_from_rows: PoolFromRows = None,
    components: Components = None,
    multivector_dtype: MultivectorDtype = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Read documents, encode them and store them. Run the same command again to continue or to update.

    Records that cannot be read are skipped and written to SOURCE.dead.jsonl with the line number and the
    reason. A document that exceeds the model's limit is stored with its whole text, but only its beginning is
    encoded; SOURCE.cut.jsonl lists these documents and how much of each is lost.
    """
    check_store(url, collection)
    options = read_options(encoding, delimiter, format, exclude)
    check_sources(sources, options)
    if not is_persistent(url):
        warn(
            f"{redacted(url)} is discarded when this command ends; use a folder such as qdrant:./data to keep it"
        )
    storage = storage_of(components, multivector_dtype, long_documents, pool_factor, pool_from_rows)
    left_out = store_folder(url)
    reading = Reading(files_of(sources, options, left_out))
    with DeadLetterFiles(Path.cwd()) as dead, ReportFiles(Path.cwd(), CUT_SUFFIX) as cut:
        run = _RunTracker(reading, cut)
        repeats = _Repeats(dead)
        mixed: dict[str, str] = {}

        def begin(source: Source) -> None:
            dead.begin(source)
            cut.begin(source)

        try:
            documents = read_documents(
                sources,
                # A document without a word would still be a hit of many questions.
                fields=Fields(text, id, may_be_blank=False),
                options=options,
                on_source=begin,
                on_file=reading.begin_file,
                on_dead_letter=dead.add,
                on_replaced=repeats.add,
                on_mixed_column=mixed.__setitem__,
                without=left_out,
            )
            first = next(documents, None)
            if first is None:  # checked before a collection is created and bound to this model
                raise _nothing_indexed(sources, dead, excludes=bool(exclude))
            outcome = _store(url, collection, model, storage, itertools.chain([first], documents), run)
        except KeyboardInterrupt:
            err.print(f"{_stored(run.stored_count)}. Run the same command to continue.")
            raise typer.Exit(INTERRUPTED) from None
        except M3Error as error:
            if run.stored_count:
                error.add_note(f"  {_stored(run.stored_count)}. Run the same command to continue.")
            raise
    for column, cell in itertools.islice(mixed.items(), _SHOWN_REPEATS):
        warn(
            f"column {column!r} contains numbers but is stored as text, because "
            f"{cell[:40]!r} is not a number that converts back to the same text"
        )
    if json:
        report = {"url": redacted(url), "collection": collection, **_document(outcome, dead, run, repeats)}
        print_json({**report, "text_columns": mixed})
    else:
        out.print(f"  {_summary(outcome, dead, run, repeats)}", markup=False, soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """The result of a run: report, document counts before and after, time, model and storage."""

    report: AddReport
    before: int
    after: int
    seconds: float
    model: str
    storage: Storage

    @property
    def replaced(self) -> int:
        """The number of documents that replaced earlier ones."""
        return self.before + self.report.written - self.after

    @property
    def documents_per_second(self) -> float:
        return self.report.written / max(self.seconds, 1e-9)


def _store(
    url: str,
    collection: str,
    model: str | None,
    storage: Storage | None,
    documents: Iterator[Document],
    run: _RunTracker,
) -> _Outcome:
    with create_index(url, collection, model, storage) as index, run.shown():
        before = index.count()
        started = time.monotonic()
        report = index.add(run.documents(documents), progress=run.stored, on_cut=run.cut)
        seconds = time.monotonic() - started
        return _Outcome(report, before, index.count(), seconds, index.schema.model.name, index.schema.storage)


class _Repeats:
    """Records that a later record with the same id replaced: dead letters, of which the first are shown."""

    def __init__(self, dead: DeadLetterFiles) -> None:
        self._dead = dead
        self.first: list[DeadLetter] = []

    def add(self, source: Source, letter: DeadLetter) -> None:
        """Write a replaced record to the dead letters of its source."""
        self._dead.add(source, letter)
        if len(self.first) < _SHOWN_REPEATS:
            self.first.append(letter)


_SHOWN_REPEATS = 20


def _document(
    outcome: _Outcome, dead: DeadLetterFiles, run: _RunTracker, repeats: _Repeats
) -> dict[str, object]:
    return {
        "model": outcome.model,
        "documents": outcome.report.written,
        "replaced": outcome.replaced,
        "duplicates": list(outcome.report.duplicates),
        "repeats": [dataclasses.asdict(letter) for letter in repeats.first],
        "truncated": outcome.report.truncated,
        "lost_tokens": outcome.report.lost_tokens,
        "cut_documents": [str(path) for path in run.cut_files.paths],
        "pooled": outcome.report.pooled,
        "skipped": dead.count,
        "dead_letters": [str(path) for path in dead.paths],
        "count": outcome.after,
        "seconds": round(outcome.seconds, 3),
        "documents_per_second": round(outcome.documents_per_second, 3),
    }


def _summary(outcome: _Outcome, dead: DeadLetterFiles, run: _RunTracker, repeats: _Repeats) -> str:
    report = outcome.report
    parts = [plural(report.written, "document")]
    if outcome.replaced:
        parts.append(f"{outcome.replaced:,} of them replaced earlier ones")
    if report.duplicates:
        first = f" ({repeats.first[0]})" if repeats.first else ""
        parts.append(
            f"{plural(len(report.duplicates), 'id')} occurred more than once, the last was kept{first}"
        )
    if report.truncated:
        lost = f"{report.lost_tokens:,} of their {run.cut_tokens:,} tokens"
        share = f"{report.lost_tokens / max(run.cut_tokens, 1):.0%}"
        parts.append(
            f"{report.truncated:,} truncated to the model's limit: {lost} lost, {share} "
            f"(see {_names(run.cut_files.paths)})"
        )
    if report.pooled:
        parts.append(f"{report.pooled:,} long, with rows pooled by {outcome.storage.pool_factor}")
    if dead.count:
        parts.append(f"{dead.count:,} skipped (see {_names(dead.paths)})")
    rate = outcome.documents_per_second
    parts += [
        duration(outcome.seconds),
        f"{rate:,.0f} documents/s" if rate >= 10 else f"{rate:.1f} documents/s",
    ]
    return " · ".join(parts)


class _RunTracker:
    """Follows one run: shows how much is read and stored, and records which documents were truncated.

    Args:
        reading: Maps documents to the files that they came from.
        cut: The report files that list truncated documents.
    """

    def __init__(self, reading: Reading, cut: ReportFiles) -> None:
        self.stored_count = 0
        """The number of documents stored so far."""
        self.cut_tokens = 0
        """The number of tokens of the truncated texts before truncation."""
        self.cut_files = cut
        self._reading = reading
        self._stored_share = 0.0 if reading.share is not None else None
        self._progress: Progress | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress. Ctrl-C is acknowledged at once, and the run stops after the current batch."""
        with (
            Progress() as self._progress,
            acknowledging_interrupts(
                self._progress,
                lambda: f"Stopping after the current batch ({_stored(self.stored_count)})",
            ),
        ):
            yield

    def documents(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Yield the documents, and update the progress for each."""
        for document in self._reading.following(documents):
            self._show()
            yield document

    def stored(self, count: int) -> None:
        """Called after each batch with the number of documents stored so far."""
        self.stored_count = count
        self._stored_share = self._reading.share
        self._show()

    def cut(self, document: CutDocument) -> None:
        """Called for each stored document that was truncated."""
        source, file = self._reading.origin(document.id)
        tokens, kept = document.token_count or 0, document.kept_token_count or 0
        self.cut_tokens += tokens
        self.cut_files.write(
            source,
            CutLetter(document.id, shown_path(file), tokens, kept, round(document.lost_share or 0.0, 4)),
        )

    def _show(self) -> None:
        if self._progress is not None:
            note = f"read {self._reading.count:,}"
            share = self._stored_share
            self._progress.update("storing", self.stored_count, unit="documents", share=share, note=note)


def _nothing_indexed(sources: list[Source], dead: DeadLetterFiles, *, excludes: bool) -> InvalidInput:
    if dead.first:
        return InvalidInput(
            f"nothing was indexed: {plural(dead.count, 'record')} skipped, the first is {dead.first}\n"
            f"  Fix the records, which are listed with their reasons in {_names(dead.paths)}"
        )
    what = "files of a supported format" if any(map(is_folder, sources)) else "records"
    verb = "contains" if len(sources) == 1 else "contain"
    left_out = " that --exclude does not leave out" if excludes else ""
    return InvalidInput(
        f"{', '.join(map(shown_path, sources))} {verb} no {what}{left_out}.\n"
        f"  Supported formats: {', '.join(FORMATS)}."
    )


def _stored(count: int) -> str:
    return f"{plural(count, 'document')} stored"


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)
