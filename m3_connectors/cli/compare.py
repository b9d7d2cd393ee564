"""``m3 compare``: test whether one evaluation or method is significantly better than another."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from m3_connectors.cli.console import COMPONENT_LABELS, one_line, out, plural, print_json, print_table
from m3_connectors.cli.options import Debug, Json, at_least
from m3_connectors.embeddings import COMPONENTS

if TYPE_CHECKING:
    from m3_connectors.evaluation.changes import Changes, DocumentChange, QueryChange, Standing
    from m3_connectors.evaluation.compare import Comparison, Ranking
    from m3_connectors.evaluation.significance import PairedTest

_SHOWN_QUERIES = 3
"""The number of queries shown for each direction where one pair is compared."""

_SHOWN_DOCUMENTS = 3
"""The number of relevant documents shown for a query; ``--json`` prints all of them."""


def compare(
    before: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A folder written by m3 eval --out, or a tree of such folders."),
    ],
    after: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="A second folder, for the same datasets.", show_default=False),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            "--method",
            metavar="M1,M2,…",
            help="With two folders: compare each method in both. "
            "With one folder: compare the first method with "
            "each of the others.",
            show_default="all",
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            "--measure",
            metavar="MEASURE",
            help="Measure to compare.",
            show_default="the measure of the dataset",
        ),
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option(
            "--queries",
            metavar="N",
            parser=at_least(0),
            help="Show the N queries that gained most and the N queries that lost most.",
            show_default=f"{_SHOWN_QUERIES}, or 0 for several comparisons",
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Test whether a difference is real, query by query, and show the queries that changed most."""
    from m3_connectors.evaluation import compare as evaluations
    from m3_connectors.evaluation.changes import most_changed

    names = [name.strip() for name in (methods or "all").split(",")]
    if after is None:
        if len(names) < 2:
            raise typer.BadParameter(
                "give a second folder, or --methods with two methods of this folder.", param_hint="[DIR]"
            )
        pairs = evaluations.pairs_of_methods(before, names)
    else:
        pairs = [pair for name in names for pair in evaluations.pairs_of_trees(before, after, name)]
    found = evaluations.compare(pairs, measure)
    count = queries if queries is not None else _SHOWN_QUERIES * (len(found) == 1)
    changes = [most_changed(one.before, one.after, one.measure, count) if count else None for one in found]
    if json:
        print_json(
            {
                "comparisons": [
                    _document(comparison, changed) for comparison, changed in zip(found, changes, strict=True)
                ]
            }
        )
        return
    out.print(f"  {before}" if after is None else f"  {before} → {after}", markup=False, soft_wrap=True)
    print_table(comparison_table(found))
    for comparison, changed in zip(found, changes, strict=True):
        if changed:
            if len(found) > 1:
                out.print(
                    f"\n  {_dataset(comparison)} · {_methods(comparison)}",
                    style="bold",
                    markup=False,
                    soft_wrap=True,
                )
            out.print(change_lines(comparison, changed), markup=False, soft_wrap=True)


