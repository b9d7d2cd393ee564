"""``m3 mine`` and ``m3 score-pairs``: hard negatives for training pairs, and a teacher's scores."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.backends.urls import redacted
from m3_connectors.cli.console import INTERRUPTED, err, one_line, out, plural, print_json, warn
from m3_connectors.cli.opening import load_encoder, open_index
from m3_connectors.cli.options import (
    Collection,
    Debug,
    Json,
    MethodName,
    WeightsText,
    at_least,
    choose_method,
    one_of,
)
from m3_connectors.cli.progress import Progress, acknowledging_interrupts
from m3_connectors.cross_encoder import CrossEncoder
from m3_connectors.readers import DeadLetter, Fields, Source, read_documents

if TYPE_CHECKING:
    from m3_connectors.training.mining_files import MiningReport, ScoringReport

T = TypeVar("T")

_SUFFIX = ".jsonl"

Pairs = Annotated[
    list[Path],
    typer.Argument(
        metavar="PAIRS…", help="Files or folders of training pairs (JSON Lines, as m3 train reads them)."
    ),
]
To = Annotated[
    Path,
    typer.Option(
        "--to", "-o", metavar="FILE.jsonl", help="The file to write; m3 train and FlagEmbedding read it."
    ),
]


def mine(
    pairs: Pairs,
    to: To,
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="MODEL", envvar="M3_MODEL", help="Hub name, directory or m3-tiny."
        ),
    ],
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            "--corpus",
            metavar="FILE",
            help="File of further passages, as m3 index reads it; may be repeated.",
        ),
    ] = None,
    text: Annotated[
        str, typer.Option("--text", metavar="FIELD", help="Field of --corpus that contains the text.")
    ] = "text",
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="URL",
            help="Search an existing collection of this store in place of the pairs' own passages; nothing is "
            "written to it.",
        ),
    ] = None,
    collection: Collection = DEFAULT_COLLECTION,
    method: MethodName = "dense",
    weights: WeightsText = None,
    negatives: Annotated[
        int, typer.Option("--negatives", metavar="N", parser=at_least(1), help="Negatives of a query.")
    ] = 7,
    range_min: Annotated[
        int,
        typer.Option(
            "--range-min",
            metavar="RANK",
            parser=at_least(0),
            help="Number of best candidates that are skipped.",
        ),
    ] = 10,
    range_max: Annotated[
        int,
        typer.Option(
            "--range-max", metavar="RANK", parser=at_least(1), help="Rank at which the candidates end."
        ),
    ] = 200,
    sampling: Annotated[
        str,
        typer.Option(
            "--sampling-strategy",
            metavar="random|top",
            callback=one_of(("random", "top")),
            help="Choose negatives from these ranks at random, or take the best.",
        ),
    ] = "random",
    relative_margin: Annotated[
        float,
        typer.Option(
            "--relative-margin",
            metavar="SHARE",
            min=0,
            help="Drop candidates with more than 1 - SHARE of the positive's score.",
        ),
    ] = 0.05,
    absolute_margin: Annotated[
        float | None,
        typer.Option(
            "--absolute-margin",
            metavar="SCORE",
            min=0,
            help="Drop candidates with more than the positive's score - SCORE; replaces --relative-margin.",
        ),
    ] = None,
    no_margin: Annotated[
        bool, typer.Option("--no-margin", help="Keep candidates of any score; then only the ranks count.")
    ] = False,
    max_overlap: Annotated[
        float,
        typer.Option(
            "--max-overlap",
            metavar="SHARE",
            help="Drop candidates that share this part of their text with a positive.",
        ),
    ] = 0.8,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Let the store use its approximate index.")
    ] = False,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="MODEL",
            help="Cross-encoder whose scores are written in place of those of the search.",
        ),
    ] = None,
    keep_all: Annotated[
        bool,
        typer.Option(
            "--keep-all", help="Also write lines without a negative, which FlagEmbedding cannot read."
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option("--seed", metavar="SEED", min=0, help="Seed of the random choices.")
    ] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find hard negatives for training pairs: passages that a model ranks high and that do not answer the query.

    After an interruption, run the same command to continue.
    """
    from m3_connectors.training.mining import MiningSettings
    from m3_connectors.training.mining_files import Corpus, mine_files

    _check_target(to)
    if store is not None and corpus:
        raise typer.BadParameter("--store and --corpus exclude each other; add the passages to the store.")
    chosen = choose_method(method, weights)
    settings = MiningSettings(
        method=method,  # type: ignore[arg-type]
        weights=None if chosen is None else tuple(chosen.weights),  # type: ignore[arg-type]
        num_negatives=negatives,
        range_min=range_min,
        range_max=range_max,
        sampling_strategy=sampling,  # type: ignore[arg-type]
        relative_margin=None if no_margin or absolute_margin is not None else relative_margin,
        absolute_margin=None if no_margin else absolute_margin,
        max_overlap=max_overlap,
        exact=not approximate,
        seed=seed,
    )
    encoder = load_encoder(model)
    with contextlib.ExitStack() as owned:
        index = None if store is None else owned.enter_context(open_index(store, collection, model))
        report = _followed(
            lambda progress: mine_files(
                encoder,
                pairs,
                to,
                settings,
                corpus=Corpus(tuple(corpus), text, lambda: _texts(corpus, text)) if corpus else None,
                index=index,
                index_name=None if store is None else f"{redacted(store)}#{collection}",
                teacher=None if teacher is None else CrossEncoder(teacher),
                keep_all=keep_all,
                progress=progress,
            )
        )
    if as_json:
        print_json({"to": str(to), **dataclasses.asdict(report)})
        return
    _show(report, settings.num_negatives, to)


