"""Tables of evaluations, computed from their folders alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.evaluation.record import EvaluationRecord, SessionRecord
from m3_connectors.report.table import Cell, Column, Table
from m3_connectors.report.variants import crosses, family_name, variants

Means = dict[str, dict[str, float]]
"""For each method and measure, the mean over an evaluation's queries."""

_OF_EACH = ("dataset", "split", "documents", "queries")
"""Facts that are always listed for each evaluation."""

_FEW = 3
"""The most evaluations that a cell names; if there are more, it shows their number."""


@dataclasses.dataclass(frozen=True)
class _Evaluated:
    record: EvaluationRecord
    variant: str
    means: Means
    sessions: Sequence[SessionRecord]


def quality_tables(folders: Sequence[EvaluationFolder]) -> list[Table]:
    """Return one table per measure (methods by datasets), then the sources of the numbers and the warnings.

    Means over several datasets (languages) weigh each alike, as the paper's do. A method that one of the
    datasets lacks has no mean over them: it would be one over fewer.

    Args:
        folders: Complete evaluations.

    Raises:
        InvalidInput: One is incomplete, or its files do not belong together.
    """
    named = variants([folder.require_complete() for folder in folders])
    evaluated = [
        _Evaluated(folder.record, variant, folder.means(), folder.environment())
        for folder, variant in zip(folders, named, strict=True)
    ]
    measures = dict.fromkeys(m for one in evaluated for m in one.record.protocol.measures)
    tables = [_quality_table(measure, evaluated) for measure in measures]
    return [*tables, _methods_table(evaluated), *_evaluations_tables(evaluated), *_warnings_table(evaluated)]


def incomplete_table(folders: Sequence[EvaluationFolder]) -> Table:
    """Return the table of the interrupted evaluations, which no other table includes."""
    rows = tuple(
        (folder.path.name, folder.record.dataset.name, folder.record.dataset.split) for folder in folders
    )
    return Table(
        "incomplete",
        "Incomplete evaluations, not included in other tables",
        (Column("folder"), Column("dataset"), Column("split")),
        rows,
        "Run the same m3 eval commands again to complete them.",
    )


def _quality_table(measure: str, evaluated: Sequence[_Evaluated]) -> Table:
    measured = [one for one in evaluated if measure in one.record.protocol.measures]
    methods = list(dict.fromkeys(method for one in measured for method in one.means))
    rows: list[tuple[Cell, ...]] = []
    for label, members in _groups(measured).items():
        queries = sum(one.record.dataset.queries for one in members)
        rows.append((label, queries, *(_mean(members, method, measure) for method in methods)))
    return Table(
        name=f"quality-{measure.replace('@', '-').lower()}",
        title=measure,
        columns=(Column("dataset"), Column("queries"), *(Column(method, best=max) for method in methods)),
        rows=tuple(rows),
        by_row=True,
    )


def _mean(members: Sequence[_Evaluated], method: str, measure: str) -> float | None:
    values = [one.means[method][measure] for one in members if method in one.means]
    return sum(values) / len(values) if len(values) == len(members) else None


def _groups(evaluated: Sequence[_Evaluated]) -> dict[str, list[_Evaluated]]:
    """Group evaluations by table line: each alone, then means over languages and across languages."""
    splits: dict[str, set[str]] = {}
    for one in evaluated:
        if not crosses(one.record.dataset):
            for name in (one.record.dataset.name, one.record.dataset.family):
                splits.setdefault(name, set()).add(one.record.dataset.split)
    singles: dict[str, list[_Evaluated]] = {}
    means: dict[str, list[_Evaluated]] = {}
    for one in evaluated:
        dataset = one.record.dataset
        if crosses(dataset):
            of = family_name(dataset)
            single = f"{of}, {dataset.query_language} → {dataset.passage_language}"
            over = [
                "mean",
                f"documents in {dataset.passage_language}",
                f"questions in {dataset.query_language}",
            ]
        else:
            of = f"{dataset.family}, {dataset.split}" if len(splits[dataset.family]) > 1 else dataset.family
            single = f"{dataset.name}, {dataset.split}" if len(splits[dataset.name]) > 1 else dataset.name
            over = ["mean"]
        singles.setdefault(f"{single}{one.variant}", []).append(one)
        for what in over:
            means.setdefault(f"{of}, {what}{one.variant}", []).append(one)
    # The mean of one evaluation would repeat it.
    groups = singles | {label: members for label, members in means.items() if len(members) > 1}
    # The means come first, because most readers look for them.
    return dict(
        sorted(
            groups.items(), key=lambda item: (item[1][0].record.dataset.family, item[0] in singles, item[0])
        )
    )