def comparison_table(comparisons: list[Comparison]) -> Table:
    """Return a table with a row per comparison: means, difference with interval, p-values, wins."""
    measures = {one.measure for one in comparisons}
    measure = measures.pop() if len(measures) == 1 else None
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("dataset", style="bold")
    table.add_column("methods")
    for name in (measure or "measure", "difference", "95 %", "p", "p, Holm", "win/tie/loss"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in comparisons:
        test = one.test
        means = f"{test.before:.3f} → {test.after:.3f}"
        table.add_row(
            _dataset(one),
            _methods(one),
            means if measure else f"{one.measure} {means}",
            f"{test.difference:+.3f}",
            f"[{test.low:.3f}, {test.high:.3f}]",
            p_text(test.p_value),
            p_text(one.adjusted_p_value),
            f"{test.wins}/{test.ties}/{test.losses}",
            "real" if one.real else "may be chance",
        )
    return table


def change_lines(comparison: Comparison, changes: Changes) -> str:
    """Return the queries that changed most, with the ranks and scores of their relevant documents."""
    lines = []
    for word, queries in (("better", changes.better), ("worse", changes.worse)):
        for query in queries:
            lines += [
                "",
                f"  {word} {query.before:.3f} → {query.after:.3f}   {query.id} · {one_line(query.text)}",
            ]
            lines += _document_lines(comparison, query)
    return "\n".join(lines or ["", "  no query changed"])


def _document_lines(comparison: Comparison, query: QueryChange) -> list[str]:
    lines = []
    for document in query.documents[:_SHOWN_DOCUMENTS]:
        lines.append(f"    {one_line(document.id)} · grade {document.grade}")
        for when, ranking, standing in _sides(comparison, document):
            rank = f"rank {standing.rank}" if standing.rank else f"not in the first {_depth(ranking)}"
            lines.append(f"      {when:6}  {rank:9}  {_sum(ranking, standing)}".rstrip())
    if more := len(query.documents) - _SHOWN_DOCUMENTS:
        lines += [f"    … {plural(more, 'relevant document')} more"] if more > 0 else []
    return lines


def _sides(comparison: Comparison, document: DocumentChange) -> list[tuple[str, Ranking, Standing]]:
    return [
        ("before", comparison.before, document.before),
        ("after", comparison.after, document.after),
    ]


def _sum(ranking: Ranking, standing: Standing) -> str:
    """Return the sum that gives a document's score, if the method is one of M3's."""
    weights, depths = ranking.record.weights, ranking.record.candidates
    if weights is None or depths is None:
        return ""
    if not standing.candidate:
        return f"not in the top {' or '.join(f'{depth:,} {name}' for name, depth in depths.items())}"
    parts = [
        (f"{COMPONENT_LABELS[name]} {score:.3f} × {weight:g}", score * weight)
        for name, weight in zip(COMPONENTS, weights, strict=True)
        if weight and (score := getattr(standing.scores, name)) is not None
    ]
    return f"{' + '.join(text for text, _ in parts)} = {sum(value for _, value in parts):.3f}"


def _depth(ranking: Ranking) -> int:
    return ranking.folder.record.protocol.run_depth


def _dataset(comparison: Comparison) -> str:
    dataset = comparison.before.dataset
    return dataset.name if dataset.split in ("test", "dev") else f"{dataset.name} {dataset.split}"


def _methods(comparison: Comparison) -> str:
    before, after = comparison.before.method, comparison.after.method
    return before if before == after else f"{before} → {after}"


def p_text(value: float) -> str:
    """Format a p-value for people."""
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def _document(comparison: Comparison, changes: Changes | None) -> dict[str, object]:
    test = comparison.test
    dataset = comparison.before.dataset
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "query_language": dataset.query_language,
        "passage_language": dataset.passage_language,
        "measure": comparison.measure,
        "before": {**_ranking(comparison.before), "mean": test.before},
        "after": {**_ranking(comparison.after), "mean": test.after},
        **paired_document(test),
        "adjusted_p_value": comparison.adjusted_p_value,
        "real": comparison.real,
        **(dataclasses.asdict(changes) if changes else {}),
    }


def paired_document(test: PairedTest) -> dict[str, object]:
    """Return a paired test as JSON; an unknown bound is null."""
    return {
        "queries": test.queries,
        "difference": test.difference,
        "interval": [bound if math.isfinite(bound) else None for bound in (test.low, test.high)],
        "p_value": test.p_value,
        "wins": test.wins,
        "ties": test.ties,
        "losses": test.losses,
    }


def _ranking(ranking: Ranking) -> dict[str, object]:
    return {
        "path": str(ranking.folder.path),
        "method": ranking.method,
        "weights": ranking.record.weights and list(ranking.record.weights),
    }
