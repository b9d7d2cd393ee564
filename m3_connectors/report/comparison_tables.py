"""Tables of comparisons: whether All is better, on which queries, and the difference to published numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from m3_connectors.evaluation.beside import beside_published
from m3_connectors.evaluation.changes import QueryChange, Standing, most_changed
from m3_connectors.evaluation.compare import Comparison, Ranking, compare
from m3_connectors.evaluation.datasets.published import PAPER
from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.evaluation.significance import resamples_for
from m3_connectors.methods import ALL
from m3_connectors.report.table import Cell, Column, Table
from m3_connectors.report.variants import by_variant, family_name, variants

Variant = Mapping[Path, str]
"""For each folder, what distinguishes its evaluation from others of the same dataset (``variants``)."""

MOST_CHANGED = 5
"""The number of queries shown in each direction."""


def comparison_tables(
    folders: Sequence[EvaluationFolder], published: Mapping[tuple[str, str, str], float]
) -> list[Table]:
    """Return the tests of All against every other method, the queries that change most, published numbers.

    Args:
        folders: Complete evaluations.
        published: Means from 0 to 1 by task, method and measure.
    """
    pairs = [
        (Ranking(folder, method.name), Ranking(folder, ALL.name))
        for folder in folders
        if any(method.name == ALL.name for method in folder.record.methods)
        for method in folder.record.methods
        if method.name != ALL.name
    ]
    tables = []
    if pairs:
        compared = compare(pairs)
        variant = dict(zip((folder.path for folder in folders), variants(folders), strict=True))
        tables += [_summary(compared, variant), _tests(compared, variant), _changes(compared, variant)]
    return [*tables, *_published(folders, published)]


def _summary(compared: Sequence[Comparison], variant: Variant) -> Table:
    counts: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for one in compared:
        counts[_kind(one, variant), one.before.method].append(one)
    rows = tuple(
        (
            kind,
            method,
            len(group),
            sum(one.real and one.test.difference > 0 for one in group),
            sum(not one.real for one in group),
            sum(one.real and one.test.difference < 0 for one in group),
            sum(one.test.difference for one in group) / len(group),
        )
        for (kind, method), group in counts.items()
    )
    columns = (
        Column("datasets"), Column("All against"), Column("comparisons"), Column("really better"),
        Column("may be chance"), Column("really worse"), Column("mean difference"),
    )  # fmt: skip
    note = "Really worse: p < 0.05 in the paired randomisation test, after Holm's correction over all comparisons here."
    return Table("all-against", "All against the other methods", columns, rows, note)


def _tests(compared: Sequence[Comparison], variant: Variant) -> Table:
    rows = tuple(
        (
            _name(one, variant),
            one.before.method,
            one.measure,
            one.test.before,
            one.test.after,
            one.test.difference,
            f"[{one.test.low:+.3f}, {one.test.high:+.3f}]",
            one.test.p_value,
            one.adjusted_p_value,
            f"{one.test.wins:,} / {one.test.ties:,} / {one.test.losses:,}",
            "real" if one.real else "may be chance",
        )
        for one in compared
    )
    columns = (
        Column("dataset"), Column("method"), Column("measure"), Column("method's"), Column("All's"),
        Column("difference"), Column("95 %"), Column("p", decimals=5), Column("p, Holm", decimals=4),
        Column("win / tie / loss"), Column("so"),
    )  # fmt: skip
    note = (
        "The difference is All minus the method, with the 95 % bootstrap interval; "
        f"p is from up to {resamples_for(len(compared)):,} random sign flips; duplicates of a query count once. "
        "Win, tie and loss count the queries where All is better, equal or worse."
    )
    return Table("significance", "Is the difference real?", columns, rows, note)


def _changes(compared: Sequence[Comparison], variant: Variant) -> Table:
    """Return the queries that change most from the first baseline, or from Dense without one, to All."""
    methods = [one.before for one in compared]
    baselines = [ranking.method for ranking in methods if ranking.record.kind == "baseline"]
    against = baselines[0] if baselines else methods[0].method
    found: list[tuple[Comparison, QueryChange]] = []
    for one in compared:
        if one.before.method == against:
            changed = most_changed(one.before, one.after, one.measure, MOST_CHANGED)
            found += [(one, change) for change in (*changed.better, *changed.worse)]
    found.sort(key=lambda pair: pair[1].before - pair[1].after)
    better = [pair for pair in found if pair[1].after > pair[1].before][:MOST_CHANGED]
    worse = [pair for pair in found if pair[1].after < pair[1].before][-MOST_CHANGED:]
    columns = (
        Column("dataset"), Column("query"), Column(against), Column("all"), Column("relevant document"),
        Column(f"rank, {against} → all"), Column("dense"), Column("sparse"), Column("multi-vector"), Column("weights"),
        Column("score of all"),
    )  # fmt: skip
    rows = tuple(_change(comparison, change, variant) for comparison, change in (*better, *worse))
    title = f"Queries that change most from {against} to All"
    note = (
        "The scores are those of the relevant document that moved most; – means that All does not return it. "
        "The score of All is their weighted sum. m3 compare DIR --methods "
        f"{against},all --queries N shows more queries and every relevant document."
    )
    return Table("changes", title, columns, rows, note)


def _change(comparison: Comparison, change: QueryChange, variant: Variant) -> tuple[Cell, ...]:
    head = (_name(comparison, variant), change.text, change.before, change.after)
    if not change.documents:
        return (*head, None, None, None, None, None, None, None)
    document = change.documents[0]
    scores = document.after.scores if document.after.candidate else None
    used = comparison.after.record.weights
    total = None
    if scores is not None and used is not None:
        parts = (scores.dense, scores.sparse, scores.multivector)
        total = sum(weight * part for weight, part in zip(used, parts, strict=True) if part is not None)
    return (
        *head,
        document.id,
        f"{_rank(document.before)} → {_rank(document.after)}",
        *((scores.dense, scores.sparse, scores.multivector) if scores else (None, None, None)),
        " ".join(f"{weight:g}" for weight in used or ()),
        total,
    )


def _rank(standing: Standing) -> str:
    return str(standing.rank) if standing.rank else "none"


def _published(
    folders: Sequence[EvaluationFolder], published: Mapping[tuple[str, str, str], float]
) -> list[Table]:
    rows = tuple(
        (
            f"{one.task}{variant}",
            one.method,
            one.model,
            f"{one.fusion} fusion",
            one.measure,
            one.measured,
            one.published,
            one.difference,
            "; ".join(one.deviations),
        )
        for variant, members in by_variant(folders).items()
        for one in beside_published(members, published)
    )
    columns = (
        Column("dataset"), Column("method"), Column("model"), Column("fusion"), Column("measure"), Column("here"),
        Column("published"), Column("difference"), Column("deviations from the paper"),
    )  # fmt: skip
    note = (
        f"Published: {PAPER}. Only evaluations on the paper's split with all its queries are listed. "
        "A row with deviations is a different experiment from the paper's, so it has no difference."
    )
    return [Table("published", "Comparison with published numbers", columns, rows, note)] if rows else []


def _kind(one: Comparison, variant: Variant) -> str:
    return f"{family_name(one.before.dataset)}{variant[one.before.folder.path]}"


def _name(one: Comparison, variant: Variant) -> str:
    dataset = one.before.dataset
    name = dataset.name if dataset.split in ("test", "dev") else f"{dataset.name} {dataset.split}"
    return f"{name}{variant[one.before.folder.path]}"
