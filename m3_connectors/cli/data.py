"""``m3 data``: training pairs from documents, parallel sentences, labelled sets and generated questions."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from m3_connectors.cli.console import warn
from m3_connectors.cli.data_options import (
    DEFAULT_RUN_WORDS,
    KeepOut,
    RunWords,
    To,
    curation_with_defaults,
    kept_out_of,
    only_sources,
)
from m3_connectors.cli.data_questions import questions
from m3_connectors.cli.data_report import write_examples
from m3_connectors.cli.ingest_curation import (
    Characters,
    DropDuplicates,
    Languages,
    MaxBroken,
    MaxRepeated,
    MinLetters,
    Words,
)
from m3_connectors.cli.options import Debug, Json, names_of, one_of
from m3_connectors.cli.sources import (
    Delimiter,
    Encoding,
    Exclude,
    FormatName,
    IdField,
    MainContent,
    Sources,
    TextField,
    fields_of,
    read_options,
)
from m3_connectors.curation import Curation, Duplicates, Span
from m3_connectors.training_data.labelled.formats import AUTO, FORMATS, read_labelled
from m3_connectors.training_data.parallel import Parallel
from m3_connectors.training_data.sources import Documents, pairs_of_documents
from m3_connectors.training_data.structure import KINDS

data = typer.Typer(
    no_args_is_help=True,
    help="Make training pairs: from documents (unsupervised), translations (parallel), labelled sets (convert), or "
    "questions that a language model asks (questions).",
)

data.command()(questions)

_OF_DOCUMENTS = Curation(
    characters=Span(50), min_letters=0.5, max_broken=0.01, max_repeated=0.3, duplicates=Duplicates("near")
)
_OF_SENTENCES = Curation(min_letters=0.3, max_broken=0.01, duplicates=Duplicates("near"))
_OF_LABELS = Curation(max_broken=0.01)

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE", help="Files, plain or .gz or .zst.", show_default=False)
]
Language = Annotated[
    str | None,
    typer.Option(metavar="CODE", help="Language, such as de.", show_default="detected"),
]


@data.command()
def unsupervised(
    sources: Sources,
    to: To,
    pairs: Annotated[
        str,
        typer.Option(
            "--pairs",
            metavar="KIND1,KIND2,…",
            callback=names_of(KINDS),
            help=f"What is paired: {', '.join(KINDS)}.",
        ),
    ] = ",".join(KINDS),
    keep_out: KeepOut = None,
    keep_out_words: RunWords = DEFAULT_RUN_WORDS,
    text: TextField = "text",
    id: IdField = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    format: FormatName = None,
    exclude: Exclude = None,
    main_content: MainContent = False,
    languages: Languages = None,
    drop_duplicates: DropDuplicates = None,
    characters: Characters = None,
    words: Words = None,
    min_letters: MinLetters = None,
    max_broken: MaxBroken = None,
    max_repeated: MaxRepeated = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Pair what belongs together in documents: title and body, heading and section, first sentence and rest.

    By default, passages need 50 characters and 50 % letters, may have 1 % broken characters and 30 % repeated lines,
    and near duplicates are dropped.
    """
    curation = curation_with_defaults(
        _OF_DOCUMENTS, languages, drop_duplicates, characters, words, min_letters, max_broken, max_repeated
    )
    documents = Documents(
        only_sources(sources),
        fields_of(text, id, None, None),
        read_options(encoding, delimiter, format, exclude, main_content=main_content),
        warn,
    )
    write_examples(
        pairs_of_documents(documents, pairs.split(",")),
        to,
        curation,
        kept_out_of(keep_out, keep_out_words),
        origin="documents",
        sources=sources,
        json=json,
    )


@data.command()
def parallel(
    files: Files,
    to: To,
    fields: Annotated[
        str | None,
        typer.Option(
            "--fields", metavar="A,B", help="The two fields of JSON Lines, or columns of TSV with a header."
        ),
    ] = None,
    lang_q: Language = None,
    lang_p: Language = None,
    both_ways: Annotated[
        bool, typer.Option("--both-ways", help="Also write each pair with its sides exchanged.")
    ] = False,
    keep_out: KeepOut = None,
    keep_out_words: RunWords = DEFAULT_RUN_WORDS,
    languages: Languages = None,
    drop_duplicates: DropDuplicates = None,
    characters: Characters = None,
    words: Words = None,
    min_letters: MinLetters = None,
    max_broken: MaxBroken = None,
    max_repeated: MaxRepeated = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Pair translations: two files that are aligned line by line, or one file of TSV or JSON Lines.

    By default, sentences need 30 % letters, may have 1 % broken characters, and near duplicates are dropped.
    """
    names = None if fields is None else _two_names(fields)
    _check_files(files)
    write_examples(
        Parallel(tuple(files), names, lang_q, lang_p, both_ways),
        to,
        curation_with_defaults(
            _OF_SENTENCES,
            languages,
            drop_duplicates,
            characters,
            words,
            min_letters,
            max_broken,
            max_repeated,
        ),
        kept_out_of(keep_out, keep_out_words),
        origin="translations",
        sources=files,
        json=json,
    )


@data.command()
def convert(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="Files (plain, .gz or .zst) or BEIR folders.", show_default=False
        ),
    ],
    to: To,
    format: Annotated[
        str,
        typer.Option(
            "--format", metavar="FORMAT", callback=one_of(FORMATS), help=f"One of {', '.join(FORMATS)}."
        ),
    ] = AUTO,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="SPLIT", help="Judgements of a BEIR folder.", show_default="train"),
    ] = None,
    keep_out: KeepOut = None,
    keep_out_words: RunWords = DEFAULT_RUN_WORDS,
    languages: Languages = None,
    drop_duplicates: DropDuplicates = None,
    characters: Characters = None,
    words: Words = None,
    min_letters: MinLetters = None,
    max_broken: MaxBroken = None,
    max_repeated: MaxRepeated = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Convert labelled sets to one file: FlagEmbedding, SQuAD, BEIR, MS MARCO triples, Mr. TyDi, MIRACL, own pairs.

    By default, only repeated pairs and passages with more than 1 % broken characters are dropped.
    """
    write_examples(
        chain.from_iterable([read_labelled(path, format, split) for path in files]),
        to,
        curation_with_defaults(
            _OF_LABELS, languages, drop_duplicates, characters, words, min_letters, max_broken, max_repeated
        ),
        kept_out_of(keep_out, keep_out_words),
        origin="labels",
        sources=files,
        json=json,
    )


def _check_files(files: list[Path]) -> None:
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file.\n  Give files of sentences.")


def _two_names(value: str) -> tuple[str, str]:
    first, _, second = (name.strip() for name in value.partition(","))
    if not first or not second or "," in second:
        raise typer.BadParameter(f"'{value}' is not two names; give them as A,B.", param_hint="--fields")
    return first, second
