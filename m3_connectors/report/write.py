"""Write the report of a tree of evaluations and benchmarks (tables, figures and a page) from its files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from m3_connectors.bench import folder as bench
from m3_connectors.bench.records import Summary
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation import folder as evaluation
from m3_connectors.evaluation.datasets.published import numbers_by_task
from m3_connectors.report.comparison_tables import comparison_tables
from m3_connectors.report.cost_plots import latency_plot, method_plot
from m3_connectors.report.cost_tables import cost_tables
from m3_connectors.report.findings import cost_findings, quality_findings
from m3_connectors.report.page import Section, page
from m3_connectors.report.quality_cost_plot import quality_against_cost
from m3_connectors.report.quality_plots import quality_plots
from m3_connectors.report.style import Plot, slugs
from m3_connectors.report.table import Table
from m3_connectors.report.tables import incomplete_table, quality_tables

FILES = "files.json"
"""The file that lists what a report wrote; the next report removes the files that it does not write."""


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of writing a report.

    Attributes:
        findings: What was found, in sentences.
        tables: In order.
        files: Where everything is, the page first.
        incomplete: Evaluations that are in no table of numbers.
        cut_off: Benchmarks that were interrupted: what they had measured until then is in the tables.
        void: Benchmarks whose numbers must not be used.
        unreadable_evaluations: Those that cannot be read, and why: they are in no table, and means lack them.
        unreadable_benchmarks: Those that cannot be read, and why: they are in no table.
    """

    findings: tuple[str, ...]
    tables: tuple[Table, ...]
    files: tuple[Path, ...]
    incomplete: tuple[Path, ...]
    cut_off: tuple[Path, ...]
    void: tuple[Path, ...]
    unreadable_evaluations: dict[Path, str]
    unreadable_benchmarks: dict[Path, str]


def write_report(root: Path, out: Path | None = None) -> Report:
    """Recompute all numbers and write the report of the evaluations and benchmarks at or below a folder.

    Args:
        root: The tree.
        out: Where to; ``ROOT/report`` by default.

    Raises:
        InvalidInput: Nothing is there, or nothing of it can be read.
        MissingDependency: What draws or lays out is not installed.
    """
    target = out or root / "report"
    evaluations, damaged_evaluations = _evaluations(root)
    benchmarks, damaged_benchmarks = _benchmarks(root)
    unreadable = damaged_evaluations | damaged_benchmarks
    if not evaluations and not benchmarks:
        raise InvalidInput(_nothing(root, unreadable))
    complete = [folder for folder in evaluations if folder.record.complete]
    incomplete = [folder for folder in evaluations if not folder.record.complete]
    summaries = {one.name: one.summary for one in benchmarks}
    sections = [
        *([_damaged(root, unreadable)] if unreadable else []),
        *([_quality(complete, incomplete)] if evaluations else []),
        *(
            [Section("Comparisons", tuple(comparison_tables(complete, numbers_by_task())))]
            if complete
            else []
        ),
        *(one.section for one in benchmarks),
    ]
    both = quality_against_cost(complete, summaries)
    if both:
        sections.append(Section("Quality against cost", tuple(both)))
    tables = tuple(item for section in sections for item in section.items if isinstance(item, Table))
    findings = (*quality_findings(complete), *cost_findings(complete, summaries))
    files = _write(target, f"Report: {root.resolve().name}", sections, tables, findings)
    return Report(
        findings,
        tables,
        files,
        tuple(folder.path for folder in incomplete),
        tuple(one.path for one in benchmarks if not one.summary.complete),
        tuple(one.path for one in benchmarks if one.summary.void),
        damaged_evaluations,
        damaged_benchmarks,
    )


@dataclasses.dataclass(frozen=True)
class _Benchmark:
    path: Path
    name: str
    summary: Summary
    section: Section


def _evaluations(root: Path) -> tuple[list[evaluation.EvaluationFolder], dict[Path, str]]:
    """Return the evaluations that can be read and measured, and why the others cannot."""
    found, damaged = [], {}
    for path in sorted(root.rglob(evaluation.RECORD)):
        try:
            folder = evaluation.EvaluationFolder(path.parent)
            folder.environment()
            if folder.record.complete:
                folder.measure()
                folder.means()
                folder.documents()
                # The figures read these files later, when one damaged file would stop the whole report.
                for _ in folder.score_parts():
                    pass
            found.append(folder)
        except _DAMAGED as error:
            damaged[path.parent] = _reason(error)
    return found, damaged


def _benchmarks(root: Path) -> tuple[list[_Benchmark], dict[Path, str]]:
    """Return the folders that can be read, with their contents, and why the others cannot be read."""
    paths = [path.parent for path in sorted(root.rglob(bench.RECORD))]
    names = _named(paths, root)
    anchors = slugs(names)
    found, damaged = [], {}
    for name, path in zip(names, paths, strict=True):
        try:
            folder = bench.BenchFolder(path)
            summary = folder.summary()
            section = _cost(name, folder, summary, anchors[name])
        except _DAMAGED as error:
            damaged[path] = _reason(error)
        else:
            found.append(_Benchmark(path, name, summary, section))
    return found, damaged


