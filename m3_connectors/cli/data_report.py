"""Writing the examples of ``m3 data``, with the report of what was kept and dropped."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

from rich.table import Table

from m3_connectors.cli.console import duration, out, plural, print_json, print_table
from m3_connectors.cli.progress import Progress, acknowledging_interrupts
from m3_connectors.curation import Curation
from m3_connectors.errors import InvalidInput
from m3_connectors.training_data.curating import Origin, PairCurator, PairReport
from m3_connectors.training_data.examples import Example, Unusable
from m3_connectors.training_data.files import DROPPED_SUFFIX, beside, check_output, lines_to
from m3_connectors.training_data.overlap import KeptOut

_SHOWN_LANGUAGES = 20
_EVERY = 100


def write_examples(
    items: Iterable[Example | Unusable],
    to: Path,
    curation: Curation,
    kept_out: KeptOut | None,
    *,
    origin: Origin,
    sources: Iterable[object],
    json: bool,
) -> None:
    """Curate examples, write those that are kept, and print the report.

    Args:
        items: The examples, and what has none.
        to: The file to write.
        curation: What is dropped.
        kept_out: Evaluation texts.
        origin: See ``PairCurator``.
        sources: What is read.
        json: Whether the report is printed as JSON.

    Raises:
        InvalidInput: No example was kept, or ``to`` is a part of ``sources``; an earlier file is left as it was.
    """
    check_output(to, sources)
    dropped_to = beside(to, DROPPED_SUFFIX)
    started = time.monotonic()
    with (
        Progress() as progress,
        acknowledging_interrupts(progress, lambda: "Stopping; nothing is written"),
        lines_to(dropped_to) as dropped,
        PairCurator(
            curation,
            kept_out,
            lambda pair: dropped.write(pair.to_dict()),
            origin=origin,
        ) as curator,
    ):
        kept = curator.curated(items)
        first = next(kept, None)
        if first is not None:
            with lines_to(to) as lines:
                for example in chain([first], kept):
                    lines.write(example.to_record())
                    if not lines.count % _EVERY:
                        progress.update("pairs", lines.count, unit="lines")
        report = curator.report
    if first is None:
        raise InvalidInput(
            f"no pair was kept of {report.read:,}, so {to} was not written ({_counts(report.dropped)}).\n"
            f"  {dropped_to} has the reasons: change the options, or the sources."
        )
    names = [] if kept_out is None else kept_out.names
    if json:
        kept_out_by = {name: report.kept_out.get(name, 0) for name in names}
        files = {"to": str(to), "dropped_pairs": str(dropped_to) if report.dropped else None}
        print_json({**report.to_dict(), "kept_out": kept_out_by, **files})
        return
    print_report(report, names)
    parts = [f"{plural(report.examples, 'line')} in {to}"]
    if report.dropped:
        parts.append(f"{sum(report.dropped.values()):,} dropped (see {dropped_to})")
    out.print("  " + " · ".join([*parts, duration(time.monotonic() - started)]), markup=False, soft_wrap=True)


def print_report(report: PairReport, evaluation_sets: Iterable[str]) -> None:
    """Print the counts of a report as a table; each evaluation set has a row, also with 0."""
    table = Table(box=None, pad_edge=True, padding=(0, 1), header_style="dim")
    table.add_column("pairs")
    table.add_column("count", justify="right")
    table.add_row("read", f"{report.read:,}")
    table.add_row("kept", f"{report.kept:,}")
    _rows(table, report.kinds, "  {}" if len(report.kinds) > 1 else "")
    _rows(table, report.dropped, "dropped: {}")
    _rows(table, {name: report.kept_out.get(name, 0) for name in evaluation_sets}, "  shares text with {}")
    if report.negatives or report.negatives_dropped:
        table.add_row("negatives", f"{report.negatives:,}")
        _rows(table, report.negatives_dropped, "  dropped: {}")
    languages = dict(list(report.languages.items())[:_SHOWN_LANGUAGES])
    _rows(table, languages, "language {}")
    if more := len(report.languages) - len(languages):
        others = sum(report.languages.values()) - sum(languages.values())
        table.add_row(f"language: {more} others", f"{others:,}")
    print_table(table)


def _rows(table: Table, counts: Mapping[str, int], label: str) -> None:
    for name, count in counts.items() if label else ():
        table.add_row(label.format(name), f"{count:,}")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "the sources are empty"
