"""The curation of ``m3 ingest``: its options, the report of each dropped document, and the counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self, TypeVar

import typer

from m3_connectors.backends.registry import is_persistent
from m3_connectors.cli.console import plural, warn
from m3_connectors.curation import Curation, Curator, Dropped, Duplicates, Span
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import DroppedLetter, ReportFiles, Source
from m3_connectors.readers.inputs import shown

if TYPE_CHECKING:
    from m3_connectors.ingestion import Ledger

T = TypeVar("T")

_PANEL = "Curation: what is dropped before it is stored"


def _parser(parse: Callable[[str], T]) -> Callable[[str], T]:
    def checked(value: str) -> T:
        try:
            return parse(value)
        except InvalidInput as error:
            raise typer.BadParameter(str(error)) from None

    return checked


def _share(value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise typer.BadParameter(f"'{value}' is not a share; give a number from 0 to 1.")
    return share


def _languages(value: str) -> tuple[str, ...]:
    return tuple(filter(None, (code.strip() for code in value.split(","))))


Languages = Annotated[
    str | None,
    typer.Option(
        "--languages",
        metavar="CODES",
        help="Keep documents in these languages, such as en,de; implies --tag-languages.",
        rich_help_panel=_PANEL,
    ),
]
TagLanguages = Annotated[
    bool,
    typer.Option(
        "--tag-languages",
        help="Store the detected language and its confidence as metadata.",
        rich_help_panel=_PANEL,
    ),
]
DropDuplicates = Annotated[
    Duplicates | None,
    typer.Option(
        "--drop-duplicates",
        metavar="HOW",
        parser=_parser(Duplicates.parse),
        help="exact, near (at least 0.8 similar) or near:0.9. The first document stays.",
        rich_help_panel=_PANEL,
    ),
]
Characters = Annotated[
    Span | None,
    typer.Option(
        "--characters",
        metavar="MIN:MAX",
        parser=_parser(Span.parse),
        help="Number of characters of a text; either limit may be left out, such as 50:",
        rich_help_panel=_PANEL,
    ),
]
Words = Annotated[
    Span | None,
    typer.Option(
        "--words",
        metavar="MIN:MAX",
        parser=_parser(Span.parse),
        help="Number of words of a text.",
        rich_help_panel=_PANEL,
    ),
]
MinLetters = Annotated[
    float | None,
    typer.Option(
        "--min-letters",
        metavar="SHARE",
        parser=_share,
        help="Smallest share of letters among the characters that are not white space, 0 to 1.",
        rich_help_panel=_PANEL,
    ),
]
MaxBroken = Annotated[
    float | None,
    typer.Option(
        "--max-broken",
        metavar="SHARE",
        parser=_share,
        help="Largest share of control, replacement and private-use characters, 0 to 1.",
        rich_help_panel=_PANEL,
    ),
]
MaxRepeated = Annotated[
    float | None,
    typer.Option(
        "--max-repeated",
        metavar="SHARE",
        parser=_share,
        help="Largest share of text in lines that occurred before in it, 0 to 1.",
        rich_help_panel=_PANEL,
    ),
]


def curation_of(
    languages: str | None,
    tag_languages: bool,
    drop_duplicates: Duplicates | None,
    characters: Span | None,
    words: Span | None,
    min_letters: float | None,
    max_broken: float | None,
    max_repeated: float | None,
) -> Curation:
    """Return the curation that a command asks for."""
    return Curation(
        characters=characters,
        words=words,
        min_letters=min_letters,
        max_broken=max_broken,
        max_repeated=max_repeated,
        tag_languages=tag_languages,
        languages=None if languages is None else _languages(languages),
        duplicates=drop_duplicates,
    )


class Curating:
    """Curates the documents of a command and writes each dropped one to ``SOURCE.dropped.jsonl``; a context manager.

    Args:
        curation: What is dropped.
        sources: The sources, whose reports of an earlier run are removed.
        suffix: The suffix of the reports.
        url: The store, whose ledger says which documents it may hold.
        collection: The name of the collection.

    Raises:
        InvalidInput: A language cannot be detected, or a report cannot be written.
        MissingDependency: A package that a stage needs is not installed.
    """

    def __init__(
        self,
        curation: Curation,
        sources: Sequence[Source],
        suffix: str,
        url: str,
        collection: str,
    ) -> None:
        self._curator = Curator(curation.stages(), self._drop)
        self._asked = bool(curation)
        self._files = ReportFiles(Path.cwd(), suffix)
        self._store = (url, collection)
        self._ledger: Ledger | None = None
        self._known = 0
        for source in sources:
            self._files.begin(source)

    def curated(
        self, documents: Iterable[Document], place: Callable[[], tuple[Source, Source]]
    ) -> Iterator[Document]:
        """Yield the documents that are kept; ``place`` returns source and file of the one that was read last."""
        self._place = place
        return self._curator.curated(documents)

    def nothing_kept(self) -> InvalidInput | None:
        """Return the error that says that all documents were dropped; None if that is not so."""
        if self._curator.report.kept or not self._curator.report.dropped:
            return None
        return InvalidInput(
            f"nothing was stored or removed: curation dropped all {plural(self._curator.report.read, 'document')} "
            f"({self._counts()}).\n  Change the options. {self._names()} lists the documents with their reasons."
        )

    def summary(self, *, sync: bool) -> str | None:
        """Return the words for the last line of the command, and warn of dropped documents that stay stored."""
        if not self._curator.report.dropped:
            return None
        if self._known and not sync:
            warn(
                f"{plural(self._known, 'dropped document')} may be in the collection from an earlier run; "
                "--sync removes what is dropped"
            )
        return f"{self._curator.report.dropped_count:,} dropped: {self._counts()} (see {self._names()})"

    def as_json(self) -> dict[str, object] | None:
        """Return the report as JSON takes it; None if no curation was asked for."""
        if not self._asked:
            return None
        report = self._curator.report
        return {
            "read": report.read,
            "kept": report.kept,
            "dropped": dict(report.dropped),
            "dropped_known": self._known,
            "dropped_documents": [str(path) for path in self._files.paths],
            "languages": dict(report.languages),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)
        self._curator.__exit__(kind, error, trace)
        if self._ledger is not None:
            self._ledger.close()

    def _drop(self, dropped: Dropped) -> None:
        source, file = self._place()
        id = dropped.document.id
        known = self._is_known(id)
        self._known += known
        value, original = dropped.value, dropped.duplicate_of
        letter = DroppedLetter(id, shown(file), dropped.stage, dropped.reason, value, original, known)
        self._files.write(source, letter)

    def _is_known(self, id: str) -> bool:
        if self._ledger is None:
            from m3_connectors.ingestion import Ledger, ledger_path

            path = ledger_path(*self._store) if is_persistent(self._store[0]) else None
            self._ledger = Ledger(path if path is not None and path.exists() else None)
        return id in self._ledger.look_up([id])

    def _counts(self) -> str:
        return ", ".join(f"{count:,} {stage}" for stage, count in self._curator.report.dropped.items())

    def _names(self) -> str:
        return ", ".join(path.name for path in self._files.paths)
