"""``m3 eval``: measure the methods on a judged dataset."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from m3_connectors.cli.console import err, out, plural, print_json, print_table, warn, working
from m3_connectors.cli.opening import check_length, choose_encoder, connect_index
from m3_connectors.cli.options import (
    WEIGHTED,
    Debug,
    Json,
    Model,
    at_least,
    check_store,
    choose_method,
    names_of,
)
from m3_connectors.errors import MissingDependency
from m3_connectors.evaluation.datasets.beir import load_beir
from m3_connectors.evaluation.datasets.dataset import Dataset
from m3_connectors.evaluation.measures import Measures, measure
from m3_connectors.evaluation.run import PassageEncoder, run_bm25, run_method, store_corpus
from m3_connectors.methods import METHODS, Method

_PAPER = "paper"


def _known_baseline(name: str | None) -> str | None:
    if name not in (None, "bm25"):
        raise typer.BadParameter(f"{name!r} is not bm25, the only baseline there is.")
    return name


def evaluate(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="BEIR folder: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv (also .gz)."
        ),
    ],
    split: Annotated[str, typer.Option("--split", metavar="SPLIT", help="Which judgements.")] = "test",
    to: Annotated[
        str,
        typer.Option("--to", metavar="URL", help="The store; what it holds already is not encoded again."),
    ] = "memory:",
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection",
            "-c",
            metavar="NAME",
            help="Collection in the store.",
            show_default="named after DIR",
        ),
    ] = None,
    model: Model = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods", metavar="M1,M2,…", callback=names_of(METHODS), help=f"Of {', '.join(METHODS)}."
        ),
    ] = ",".join(METHODS),
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", metavar="bm25", callback=_known_baseline, help="A method to compare with."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="W1,W2,W3|FILE|paper",
            help="Weights of the fused methods. [dim]default: those that the model ships with, else the paper's[/dim]",
        ),
    ] = None,
    passage_max_length: Annotated[
        int | None,
        typer.Option(
            "--passage-max-length",
            metavar="TOKENS",
            parser=at_least(3),
            help="Cut documents here.",
            show_default="the model's own",
        ),
    ] = None,
    query_max_length: Annotated[
        int | None,
        typer.Option(
            "--query-max-length",
            metavar="TOKENS",
            parser=at_least(3),
            help="Cut queries here.",
            show_default="the model's own",
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Index a judged dataset, run the methods, and print nDCG@10, Recall@100 and MRR@10."""
    name = collection or collection_name(directory, passage_max_length)
    check_store(to, name, "--to")
    asked = _methods(methods.split(","), weights)
    # Missing now is better than after an hour of encoding.
    for package in ["ir_measures", "bm25s"] if baseline else ["ir_measures"]:
        _require(package)
    dataset = load_beir(directory, split)
    for message in dataset.warnings:
        warn(message)
    encoder = choose_encoder(to, name, model, create=True)
    results: list[tuple[str, str, Measures]] = []
    check_length(passage_max_length, encoder, "--passage-max-length")
    check_length(query_max_length, encoder, "--query-max-length")
    passages = PassageEncoder(encoder, passage_max_length)
    with connect_index(to, name, passages, create=True) as index:
        with _progress(len(dataset.documents)) as progress:
            stored_before = store_corpus(index, dataset.documents, progress)
        if stored_before:
            err.print(
                f"{stored_before:,} of {plural(len(dataset.documents), 'document')} are in {to} {name} already: "
                "not encoded again",
                markup=False,
                soft_wrap=True,
            )
        with working("encoding the queries …"):
            queries = encoder.encode(list(dataset.queries.values()), max_length=query_max_length)
        for method in (chosen or index.methods[name] for name, chosen in asked.items()):
            with working(f"searching with {method.name} …"):
                measures = measure(dataset.qrels, run_method(index, dataset, queries, method))
            shown = " ".join(f"{weight:g}" for weight in method.weights) if method.name in WEIGHTED else ""
            results.append((method.name, shown, measures))
    if baseline:
        with working("searching with bm25 …"):
            results.append(("bm25", "", measure(dataset.qrels, run_bm25(dataset))))
    if json:
        print_json(_document(dataset, encoder.info.name, results))
        return
    out.print(
        f"  {directory} · split {split} · {encoder.info.name} · {plural(len(dataset.documents), 'document')} · "
        f"{len(dataset.queries):,} queries · {to} {name}",
        markup=False,
        soft_wrap=True,
    )
    print_table(measures_table(results))


def collection_name(directory: Path, passage_max_length: int | None = None) -> str:
    """The collection of a dataset folder: its last two names, so that ``mldr/en`` and ``mldr/de`` differ.

    Where documents are cut (in tokens), that stands behind: they are other vectors.
    """
    parts = directory.resolve().parts[-2:]
    name = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts)).strip("-_.")
    cut = f"-{passage_max_length}" if passage_max_length else ""
    return (name or "dataset")[len(cut) - 200 :].strip("-_.") + cut


def _require(package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError:
        raise MissingDependency(package, "eval") from None


def _methods(names: list[str], weights: str | None) -> dict[str, Method | None]:
    """The methods asked for, under the weights asked for; None is the model's own."""
    if weights == _PAPER:
        return {name: METHODS[name] for name in names}
    return {name: choose_method(name, weights if name in WEIGHTED else None) for name in names}


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    if not err.is_terminal:
        yield lambda _: None
        return
    with Progress(
        TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), console=err, transient=True
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda stored: bar.update(task, completed=stored)


def _document(dataset: Dataset, model: str, results: list[tuple[str, str, Measures]]) -> dict[str, object]:
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "model": model,
        "results": [
            {
                "method": method,
                "nDCG@10": measures.ndcg_at_10,
                "Recall@100": measures.recall_at_100,
                "MRR@10": measures.mrr_at_10,
                "queries": measures.queries,
            }
            for method, _, measures in results
        ],
    }


def measures_table(results: list[tuple[str, str, Measures]]) -> Table:
    """Methods with their weights (as text) and measures, a row each."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    table.add_column("method", style="bold")
    table.add_column("weights", style="dim")
    for name in ("nDCG@10", "Recall@100", "MRR@10"):
        table.add_column(name, justify="right")
    for method, weights, measures in results:
        values = (measures.ndcg_at_10, measures.recall_at_100, measures.mrr_at_10)
        table.add_row(method, weights, *(f"{value:.3f}" for value in values))
    return table
