"""``m3 eval``: measure the methods on a dataset with relevance judgements."""

from __future__ import annotations

import contextlib
import importlib
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from m3_connectors.backends.urls import redacted
from m3_connectors.cli.console import INTERRUPTED, err, out, plural, print_json, print_table, warn, working
from m3_connectors.cli.opening import MISMATCH_ADVICE, advice, check_length, choose_encoder
from m3_connectors.cli.options import (
    WEIGHTED,
    DataDir,
    DatasetCollection,
    DatasetStore,
    Debug,
    Json,
    Model,
    PassageMaxLength,
    QueryMaxLength,
    Split,
    Yes,
    at_least,
    check_store,
    choose_method,
    names_of,
)
from m3_connectors.cli.progress import Progress, acknowledging_interrupts
from m3_connectors.errors import InvalidInput, M3Error, MissingDependency, ModelMismatch, NotFound, Rejected
from m3_connectors.evaluation.baselines.baseline import Baseline
from m3_connectors.evaluation.baselines.registry import BASELINES, baseline_for
from m3_connectors.evaluation.beside import paper_weights
from m3_connectors.methods import METHODS, Method

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder
    from m3_connectors.evaluation.datasets.dataset import Dataset
    from m3_connectors.evaluation.datasets.hub import Download
    from m3_connectors.evaluation.evaluate import Plan
    from m3_connectors.evaluation.folder import EvaluationFolder

_PAPER = "paper"

_METHODS = (*METHODS, *(f"{name}-{_PAPER}" for name in WEIGHTED))
"""``all-paper`` is ``all`` with the paper's weights instead of the model's."""


def _fusion(value: str) -> str:
    if value not in ("exact", _PAPER):
        raise typer.BadParameter(f"{value!r} is not valid; choose exact or paper.")
    return value


def evaluate(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="A BEIR folder, a folder of your own JSON Lines, miracl/LANGUAGE, mkqa/LANGUAGE, "
            "mldr/LANGUAGE, narrativeqa, or irds:ID.",
        ),
    ],
    split: Split = None,
    to: DatasetStore = "memory:",
    collection: DatasetCollection = None,
    model: Model = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="M1,M2,…",
            callback=names_of(_METHODS),
            help=f"Methods: {', '.join(_METHODS)}.",
        ),
    ] = ",".join(METHODS),
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", metavar="B1,B2,…", help=f"Baselines to compare with: {', '.join(BASELINES)}."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="W1,W2,W3|FILE|paper",
            help="Weights of the fused methods. "
            "[dim]default: the weights shipped with the model, or those of the paper for the dataset[/dim]",
        ),
    ] = None,
    fusion: Annotated[
        str,
        typer.Option(
            "--fusion",
            metavar="exact|paper",
            callback=_fusion,
            help="With paper, use the lists, sparse weights and lengths of the reference scripts.",
        ),
    ] = "exact",
    passage_max_length: PassageMaxLength = None,
    query_max_length: QueryMaxLength = None,
    limit_queries: Annotated[
        int | None,
        typer.Option(
            "--limit-queries",
            metavar="N",
            parser=at_least(1),
            help="Use only the first N queries.",
            show_default="all",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for runs, scores and environment; an interrupted run continues from it.",
        ),
    ] = None,
    data_dir: DataDir = None,
    yes: Yes = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Index a dataset with relevance judgements, run the methods and print the quality of each."""
    from m3_connectors.evaluation.datasets.load import load_dataset
    from m3_connectors.evaluation.evaluate import Plan

    # Check the arguments now and not after an hour of encoding.
    check_store(to, collection or "documents", "--to")
    names = methods.split(",")
    given = _weighted_methods(names, weights)
    for package in ("ir_measures", "pyarrow"):
        _require(package)
    baselines = _baselines(baseline)
    with working("reading the dataset …"):
        loaded = load_dataset(dataset, split=split, data_dir=data_dir, agree=agree(yes))
    for message in loaded.warnings:
        warn(message)
    if fusion == _PAPER:
        passage_max_length = passage_max_length or loaded.paper.passage_max_length
        query_max_length = query_max_length or loaded.paper.query_max_length
    at = collection or collection_name(dataset, passage_max_length)
    encoder = choose_encoder(to, at, model)
    check_length(passage_max_length, encoder, "--passage-max-length")
    check_length(query_max_length, encoder, "--query-max-length")
    plan = Plan(
        url=to,
        collection=at,
        methods={
            name: given.get(name) or preset(name, encoder, loaded, paper=weights == _PAPER) for name in names
        },
        baselines=baselines,
        fusion="paper" if fusion == _PAPER else "exact",
        query_max_length=query_max_length,
        passage_max_length=passage_max_length,
        limit_queries=limit_queries,
    )
    with contextlib.ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "evaluation"
        found = evaluate_into(loaded, encoder, plan, place, kept=folder is not None)
        for message in found.record.warnings[len(loaded.warnings) :]:
            warn(message)
        if json:
            print_json(_document(found, folder))
            return
        record = found.record
        lengths = _lengths(record.protocol.query_max_length, record.protocol.passage_max_length)
        out.print(
            f"  {dataset} · split {record.dataset.split} · {encoder.info.name} · "
            f"{plural(record.dataset.documents, 'document')} · {record.dataset.queries:,} queries · "
            f"{redacted(to)} {at} · {lengths}{fusion} fusion",
            markup=False,
            soft_wrap=True,
        )
        print_table(measures_table(found))


def evaluate_into(
    dataset: Dataset, encoder: M3Encoder, plan: Plan, place: Path, *, kept: bool
) -> EvaluationFolder:
    """Evaluate and show the progress. After an interrupt, say how to continue if the folder is kept."""
    from m3_connectors.evaluation.evaluate import evaluate as run

    command = shlex.join(["m3", *(redacted(part) if "@" in part else part for part in sys.argv[1:])])
    keeps = f"The results so far are in {place}."
    on = f"{keeps} Run the same command to continue."
    try:
        with (
            Progress() as progress,
            acknowledging_interrupts(progress, lambda: "Stopping after the current batch"),
            advice(MISMATCH_ADVICE, ModelMismatch),
        ):
            watch = _Watch(f"{redacted(plan.url)} {plan.collection}", progress)
            return run(dataset, encoder, plan, place, watch=watch, settings={"command": command})
    except KeyboardInterrupt:
        if kept:
            err.print(on, markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except M3Error as error:
        if kept and not isinstance(error, InvalidInput | ModelMismatch):
            # A rejected request would be rejected again: the command must change, such as a baseline's name.
            error.add_note(f"  {keeps}" if isinstance(error, NotFound | Rejected) else f"  {on}")
        raise


def collection_name(dataset: str | Path, passage_max_length: int | None = None) -> str:
    """Return a dataset's collection name: its last two parts, so that ``mldr/en`` and ``mldr/de`` differ.

    The maximum length in tokens, if there is one, is appended, because it changes the vectors.
    """
    path = Path(dataset)
    parts = (path.resolve() if path.is_dir() else path).parts[-2:]
    name = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts)).strip("-_.")
    cut = f"-{passage_max_length}" if passage_max_length else ""
    return (name or "dataset")[len(cut) - 180 :].strip("-_.") + cut


def measures_table(folder: EvaluationFolder) -> Table:
    """Return a table of the methods with their weights and the means of their measures."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    table.add_column("method", style="bold")
    table.add_column("weights", style="dim")
    measures = folder.record.protocol.measures
    for name in measures:
        table.add_column(name, justify="right")
    means = folder.means()
    for method in folder.record.methods:
        fused = method.weights and sum(weight > 0 for weight in method.weights) > 1
        shown = " ".join(f"{weight:g}" for weight in method.weights or ()) if fused else ""
        table.add_row(method.name, shown, *(f"{means[method.name][name]:.3f}" for name in measures))
    return table


