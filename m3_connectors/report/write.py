"""The report of a tree of evaluations and benchmarks: every table, figure and the page anew, from their files alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m3_connectors.bench import folder as bench
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation import folder as evaluation
from m3_connectors.evaluation.datasets.published import numbers_by_task
from m3_connectors.report.comparison_tables import comparison_tables
from m3_connectors.report.cost_plots import latency_plot, method_plot, quality_against_cost
from m3_connectors.report.cost_tables import cost_tables
from m3_connectors.report.page import Section, page
from m3_connectors.report.quality_plots import quality_plots
from m3_connectors.report.style import Plot
from m3_connectors.report.table import Table
from m3_connectors.report.tables import incomplete_table, quality_tables

FILES = "files.json"
"""Names of what the report wrote beside it: the next one removes those that it does not write itself."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        tables: In order.
        files: Where everything is, the page first.
        incomplete: Evaluations that are in no table of numbers.
        cut_off: Benchmarks that were interrupted: what they had measured until then is in the tables.
        void: Benchmarks whose numbers must not be used.
        unreadable: Benchmarks whose rows cannot be read (killed, or still running): they are in no table.
    """

    tables: tuple[Table, ...]
    files: tuple[Path, ...]
    incomplete: tuple[Path, ...]
    cut_off: tuple[Path, ...]
    void: tuple[Path, ...]
    unreadable: tuple[Path, ...]


def write_report(root: Path, out: Path | None = None) -> Report:
    """Compute all numbers anew and write the report of what is at or below a folder.

    Args:
        root: The tree.
        out: Where to; ``ROOT/report`` by default.

    Raises:
        InvalidInput: Nothing is there, or files do not belong together.
        MissingDependency: What draws or lays out is not installed.
    """
    target = out or root / "report"
    benchmarks = _named(bench.find_folders(root), root)
    summaries: dict[str, dict[str, Any]] = {}
    unreadable: dict[str, str] = {}
    for name, measured in benchmarks.items():
        try:
            summaries[name] = measured.summary()
        except InvalidInput as error:  # One that was killed must not hide all others.
            unreadable[name] = str(error)
    folders = evaluation.find_folders(root) if not benchmarks or any(root.rglob(evaluation.RECORD)) else []
    complete = [folder for folder in folders if folder.record.complete]
    incomplete = [folder for folder in folders if not folder.record.complete]
    for folder in complete:
        folder.measure()
    sections = [
        *([_quality(complete, incomplete)] if folders else []),
        *(
            [Section("Comparisons", tuple(comparison_tables(complete, numbers_by_task())))]
            if complete
            else []
        ),
        *(
            _cost(name, folder, summaries[name])
            if name in summaries
            else Section(f"Cost: {name}", (), warnings=(unreadable[name],))
            for name, folder in benchmarks.items()
        ),
    ]
    both = quality_against_cost(complete, summaries)
    if both is not None:
        sections.append(Section("Quality against cost", (both,)))
    void = tuple(benchmarks[name].path for name, summary in summaries.items() if summary["void"])
    cut_off = tuple(benchmarks[name].path for name, summary in summaries.items() if not summary["complete"])
    tables = tuple(item for section in sections for item in section.items if isinstance(item, Table))
    files = _write(target, f"Report: {root.resolve().name}", sections, tables)
    return Report(
        tables,
        files,
        tuple(folder.path for folder in incomplete),
        cut_off,
        void,
        tuple(benchmarks[name].path for name in unreadable),
    )


def _named(folders: Sequence[bench.BenchFolder], root: Path) -> dict[str, bench.BenchFolder]:
    """Benchmarks by the names of their folders; those that share one by their paths below the root."""
    names = [folder.path.resolve().name for folder in folders]
    return {
        name if names.count(name) == 1 else folder.path.relative_to(root).as_posix(): folder
        for name, folder in zip(names, folders, strict=True)
    }


def _quality(
    complete: Sequence[evaluation.EvaluationFolder], incomplete: Sequence[evaluation.EvaluationFolder]
) -> Section:
    tables = quality_tables(complete) if complete else []
    warnings: tuple[str, ...] = ()
    if incomplete:
        tables.insert(0, incomplete_table(incomplete))
        warnings = (f"{len(incomplete)} evaluations are incomplete and in no number.",)
    return Section("Quality", (*tables, *(quality_plots(complete) if complete else ())), warnings=warnings)


def _cost(name: str, folder: bench.BenchFolder, summary: Mapping[str, object]) -> Section:
    machine = folder.record["environment"]
    corpus = folder.record["scenario"]["corpus"]
    plots = (latency_plot(name, folder.requests(), summary), method_plot(name, summary))
    return Section(
        f"Cost: {name}",
        (*cost_tables(name, summary), *(plot for plot in plots if plot is not None)),
        notes=(
            f"Synthetic documents of {corpus['dimension']:,} dimensions and {corpus['rows']['mean']:g} rows "
            f"({corpus['storage']['multivector_dtype']}), queries of {corpus['query_rows']} rows; nothing is encoded.",
            f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['date'][:10]}, "
            f"commit {machine['commit']}.",
        ),
        warnings=(
            *(["Some of these numbers are void: see the last columns."] if summary["void"] else []),
            *(
                []
                if summary["complete"]
                else ["This benchmark was interrupted: its last load is cut short, and others are missing."]
            ),
        ),
    )


def _write(
    target: Path, title: str, sections: Sequence[Section], tables: Sequence[Table]
) -> tuple[Path, ...]:
    target.mkdir(parents=True, exist_ok=True)
    files = {
        "report.html": page(title, sections),
        "tables.md": "\n".join(table.to_markdown() for table in tables),
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


def _listed(target: Path) -> set[str]:
    """The files of the report that is there; only names, whatever the list says: nothing elsewhere is removed."""
    try:
        names = json.loads((target / FILES).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return set()
    return {name for name in names if isinstance(name, str) and name and Path(name).name == name}