def score_pairs(
    pairs: Pairs,
    to: To,
    teacher: Annotated[
        str, typer.Option("--teacher", metavar="MODEL", help="Cross-encoder: a hub name or a directory.")
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Add a cross-encoder's scores of the positives and negatives to training pairs, for distillation.

    After an interruption, run the same command to continue.
    """
    from m3_connectors.training.mining_files import score_files

    _check_target(to)
    scorer = CrossEncoder(teacher)
    report = _followed(lambda progress: score_files(scorer, pairs, to, progress=progress))
    if as_json:
        print_json({"to": str(to), **dataclasses.asdict(report)})
        return
    _warn_of_skipped(report)
    out.print(f"  {plural(report.lines, 'line')} written to {to}", markup=False, soft_wrap=True)


def _check_target(to: Path) -> None:
    if to.suffix != _SUFFIX:
        raise typer.BadParameter(f"{to} must end in {_SUFFIX}.", param_hint="--to")


def _followed(work: Callable[[Callable[[str, int], None]], T]) -> T:
    """Run something that reports its progress and that the same command continues after Ctrl-C."""
    units = {"encoding passages": "passages"}
    with Progress() as progress:
        try:
            with acknowledging_interrupts(progress, lambda: "Stopping"):
                return work(lambda step, done: progress.update(step, done, unit=units.get(step, "lines")))
        except KeyboardInterrupt:
            err.print("Stopped. Run the same command to continue.", markup=False)
            raise typer.Exit(INTERRUPTED) from None


def _texts(corpus: Sequence[Path], field: str) -> Iterator[str]:
    def refuse(_: Source, letter: DeadLetter) -> None:
        warn(f"--corpus: {letter}")

    documents = read_documents(corpus, fields=Fields(field), on_dead_letter=refuse)
    return (document.text for document in documents)


def _warn_of_skipped(report: MiningReport | ScoringReport) -> None:
    for line in report.skipped_lines:
        warn(line)
    if more := report.skipped - len(report.skipped_lines):
        warn(f"{plural(more, 'further line')} skipped for such reasons.")


def _show(report: MiningReport, wanted: int, to: Path) -> None:
    _warn_of_skipped(report)
    full = report.negatives.get(str(wanted), 0)
    none = report.negatives.get("0", 0)
    few = report.lines - full - none
    rows = [
        (report.passages, "distinct passages searched"),
        (full, f"of {plural(report.lines, 'line')} with {plural(wanted, 'negative')}"),
        (few, "with fewer" + _histogram(report, wanted) if few else "with fewer"),
        (none, "without a negative" + (_left_out(report) if none else "")),
        (report.not_found, "without a positive among the search results"),
        (report.dropped["own"], "candidates dropped: positives of the query, or the query itself"),
        (
            report.dropped["margin"],
            "candidates dropped: their score is too near to the positive's, or above it",
        ),
        (
            report.dropped["near_copy"],
            "candidates dropped: near copies of a positive (of those that were drawn)",
        ),
    ]
    for count, what in rows:
        out.print(f"  {count:9,} {what}", markup=False, soft_wrap=True)
    for query in report.without:
        err.print(f"  no negative: {one_line(query)[:100]}", style="dim", markup=False, soft_wrap=True)
    out.print(f"  {plural(report.written, 'line')} written to {to}", markup=False, soft_wrap=True)


def _histogram(report: MiningReport, wanted: int) -> str:
    counts = sorted((int(negatives), lines) for negatives, lines in report.negatives.items())
    parts = [f"{negatives}: {lines:,}" for negatives, lines in counts if 0 < negatives < wanted]
    return f" ({', '.join(parts)})"


def _left_out(report: MiningReport) -> str:
    return " (left out; --keep-all writes them)" if report.written < report.lines else ""