def _require(package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError:
        raise MissingDependency(package, "eval") from None


def _baselines(specs: str | None) -> list[Baseline]:
    try:
        return [baseline_for(spec.strip()) for spec in specs.split(",")] if specs else []
    except InvalidInput as error:
        raise typer.BadParameter(str(error), param_hint="--baseline") from None


def _weighted_methods(names: Sequence[str], weights: str | None) -> dict[str, Method]:
    """Return the methods whose weights are given as numbers on the command line.

    Raises:
        typer.BadParameter: Weights are given, but none of the methods takes weights.
    """
    if weights and not any(name in WEIGHTED for name in names):
        raise typer.BadParameter(
            f"{', '.join(names)} takes no weights; weights apply to {' and '.join(WEIGHTED)}.",
            param_hint="--weights",
        )
    numbers = None if weights == _PAPER else weights
    chosen = {name: choose_method(name, numbers) for name in names if name in WEIGHTED}
    return {name: method for name, method in chosen.items() if method}


def preset(name: str, encoder: M3Encoder, dataset: Dataset, *, paper: bool) -> Method:
    """Return a method with the weights shipped with the model, or (fallback, or ``paper``) the paper's."""
    base = name.removesuffix(f"-{_PAPER}")
    method = METHODS[base]
    if base not in WEIGHTED:
        return method
    published = paper_weights(base, dataset.paper) or tuple(method.weights)
    if paper or base != name:
        return method.weighted(*published)
    return method.weighted(*encoder.recommended_weights.get(base, published))


def agree(yes: bool) -> Callable[[Sequence[Download]], bool]:
    """Return a callback that lists a dataset's downloads and, without ``--yes``, asks for confirmation."""

    def ask(downloads: Sequence[Download]) -> bool:
        for download in downloads:
            err.print(f"  {download}", markup=False, soft_wrap=True)
        return yes or (err.is_terminal and typer.confirm("Download this?", err=True))

    return ask


class _Watch:
    """Shows the progress of an evaluation."""

    def __init__(self, where: str, progress: Progress) -> None:
        self._where = where
        self._progress = progress

    def __call__(self, step: str, done: int, total: int) -> None:
        if step == "kept documents":
            err.print(
                f"{done:,} of {plural(total, 'document')} are already in {self._where} "
                "and are not encoded again",
                markup=False,
                soft_wrap=True,
            )
        elif total:
            doing, _, unit = step.partition(" ")  # "encoding documents"
            self._progress.update(doing, done, total, unit=unit)
        else:
            self._progress.update(step)


def _lengths(query: int | None, passage: int | None) -> str:
    cuts = ((query, "queries"), (passage, "documents"))
    return "".join(f"{what} truncated to {tokens:,} tokens · " for tokens, what in cuts if tokens)


def _document(folder: EvaluationFolder, out: Path | None) -> dict[str, object]:
    record, means = folder.record, folder.means()
    return {
        "dataset": record.dataset.name,
        "split": record.dataset.split,
        "model": record.model.name,
        "fusion": record.protocol.fusion,
        "query_max_length": record.protocol.query_max_length,
        "passage_max_length": record.protocol.passage_max_length,
        "warnings": list(record.warnings),
        "out": out and str(out),
        "results": [
            {
                "method": method.name,
                "weights": method.weights and list(method.weights),
                **means[method.name],
                "queries": record.dataset.queries,
            }
            for method in record.methods
        ],
    }
