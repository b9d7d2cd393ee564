"""Follow the documents of a run: where each comes from, what could not be stored, and how much is done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from m3_connectors.cli.console import duration, err, plural, warn
from m3_connectors.cli.progress import Progress, acknowledging_interrupts
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import (
    CutLetter,
    DeadLetter,
    DeadLetterFiles,
    Fields,
    ReadOptions,
    ReportFiles,
    Source,
    Url,
    origin_name,
    read_documents,
)
from m3_connectors.readers.compression import is_compressed
from m3_connectors.readers.inputs import parents_of, shown
from m3_connectors.readers.urls import source_of

if TYPE_CHECKING:
    from m3_connectors.ingestion import IngestProgress, Origin, RefusedDocument, Wait
    from m3_connectors.ingestion.ledger import Version
    from m3_connectors.shards import EmbeddingsFolder, Part
    from m3_connectors.writing import CutDocument

_SHOWN_COLUMNS = 20
_FIRST_REPEATS = 20
_SAID_AGAIN_SECONDS = 30.0


class Reading:
    """Follows the documents of a run.

    Args:
        dead: The report files for what could not be read or stored.
        cut: The report files that list truncated documents.
        max_errors: How many records may be skipped before the run ends; None for any number.
        chunking: How documents are cut, which a dead letter notes for ``m3 ingest retry``.
        files: The files that will be read.
    """

    def __init__(
        self,
        dead: DeadLetterFiles,
        cut: ReportFiles,
        max_errors: int | None,
        chunking: str,
        files: Iterable[Source],
    ) -> None:
        self.dead = dead
        self.cut = cut
        self.interrupted = False
        """Whether the user has pressed Ctrl-C: nothing more is read."""
        self.stored_count = 0
        """The number of documents stored so far."""
        self.cut_tokens = 0
        """The number of tokens of the truncated texts before truncation."""
        self.repeats: list[DeadLetter] = []
        """The first records that later ones with the same id replaced."""
        self.mixed_columns: dict[str, str] = {}
        """Columns of numbers that are stored as text, each with the cell that is the reason."""
        self._max_errors = max_errors
        self._chunking = chunking
        self._source: Source = Path()
        self._file: Source = Path()
        self._origin: Origin | None = None
        self._typed: dict[str, Source] = {}
        self._unread: set[str] = set()
        self._empty: set[str] = set()
        """The sources in which no document was found so far."""
        self._errors = 0
        self._position = _Position(files)
        self._progress: Progress | None = None
        self._now: IngestProgress | None = None
        self._waiting_since: float | None = None

    def documents(
        self, sources: list[Source], fields: Fields, options: ReadOptions, without: Path | None
    ) -> Iterator[Document]:
        """Yield the documents until the user interrupts."""
        return self.following(
            read_documents(
                sources,
                fields=fields,
                options=options,
                on_source=self.begin_source,
                on_file=self._begin_file,
                on_dead_letter=self.skip,
                on_replaced=self.replaced,
                on_mixed_column=self.mixed_columns.__setitem__,
                on_notice=warn,
                without=without,
            )
        )

    def following(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the documents until the user interrupts, and show how much is read."""
        for document in documents:
            if self.interrupted:
                return
            self.found_in(self.origin().source)
            self._position.read(document)
            self._show()
            yield document

    def found_in(self, source: str) -> None:
        """Note that a source, by its name in the ledger, has documents."""
        self._empty.discard(source)

    def parts(self, folders: Iterable[EmbeddingsFolder]) -> Iterator[Part]:
        """Yield the documents of folders of embeddings, with these, until the user interrupts."""
        for folder in folders:
            self.begin_source(folder.path)
            self._begin_file(folder.path, folder.path)
            if not folder.is_finished:  # what it lacks may not have been written
                self._unread.add(origin_name(folder.path))
            for documents, embeddings in folder.parts():
                if self.interrupted:
                    return
                self.found_in(self.origin().source)
                for document in documents:
                    self._position.read(document)
                self._show()
                yield documents, embeddings

    def place(self) -> tuple[Source, Source]:
        """Return the source and the file of the document that was read last."""
        return self._source, self._file

    def origin(self) -> Origin:
        """Return where the document comes from that was read last."""
        assert self._origin is not None, "a file is begun before its first document"
        return self._origin

    def may_have(self, version: Version) -> bool:
        """Return whether the source of a document may still have it.

        It was not read completely, or had no document at all: a folder that is not mounted looks like an empty one.
        """
        if version.source in self._empty:
            return True
        return self.interrupted or not self._unread.isdisjoint((version.source, *parents_of(version.file)))

    def skip(self, source: Source, letter: DeadLetter) -> None:
        """Write a dead letter.

        Raises:
            InvalidInput: There are more than ``max_errors``.
        """
        self.dead.add(source, letter)
        if letter.stage == "column":
            return
        self._unread.add(origin_name(letter.path or letter.file))
        self._errors += 1
        if self._max_errors is not None and self._errors > self._max_errors:
            raise InvalidInput(
                f"more than {plural(self._max_errors, 'record')} cannot be stored, the last is {letter}\n"
                "  Fix them, or raise --max-errors."
            )

    def refused(self, refused: RefusedDocument) -> None:
        """Called for a document that cannot be cut, encoded or written."""
        source, file = self._as_typed(refused.origin)
        document = refused.document
        letter = DeadLetter(
            file,
            None,
            f"document {document.id!r}: {refused.reason}",
            refused.stage,
            source=refused.origin.source,
            path=refused.origin.file,
            chunking=self._chunking,
            id=document.id,
            text=document.text,
            metadata=dict(document.metadata),
        )
        self.skip(source, letter)

    def on_cut(self, cut: CutDocument, origin: Origin) -> None:
        """Called for each stored document, or chunk of one, that is longer than the maximum of the model."""
        source, file = self._as_typed(origin)
        tokens, kept = cut.token_count or 0, cut.kept_token_count or 0
        self.cut_tokens += tokens
        self.cut.write(source, CutLetter(cut.id, file, tokens, kept, round(cut.lost_share or 0.0, 4)))

    def stored(self, now: IngestProgress) -> None:
        """Called after each batch with how far the run is."""
        self.stored_count, self._now = now.documents, now
        self._position.store()
        self._show()

    def waiting(self, wait: Wait) -> None:
        """Called while the run waits for a store that is down."""
        if wait.is_over:
            self._waiting_since = None
            err.print(
                f"the store answers again after {duration(wait.waited_seconds)}; going on.",
                markup=False,
                soft_wrap=True,
            )
            return
        due = None if self._waiting_since is None else self._waiting_since + _SAID_AGAIN_SECONDS
        if due is None or wait.waited_seconds >= due:
            self._waiting_since = wait.waited_seconds
            err.print(
                f"waiting for the store, {duration(wait.waited_seconds)} of at most "
                f"{duration(wait.limit_seconds)}: {wait.reason}",
                markup=False,
                soft_wrap=True,
            )

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress. The first Ctrl-C ends the reading: what is under way is stored."""
        with (
            Progress() as self._progress,
            acknowledging_interrupts(
                self._progress,
                lambda: f"Stopping after the current batch ({stored(self.stored_count)})",
                self._interrupt,
            ),
        ):
            yield

    def warn(self) -> None:
        """Warn of columns whose type is not what it seems."""
        for column, cell in list(self.mixed_columns.items())[:_SHOWN_COLUMNS]:
            warn(
                f"column {column!r} contains numbers but is stored as text, because "
                f"{cell[:40]!r} is not a number that converts back to the same text"
            )

    def _interrupt(self) -> None:
        self.interrupted = True
        if self._waiting_since is not None:  # what is under way cannot be stored
            raise KeyboardInterrupt

    def begin_source(self, source: Source) -> None:
        """Called before a source is read."""
        self._source = source
        self._typed[origin_name(source)] = source
        self._empty.add(origin_name(source))
        self.dead.begin(source)
        self.cut.begin(source)

    def _begin_file(self, source: Source, file: Source) -> None:
        self._source, self._file = source, file
        self._from(origin_name(source), origin_name(file))
        self._position.begin_file(file)

    def _from(self, source: str, file: str) -> None:
        from m3_connectors.ingestion import Origin

        self._origin = Origin(source, file)

    def replaced(self, source: Source, letter: DeadLetter) -> None:
        """Called for each record that a later one with the same id replaces."""
        self.dead.add(source, letter)
        if len(self.repeats) < _FIRST_REPEATS:
            self.repeats.append(letter)

    def _as_typed(self, origin: Origin) -> tuple[Source, str]:
        """Return the source and the file of a document as the user typed them."""
        source, file = self._typed.get(origin.source) or source_of(origin.source), source_of(origin.file)
        if isinstance(source, Url) or isinstance(file, Url) or not file.is_relative_to(origin.source):
            return source, shown(file)
        return source, shown(source / file.relative_to(origin.source))

    def _show(self) -> None:
        if self._progress is not None:
            note = f"read {self._position.count:,}"
            if self._now is not None and self._now.unchanged:
                note += f", {self._now.unchanged:,} unchanged"
            share = self._position.stored_share
            details = "" if self._now is None else _details(self._now, self._errors)
            self._progress.update(
                "storing", self.stored_count, unit="documents", share=share, note=note, details=details
            )


def stored(count: int) -> str:
    """Return how many documents a run has stored, for messages."""
    return f"{plural(count, 'document')} stored"


def _details(now: IngestProgress, errors: int) -> str:
    """Return what else there is to say about a run: what encoder and store do, and what went wrong."""
    parts = [plural(now.chunks, "chunk")]
    if now.tokens_per_second is not None:
        parts.append(f"{now.tokens_per_second:,.0f} tokens/s")
    parts.append(f"encoder busy {now.encoder_busy_share:.0%}")
    if now.seconds_per_write is not None:
        parts.append(f"store {duration(now.seconds_per_write)} a batch")
    parts.append(f"{now.chunks_under_way:,} under way")
    if now.waiting_bytes:
        parts.append(f"{now.waiting_bytes / 1e6:,.0f} MB waiting")
    if errors:
        parts.append(f"{errors:,} skipped")
    return " · ".join(parts)


class _Position:
    """The approximate share of the bytes of all files that has been read, and stored."""

    def __init__(self, files: Iterable[Source]) -> None:
        self.count = 0
        """The number of documents read so far."""
        self._total_bytes = _total_bytes(files)
        self._finished_bytes = self._file_bytes = self._text_bytes = 0
        self.stored_share = 0.0 if self._total_bytes else None
        """The share of the bytes, 0 to 1, that had been read when the last batch was stored; None if unknown."""

    def begin_file(self, file: Source) -> None:
        self._finished_bytes += self._file_bytes
        self._file_bytes = self._text_bytes = 0
        if isinstance(file, Url):
            return
        with contextlib.suppress(OSError):  # the reader reports it
            self._file_bytes = file.stat().st_size

    def read(self, document: Document) -> None:
        self.count += 1
        self._text_bytes += len(document.text)

    def store(self) -> None:
        if self._total_bytes:
            # Within a file, the length of the texts approximates the position: texts are most of a file of records.
            read = self._finished_bytes + min(self._text_bytes, self._file_bytes)
            self.stored_share = min(read / self._total_bytes, 1.0)


def _total_bytes(files: Iterable[Source]) -> int | None:
    """Return the size of all files in bytes; None for streams and compressed files, where it is no guide."""
    total = 0
    try:
        for path in files:
            if isinstance(path, Url) or is_compressed(path) or not path.is_file():
                return None
            total += path.stat().st_size
    except OSError:
        return None
    return total or None
