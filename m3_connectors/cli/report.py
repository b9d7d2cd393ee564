"""``m3 report``: write all tables and figures of evaluations and benchmarks from their files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from m3_connectors.cli.console import err, print_json, warn
from m3_connectors.cli.options import Debug, Json


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="A folder with results of m3 eval --out and m3 bench, at any depth."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Output folder.", show_default="DIR/report")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Recompute all numbers of evaluations and benchmarks, and write their tables and figures."""
    from m3_connectors.report.write import markdown, write_report

    written = write_report(folder, out)
    for path in written.incomplete:
        warn(f"{path} is incomplete and not in any table: run its m3 eval command again to continue")
    for path in written.cut_off:
        warn(f"{path} was interrupted: its last load is incomplete, and later loads are missing")
    for path, reason in (written.unreadable_evaluations | written.unreadable_benchmarks).items():
        warn(f"{path} cannot be read and is not in any table: {reason}")
    for path in written.void:
        warn(f"the numbers of {path} are void: the report lists the reasons")
    if json:
        print_json([table.to_json() for table in written.tables])
    else:
        sys.stdout.write(markdown(written.findings, written.tables))
    for path in written.files:
        err.print(f"wrote {path}", markup=False, soft_wrap=True)
    if written.unreadable_evaluations:
        # The report exists, but its means lack datasets: the exit code must show that it is incomplete.
        raise typer.Exit(1)