def _methods_table(evaluated: Sequence[_Evaluated]) -> Table:
    used: dict[tuple[Cell, ...], list[str]] = {}
    for one in evaluated:
        for method in one.record.methods:
            row = (
                method.name,
                ", ".join(f"{name} {depth:,}" for name, depth in (method.candidates or {}).items()),
                " ".join(f"{weight:g}" for weight in method.weights or ()),
                method.description,
            )
            used.setdefault(row, []).append(
                f"{one.record.dataset.name} {one.record.dataset.split}{one.variant}"
            )
    rows = tuple((*row, _where(names, len(evaluated))) for row, names in used.items())
    columns = (
        Column("method"), Column("candidates"), Column("weights"), Column("description"), Column("evaluations"),
    )  # fmt: skip
    note = "Weights are those of the dense, sparse and multi-vector score."
    return Table("methods", "Methods", columns, rows, note).without_empty("description")


def _where(names: Sequence[str], everything: int) -> str:
    """Return the names of the evaluations, or their number if there are many."""
    if len(names) == everything:
        return f"all {everything:,}"
    return ", ".join(names) if len(names) <= _FEW else f"{len(names):,} of {everything:,}"


def _evaluations_tables(evaluated: Sequence[_Evaluated]) -> list[Table]:
    """Return the sources of the numbers: one line per evaluation, and one line per fact that all share."""
    columns: Mapping[str, Callable[[EvaluationRecord], Cell]] = {
        "dataset": lambda record: record.dataset.name,
        "split": lambda record: record.dataset.split,
        "source": lambda record: (
            record.dataset.source + (f"@{record.dataset.revision[:7]}" if record.dataset.revision else "")
        ),
        "licence": lambda record: record.dataset.licence,
        "documents": lambda record: record.dataset.documents,
        "queries": lambda record: record.dataset.queries,
        "model": lambda record: str(record.model),
        "weights' fingerprint": lambda record: (record.model.weights_fingerprint or "")[:12] or None,
        "store": lambda record: record.store.backend,
        "fusion": lambda record: record.protocol.fusion,
        "precision": lambda record: record.protocol.precision,
        "lists": lambda record: "exact" if record.protocol.exact_lists else "approximate",
        "queries truncated at": lambda record: record.protocol.query_max_length or "model's maximum",
        "documents truncated at": lambda record: record.protocol.passage_max_length or "model's maximum",
        "warnings": lambda record: len(record.warnings),
    }
    rows = tuple(
        (*(cell(one.record) for cell in columns.values()), *_sessions(one.sessions)) for one in evaluated
    )
    names = (*columns, "commit", "processor", "date")
    shared = [
        i for i, name in enumerate(names) if name not in _OF_EACH and len({row[i] for row in rows}) == 1
    ]
    own = [i for i in range(len(names)) if i not in shared]
    note = (
        "The fingerprint of the weights distinguishes models of the same name; commit is that of this package. The "
        "weights of the methods are listed with them above."
    )
    each = Table(
        "evaluations",
        "Evaluations",
        tuple(Column(names[i]) for i in own),
        tuple(tuple(row[i] for i in own) for row in rows),
        "" if shared else note,
    )
    facts = tuple((names[i], rows[0][i]) for i in shared)
    columns_of_facts = (Column("what"), Column("value"))
    title = "What all evaluations share" if len(rows) > 1 else "How it was evaluated"
    return [each, *([Table("evaluations-shared", title, columns_of_facts, facts, note)] if facts else [])]


def _sessions(sessions: Sequence[SessionRecord]) -> tuple[Cell, ...]:
    """Return the commits, processors and dates of an evaluation; a resumed one may have several of each."""
    columns = (
        [session.commit or "" for session in sessions],
        [session.processor or "" for session in sessions],
        [(session.date or "")[:10] for session in sessions],
    )
    return tuple(", ".join(filter(None, dict.fromkeys(values))) or None for values in columns)


def _warnings_table(evaluated: Sequence[_Evaluated]) -> list[Table]:
    rows = tuple(
        (one.record.dataset.name, one.record.dataset.split, warning)
        for one in evaluated
        for warning in one.record.warnings
    )
    columns = (Column("dataset"), Column("split"), Column("warning"))
    return [Table("warnings", "Warnings", columns, rows)] if rows else []
