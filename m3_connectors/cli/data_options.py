"""The options that the commands of ``m3 data`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import typer

from m3_connectors.cli.collection_source import CollectionSource
from m3_connectors.cli.ingest_curation import curation_of
from m3_connectors.cli.options import at_least
from m3_connectors.curation import Curation, Duplicates, Span
from m3_connectors.readers import Source
from m3_connectors.training_data.overlap import RUN_WORDS, KeptOut

T = TypeVar("T")

To = Annotated[
    Path,
    typer.Option(
        "--to", metavar="FILE", help="The file of pairs to write, .jsonl or .jsonl.gz; it is replaced."
    ),
]
KeepOut = Annotated[
    list[Path] | None,
    typer.Option(
        "--keep-out",
        metavar="PATH",
        help="Drop pairs that share text with this evaluation set: a BEIR folder, a folder of them, JSON Lines or "
        "text. Repeatable.",
    ),
]
RunWords = Annotated[
    int,
    typer.Option(
        "--keep-out-words",
        metavar="N",
        parser=at_least(1),
        help="How many words in a row count as shared text (characters in scripts without spaces).",
    ),
]
DEFAULT_RUN_WORDS = RUN_WORDS


def kept_out_of(places: list[Path] | None, run_words: int) -> KeptOut | None:
    """Return the evaluation texts of a command."""
    return KeptOut.read(places, run_words) if places else None


def only_sources(sources: list[Source | CollectionSource]) -> list[Source]:
    """Return the sources of a command that does not read collections.

    Raises:
        typer.BadParameter: One of them is a collection.
    """
    for source in sources:
        if isinstance(source, CollectionSource):
            raise typer.BadParameter(
                f"{source} is a collection. Give files, folders or URLs of documents.", param_hint="SOURCE"
            )
    return [source for source in sources if not isinstance(source, CollectionSource)]


def curation_with_defaults(
    defaults: Curation,
    languages: str | None,
    drop_duplicates: Duplicates | None,
    characters: Span | None,
    words: Span | None,
    min_letters: float | None,
    max_broken: float | None,
    max_repeated: float | None,
) -> Curation:
    """Return the curation that a command asks for; what is not given is as in ``defaults``."""
    return curation_of(
        languages,
        True,
        _chosen(drop_duplicates, defaults.duplicates),
        _chosen(characters, defaults.characters),
        _chosen(words, defaults.words),
        _chosen(min_letters, defaults.min_letters),
        _chosen(max_broken, defaults.max_broken),
        _chosen(max_repeated, defaults.max_repeated),
    )


def _chosen(given: T | None, default: T | None) -> T | None:
    return default if given is None else given