_DAMAGED = (InvalidInput, OSError, KeyError, TypeError, ValueError, AttributeError)
"""The errors of reading a folder that is truncated, edited, or written by another version."""


def _reason(error: Exception) -> str:
    return (
        str(error) if isinstance(error, InvalidInput) else f"It is damaged: {type(error).__name__}: {error}"
    )


def _nothing(root: Path, unreadable: Mapping[Path, str]) -> str:
    if unreadable:
        every = "\n".join(f"{path}: {reason}" for path, reason in unreadable.items())
        return f"nothing at or below {root} can be read.\n{every}\n  Restore these folders, or repeat their runs."
    what = (
        f"{root} contains no evaluation and no benchmark" if root.is_dir() else f"there is no folder {root}"
    )
    return f"{what}.\n  m3 eval DATASET --out {root}\n  m3 bench SCENARIO.toml --out {root}"


def _damaged(root: Path, unreadable: Mapping[Path, str]) -> Section:
    warnings = tuple(f"{path.relative_to(root).as_posix()}: {reason}" for path, reason in unreadable.items())
    return Section("Folders that cannot be read and are not included", (), (), warnings)


def _named(paths: Sequence[Path], root: Path) -> list[str]:
    """Return the folders' names; for folders of the same name, their paths below the root."""
    names = [path.resolve().name for path in paths]
    return [
        name if names.count(name) == 1 else path.relative_to(root).as_posix()
        for name, path in zip(names, paths, strict=True)
    ]


def _quality(
    complete: Sequence[evaluation.EvaluationFolder], incomplete: Sequence[evaluation.EvaluationFolder]
) -> Section:
    tables = quality_tables(complete) if complete else []
    warnings: tuple[str, ...] = ()
    if incomplete:
        tables.insert(0, incomplete_table(incomplete))
        some = "1 evaluation is" if len(incomplete) == 1 else f"{len(incomplete)} evaluations are"
        warnings = (f"{some} incomplete and not included.",)
    return Section("Quality", (*tables, *(quality_plots(complete) if complete else ())), warnings=warnings)


def _cost(name: str, folder: bench.BenchFolder, summary: Summary, anchor: str) -> Section:
    machine = folder.record.environment
    corpus = folder.record.scenario.corpus
    plots = (latency_plot(name, folder.requests(), summary, anchor), method_plot(name, summary, anchor))
    return Section(
        f"Cost: {name}",
        (*cost_tables(name, summary, anchor), *(plot for plot in plots if plot is not None)),
        notes=(
            f"Synthetic documents of {corpus.dimension:,} dimensions and {corpus.rows.mean:g} rows "
            f"({corpus.storage.multivector_dtype}), queries of {corpus.query_rows} rows; no text is encoded.",
            f"{machine.processor}, {machine.cores} cores, {machine.memory_gib} GiB, {machine.date[:10]}, "
            f"commit {machine.commit}.",
        ),
        warnings=(
            *(["Some of these numbers are void: see the last columns."] if summary.void else []),
            *(
                []
                if summary.complete
                else ["This benchmark was interrupted: its last load is incomplete, and others are missing."]
            ),
        ),
    )


def _write(
    target: Path,
    title: str,
    sections: Sequence[Section],
    tables: Sequence[Table],
    findings: Sequence[str],
) -> tuple[Path, ...]:
    target.mkdir(parents=True, exist_ok=True)
    files = {
        "report.html": page(title, sections, findings),
        "tables.md": markdown(findings, tables),
        "tables.json": json.dumps([table.to_json() for table in tables], indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in files.items():
        evaluation.write_text(target / name, text)
    plots = [item for section in sections for item in section.items if isinstance(item, Plot)]
    for plot in plots:
        evaluation.write_text(target / f"{plot.name}.svg", plot.svg)
        (target / f"{plot.name}.png").write_bytes(plot.png)
    written = [*files, *(f"{plot.name}.{ending}" for plot in plots for ending in ("svg", "png"))]
    for name in _listed(target) - set(written):
        (target / name).unlink(missing_ok=True)
    evaluation.write_text(target / FILES, json.dumps(sorted(written), indent=1) + "\n")
    return tuple(target / name for name in written)


def markdown(findings: Sequence[str], tables: Sequence[Table]) -> str:
    """Return the findings and every table as Markdown."""
    told = "".join(f"- {sentence}\n" for sentence in findings)
    return "\n".join([f"### Findings\n\n{told}"] * bool(findings) + [table.to_markdown() for table in tables])


def _listed(target: Path) -> set[str]:
    """Return the names of the existing report's files; never paths, so that nothing elsewhere is removed."""
    try:
        names = json.loads((target / FILES).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return set()
    return {name for name in names if isinstance(name, str) and name and Path(name).name == name}
