"""The program ``m3``: its commands, and how it reports a failure to the user."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from m3_connectors import __version__
from m3_connectors.cli.console import err, escape_what_cannot_be_printed, lines_of, logged, out
from m3_connectors.cli.threads import settle_threads
from m3_connectors.errors import M3Error

_MODULES = {
    "index": "index",
    "ingest": "ingest",
    "add-component": "components",
    "search": "search",
    "explain": "explain",
    "collections": "collections",
    "get": "documents",
    "delete": "documents",
    "export": "backups",
    "import": "backups",
    "eval": "evaluate",
    "compare": "compare",
    "tune": "tune",
    "report": "report",
    "serve": "serve",
    "mcp": "mcp",
    "encode": "encode",
    "train": "train",
    "mine": "mine",
    "score-pairs": "mine",
    "export-model": "export_model",
    "data": "data",
    "bench": "bench",
    "doctor": "doctor",
}
"""The commands in the order of the help, and the modules of ``cli`` that define them."""

_FUNCTIONS = {
    "add-component": "add_component",
    "import": "import_",
    "export-model": "export_model",
    "eval": "evaluate",
    "score-pairs": "score_pairs",
}
"""What defines a command where it has another name."""


class _Commands(MutableMapping[str, Any]):
    """The commands by name; each is imported when it is used, so that ``m3 --version`` imports none."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            module = importlib.import_module(f"m3_connectors.cli.{_MODULES[name]}")
            self._built[name] = _built(name, getattr(module, _FUNCTIONS.get(name, name)))
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)

    def __setitem__(self, name: str, command: Any) -> None:
        self._built[name] = command

    def __delitem__(self, name: str) -> None:
        del self._built[name]


def _built(name: str, defined: Callable[..., None] | typer.Typer) -> Any:
    if isinstance(defined, typer.Typer):
        command = typer.main.get_command(defined)
    else:
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
        alone.command()(defined)
        command = typer.main.get_command(alone)
    command.name = name
    return command


class _Program(TyperGroup):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _Commands()


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


app = typer.Typer(
    name="m3",
    cls=_Program,
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The arguments after ``m3``; those of the process by default.

    Returns:
        The exit code: 0 for success, 1 for a failure (the reason is on stderr), 2 for wrong usage, 130 for
        Ctrl-C.
    """
    if arguments is None:  # the process is this program's own
        settle_threads(os.environ)
        arguments = sys.argv[1:]
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
