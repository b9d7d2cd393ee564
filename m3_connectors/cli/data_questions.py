"""``m3 data questions``: questions that a language model asks about long documents."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from m3_connectors.cli.console import INTERRUPTED, duration, err, out, plural, print_json, print_table, warn
from m3_connectors.cli.data_options import (
    DEFAULT_RUN_WORDS,
    KeepOut,
    RunWords,
    curation_with_defaults,
    kept_out_of,
    only_sources,
)
from m3_connectors.cli.ingest_curation import (
    Characters,
    DropDuplicates,
    Languages,
    MaxBroken,
    MaxRepeated,
    MinLetters,
    Words,
)
from m3_connectors.cli.opening import load_encoder
from m3_connectors.cli.options import Debug, Json, at_least
from m3_connectors.cli.progress import Progress, acknowledging_interrupts
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
from m3_connectors.errors import InvalidInput
from m3_connectors.training_data.files import DROPPED_SUFFIX, beside, check_output, lines_to
from m3_connectors.training_data.questions.articles import Sample, sampled
from m3_connectors.training_data.questions.asking import Asker
from m3_connectors.training_data.questions.checks import Checks
from m3_connectors.training_data.questions.finding import DenseFinder, Finder, WordFinder
from m3_connectors.training_data.questions.journal import Journal
from m3_connectors.training_data.questions.run import ask
from m3_connectors.training_data.sources import Documents

_LONG_DOCUMENTS = Curation(
    characters=Span(4000), min_letters=0.5, max_broken=0.01, max_repeated=0.3, duplicates=Duplicates("near")
)


def questions(
    sources: Sources,
    endpoint: Annotated[
        str,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="Base of an OpenAI-compatible API, such as http://host/v1; its key is in OPENAI_API_KEY.",
        ),
    ],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Name of the model there.")],
    to: Annotated[
        Path,
        typer.Option(
            "--to", metavar="FILE", help="The file of pairs, .jsonl; a run that was stopped goes on in it."
        ),
    ],
    count: Annotated[
        int,
        typer.Option("--count", metavar="N", parser=at_least(1), help="How many documents are asked about."),
    ] = 1000,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Which documents and passages these are.")
    ] = 0,
    passage_words: Annotated[
        int,
        typer.Option("--passage-words", metavar="N", parser=at_least(16), help="Most words of a passage."),
    ] = 200,
    round_trip: Annotated[
        int,
        typer.Option(
            "--round-trip",
            metavar="N",
            parser=at_least(1),
            help="A question must find its passage among the first N of all passages.",
        ),
    ] = 10,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="MODEL",
            help="Find passages with this model's dense vectors.",
            show_default="BM25",
        ),
    ] = None,
    at_once: Annotated[
        int, typer.Option("--at-once", metavar="N", parser=at_least(1), help="Requests at the same time.")
    ] = 4,
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
    """Ask a language model for a question about a passage of each long document; the whole document is the positive.

    By default, documents need 4,000 characters, and are cleaned as by m3 data unsupervised. Run the same command again
    to continue: what was asked is not asked again.
    """
    check_output(to)
    if to.suffix.lower() != ".jsonl":
        raise InvalidInput(
            f"{to} would be compressed, and cannot be continued then.\n  Give a name in .jsonl."
        )
    asker = Asker(endpoint, model)
    kept_out = kept_out_of(keep_out, keep_out_words)
    documents = Documents(
        only_sources(sources),
        fields_of(text, id, None, None),
        read_options(encoding, delimiter, format, exclude, main_content=main_content),
        warn,
    )
    curation = curation_with_defaults(
        _LONG_DOCUMENTS, languages, drop_duplicates, characters, words, min_letters, max_broken, max_repeated
    )
    started = time.monotonic()
    dropped_to = beside(to, DROPPED_SUFFIX)
    with lines_to(dropped_to) as dropped:
        sample = sampled(
            documents,
            count,
            seed=seed,
            passage_words=passage_words,
            curation=curation,
            kept_out=kept_out,
            on_dropped=lambda one: dropped.write(one.to_dict()),
        )
    if not sample.articles:
        counts = (
            ", ".join(f"{number:,} {stage}" for stage, number in sample.dropped.items()) or "none was read"
        )
        raise InvalidInput(
            f"no document of {sample.read:,} can be asked about ({counts}).\n"
            f"  {dropped_to} has the reasons: change the options, such as --characters 1000:."
        )
    passages = [passage for article in sample.articles for passage in article.passage_ids()]
    finder: Finder = WordFinder(passages) if encoder is None else DenseFinder(passages, load_encoder(encoder))
    checks = Checks(finder, round_trip, kept_out=kept_out)
    try:
        with (
            Journal(to) as journal,
            Progress() as progress,
            acknowledging_interrupts(progress, lambda: "Stopping"),
        ):
            total = sum(article.key not in journal.asked for article in sample.articles)
            asked = ask(
                sample.articles,
                asker,
                checks,
                journal,
                at_once=at_once,
                progress=lambda done: progress.update("asking", done, total, unit="questions"),
            )
    except KeyboardInterrupt:
        err.print("Stopped. Run the same command to continue.", markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    names = () if kept_out is None else kept_out.names
    if json:
        print_json(
            {
                "read": sample.read,
                "fit": sample.fit,
                "articles": len(sample.articles),
                "dropped": sample.dropped,
                "kept_out": {name: sample.kept_out.get(name, 0) for name in names},
                "asked": asked,
                "kept": journal.accepted,
                "rejected": dict(journal.rejected.most_common()),
                "languages": dict(journal.languages.most_common()),
                "to": str(to),
                "rejected_questions": str(journal.rejected_to) if journal.rejected else None,
                "dropped_documents": str(dropped_to) if sample.dropped else None,
            }
        )
        return
    _print_table(sample, journal, asked, names)
    parts = [f"{plural(journal.accepted, 'line')} in {to}"]
    if journal.rejected:
        parts.append(f"{journal.rejected.total():,} rejected (see {journal.rejected_to})")
    out.print("  " + " · ".join([*parts, duration(time.monotonic() - started)]), markup=False, soft_wrap=True)


def _print_table(sample: Sample, journal: Journal, asked: int, evaluation_sets: tuple[str, ...]) -> None:
    table = Table(box=None, pad_edge=True, padding=(0, 1), header_style="dim")
    table.add_column("documents and questions")
    table.add_column("count", justify="right")
    rows = [
        ("documents read", sample.read),
        *((f"dropped: {stage}", number) for stage, number in sample.dropped.items()),
        *((f"  shares text with {name}", sample.kept_out.get(name, 0)) for name in evaluation_sets),
        ("documents that fit", sample.fit),
        ("documents chosen", len(sample.articles)),
        ("questions asked now", asked),
        ("questions kept", journal.accepted),
        *((f"rejected: {stage}", number) for stage, number in journal.rejected.most_common()),
        *((f"language {name}", number) for name, number in journal.languages.most_common()),
    ]
    for name, number in rows:
        table.add_row(name, f"{number:,}")
    print_table(table)
