"""``m3 report``: every table of a folder of evaluations, from its files alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from m3_connectors.cli.console import err, print_json, warn
from m3_connectors.cli.options import Debug, Json


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Evaluations of m3 eval --out, at any depth.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write.", show_default="DIR/report")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure the runs of evaluations anew and write their tables."""
    from m3_connectors.report.write import write_report

    written = write_report(folder, out)
    for path in written.incomplete:
        warn(f"{path} is incomplete and in no table: go on with its m3 eval command")
    if json:
        print_json([table.to_json() for table in written.tables])
    else:
        sys.stdout.write("\n".join(table.to_markdown() for table in written.tables))
    for path in written.files:
        err.print(f"wrote {path}", markup=False, soft_wrap=True)
