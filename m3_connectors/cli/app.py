"""The program ``m3``: its commands, and how it reports a failure to the user."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from m3_connectors import __version__
from m3_connectors.cli.backups import export, import_
from m3_connectors.cli.bench import bench
from m3_connectors.cli.collections import collections
from m3_connectors.cli.compare import compare
from m3_connectors.cli.components import add_component
from m3_connectors.cli.console import err, escape_what_cannot_be_printed, lines_of, logged, out
from m3_connectors.cli.doctor import doctor
from m3_connectors.cli.documents import delete, get
from m3_connectors.cli.encode import encode
from m3_connectors.cli.evaluate import evaluate
from m3_connectors.cli.explain import explain
from m3_connectors.cli.index import index
from m3_connectors.cli.ingest import ingest
from m3_connectors.cli.report import report
from m3_connectors.cli.search import search
from m3_connectors.cli.train import train
from m3_connectors.cli.tune import tune
from m3_connectors.errors import M3Error


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


app = typer.Typer(
    name="m3",
    help="BGE-M3 retrieval: dense, sparse and multi-vector search with exact fusion, in a store you choose.",
    epilog="Start here:  m3 index qdrant:./notes ~/notes   then   m3 search qdrant:./notes 'a question'",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


app.command()(index)
app.command("add-component")(add_component)
app.command()(search)
app.command()(explain)
app.command()(collections)
app.command()(get)
app.command()(delete)
app.command()(export)
app.command("import")(import_)
app.command("eval")(evaluate)
app.command()(compare)
app.command()(tune)
app.command()(report)
app.command()(encode)
app.command()(train)
app.command()(doctor)
app.add_typer(ingest, name="ingest")
app.add_typer(bench, name="bench")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The arguments after ``m3``; those of the process by default.

    Returns:
        The exit code: 0 for success, 1 for a failure (the reason is on stderr), 2 for wrong usage, 130 for
        Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    escape_what_cannot_be_printed()
    try:
        with warnings.catch_warnings(), logged(debug=debug):
            if not debug:
                warnings.simplefilter("ignore")  # the command itself prints what the user needs
            app(args=arguments, prog_name="m3")
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 1
    except BrokenPipeError:
        sys.stderr.close()  # `m3 … | head`: the reader has closed the pipe
        return 0
    except Exception as error:  # noqa: BLE001 (the user gets a reason, not a traceback)
        if debug:
            traceback.print_exc()
        else:
            err.print(_reason(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


def _reason(error: Exception) -> str:
    kind = type(error).__name__
    if isinstance(error, M3Error):
        return f"{kind}: " + "\n".join(lines_of(error))
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{kind}: {error.strerror}{where}" if error.strerror else f"{kind}: {error}"
    first = str(error).splitlines()[0] if str(error) else "no message"
    return (
        f"{kind}: {first}\n  This is a bug in m3: run the command again with --debug and report its output."
    )
