"""``m3 index``: files and folders into a collection."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, cast

import typer

from m3_connectors.adding import AddReport, CutDocument
from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.backends.schema import LONG_DOCUMENTS, LongDocuments, Storage
from m3_connectors.backends.urls import shown
from m3_connectors.cli.console import INTERRUPTED, duration, err, out, plural, print_json, warn
from m3_connectors.cli.opening import open_index
from m3_connectors.cli.options import Collection, Debug, Json, Model, Url, check_store
from m3_connectors.cli.progress import Progress, acknowledging_interrupts
from m3_connectors.cli.reading import Reading
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, M3Error
from m3_connectors.readers import (
    CUT_SUFFIX,
    FORMATS,
    CutLetter,
    DeadLetter,
    DeadLetterFiles,
    Fields,
    ReadOptions,
    ReportFiles,
    check_sources,
    files_of,
    read_documents,
)
from m3_connectors.readers.inputs import Format
from m3_connectors.readers.inputs import shown as shown_path


def _known_choice(name: str | None) -> str | None:
    if name is not None and name not in LONG_DOCUMENTS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(LONG_DOCUMENTS)}.")
    return name


def _source(value: str) -> Path:
    if not value:  # Path("") is the current directory
        raise typer.BadParameter("a SOURCE is empty, as of a shell variable that is not set.")
    return Path(value)


def _checked(options: Callable[[str], ReadOptions]) -> Callable[[str | None], str | None]:
    """A check of one option of reading, which is impossible where its ReadOptions are."""

    def check(value: str | None) -> str | None:
        try:
            if value is not None:
                options(value)
        except InvalidInput as error:
            raise typer.BadParameter(str(error)) from None
        return value

    return check


def _delimiter(value: str) -> str:
    return "\t" if value in ("tab", "\\t") else value


def index(
    url: Url,
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE",
            parser=_source,
            help="JSON Lines, JSON, CSV, text, Markdown, HTML (each also .gz), folders of them, and - for stdin.",
        ),
    ],
    collection: Collection = DEFAULT_COLLECTION,
    model: Model = None,
    text: Annotated[
        str, typer.Option("--text", metavar="FIELD", help="Field or column of the text.")
    ] = "text",
    id: Annotated[
        str | None, typer.Option("--id", metavar="FIELD", help="Field of the id.", show_default="id or _id")
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            "--encoding",
            metavar="NAME",
            callback=_checked(lambda value: ReadOptions(encoding=value)),
            help="Encoding of files without a byte order mark.",
            show_default="UTF-8, or what a page declares",
        ),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            "--delimiter",
            metavar="CHARACTER",
            callback=_checked(lambda value: ReadOptions(delimiter=_delimiter(value))),
            help="What stands between cells of CSV and TSV; 'tab' for a tab.",
            show_default="found in the header",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            callback=_checked(lambda value: ReadOptions(format=cast(Format, value))),
            help="How - and files without a known ending are read: jsonl, json, csv, tsv, text, markdown, html, xhtml.",
            show_default="jsonl for -",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="GLOB",
            help="Leave out files and folders of this name, or, with a slash, of this path below SOURCE. Repeatable.",
        ),
    ] = None,
    long_documents: Annotated[
        str | None,
        typer.Option(
            "--long-documents",
            metavar="HOW",
            callback=_known_choice,
            help=f"How a new collection keeps long documents: {', '.join(LONG_DOCUMENTS)}. "
            "[dim]default: split, which is exact[/dim]",
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Read documents, encode them and store them; the same command again goes on or brings up to date.

    What cannot be read is skipped and written to SOURCE.dead.jsonl with its line number and the reason. A document that
    is longer than the model reads is stored whole but found by its beginning alone; SOURCE.cut.jsonl says which and how
    much of each is lost.
    """
    check_store(url, collection)
    options = ReadOptions(
        encoding,
        None if delimiter is None else _delimiter(delimiter),
        cast("Format | None", format),
        tuple(exclude or ()),
    )
    check_sources(sources, options)
    if url == "memory:":
        warn("memory: is empty again when this command ends; name a folder to keep it, such as qdrant:./data")
    # None leaves an existing collection's storage as it is; a name must be what it was made with.
    storage = None if long_documents is None else Storage(long_documents=cast(LongDocuments, long_documents))
    left_out = _store_folder(url)
    reading = Reading(files_of(sources, options, left_out))
    with DeadLetterFiles(Path.cwd()) as dead, ReportFiles(Path.cwd(), CUT_SUFFIX) as cut:
        run = _Followed(reading, cut)
        repeats = _Repeats(dead)
        mixed: dict[str, str] = {}

        def begin(source: Path) -> None:
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
            if first is None:  # before a collection is made, which would be bound to this model
                raise _nothing(sources, dead, excludes=bool(exclude))
            outcome = _store(url, collection, model, storage, itertools.chain([first], documents), run)
        except KeyboardInterrupt:
            err.print(f"{_safe(run.safe)}. Go on with the same command.")
            raise typer.Exit(INTERRUPTED) from None
        except M3Error as error:
            if run.safe:
                error.add_note(f"  {_safe(run.safe)}; go on with the same command.")
            raise
    for column, cell in itertools.islice(mixed.items(), _SHOWN_REPEATS):
        warn(
            f"column {column!r} is text, though it has numbers: {cell[:40]!r} is none that reads back as written"
        )
    if json:
        report = {"url": shown(url), "collection": collection, **_document(outcome, dead, run, repeats)}
        print_json({**report, "text_columns": mixed})
    else:
        out.print(f"  {_summary(outcome, dead, run, repeats)}", markup=False, soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What a run did: the report, documents before and after, how long it took, who wrote the vectors and how."""

    report: AddReport
    before: int
    after: int
    seconds: float
    model: str
    storage: Storage

    @property
    def replaced(self) -> int:
        """Documents that were there before."""
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
    run: _Followed,
) -> _Outcome:
    with open_index(url, collection, model, create=True, storage=storage) as index, run.shown():
        before = index.count()
        started = time.monotonic()
        report = index.add(run.documents(documents), progress=run.stored, on_cut=run.cut)
        seconds = time.monotonic() - started
        return _Outcome(report, before, index.count(), seconds, index.schema.model.name, index.schema.storage)


class _Repeats:
    """Records that a later one with the same id replaced: dead letters, of which the first few are shown."""

    def __init__(self, dead: DeadLetterFiles) -> None:
        self._dead = dead
        self.first: list[DeadLetter] = []

    def add(self, source: Path, letter: DeadLetter) -> None:
        """Write one to the source's dead letters."""
        self._dead.add(source, letter)
        if len(self.first) < _SHOWN_REPEATS:
            self.first.append(letter)


_SHOWN_REPEATS = 20


def _document(
    outcome: _Outcome, dead: DeadLetterFiles, run: _Followed, repeats: _Repeats
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


def _summary(outcome: _Outcome, dead: DeadLetterFiles, run: _Followed, repeats: _Repeats) -> str:
    report = outcome.report
    parts = [plural(report.written, "document")]
    if outcome.replaced:
        parts.append(f"{outcome.replaced:,} of them in place of earlier ones")
    if report.duplicates:
        first = f" ({repeats.first[0]})" if repeats.first else ""
        parts.append(f"{plural(len(report.duplicates), 'id')} came twice, the last was kept{first}")
    if report.truncated:
        lost = f"{report.lost_tokens:,} of their {run.cut_tokens:,} tokens"
        share = f"{report.lost_tokens / max(run.cut_tokens, 1):.0%}"
        parts.append(
            f"{report.truncated:,} longer than the model reads, cut: {lost} lost, {share} "
            f"(see {_names(run.cut_files.paths)})"
        )
    if report.pooled:
        parts.append(f"{report.pooled:,} long, their rows pooled by {outcome.storage.pool_factor}")
    if dead.count:
        parts.append(f"{dead.count:,} skipped (see {_names(dead.paths)})")
    rate = outcome.documents_per_second
    parts += [
        duration(outcome.seconds),
        f"{rate:,.0f} documents/s" if rate >= 10 else f"{rate:.1f} documents/s",
    ]
    return " · ".join(parts)


class _Followed:
    """One run, shown and noted: how much is read and stored, and which documents were cut.

    Args:
        reading: Knows where documents came from.
        cut: Where cut documents are named.
    """

    def __init__(self, reading: Reading, cut: ReportFiles) -> None:
        self.safe = 0
        """Documents stored so far."""
        self.cut_tokens = 0
        """Tokens of the whole texts that were cut."""
        self.cut_files = cut
        self._reading = reading
        self._stored_share = 0.0 if reading.share is not None else None
        self._progress: Progress | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows how far the run is; Ctrl-C is answered at once, though the current batch is finished."""
        with (
            Progress() as self._progress,
            acknowledging_interrupts(
                self._progress,
                lambda: f"Stopping after the current batch ({_safe(self.safe)})",
            ),
        ):
            yield

    def documents(self, documents: Iterator[Document]) -> Iterator[Document]:
        """The documents, followed as they pass."""
        for document in self._reading.following(documents):
            self._show()
            yield document

    def stored(self, count: int) -> None:
        """So many documents are stored."""
        self.safe = count
        self._stored_share = self._reading.share
        self._show()

    def cut(self, document: CutDocument) -> None:
        """A document that is stored was cut."""
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
            self._progress.update("storing", self.safe, unit="documents", share=share, note=note)


def _nothing(sources: list[Path], dead: DeadLetterFiles, *, excludes: bool) -> InvalidInput:
    if dead.first:
        return InvalidInput(
            f"nothing was indexed: {plural(dead.count, 'record')} skipped, the first {dead.first}\n"
            f"  All of them with their reasons: {_names(dead.paths)}"
        )
    what = "file of a format that is read" if any(source.is_dir() for source in sources) else "record"
    verb = "holds" if len(sources) == 1 else "hold"
    left_out = " that --exclude does not leave out" if excludes else ""
    return InvalidInput(
        f"{', '.join(map(shown_path, sources))} {verb} no {what}{left_out}.\n"
        f"  Formats that are read: {', '.join(FORMATS)}."
    )


def _store_folder(url: str) -> Path | None:
    """The folder of an embedded store, which may lie in a folder that is read."""
    path = url.partition(":")[2]  # as it stands: a folder's name may hold "#" and "?"
    return Path(path).expanduser() if path and not path.startswith("//") else None


def _safe(count: int) -> str:
    return f"{plural(count, 'document')} {'is' if count == 1 else 'are'} safe"


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)
