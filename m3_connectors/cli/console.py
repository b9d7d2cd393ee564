"""Output: results on stdout, everything else on stderr, plain text where the stream is not a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PLAIN_WIDTH = 140
"""Width in columns where stdout is not a terminal: wide enough to read, and the same everywhere."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells."""

COMPONENT_LABELS = {"dense": "dense", "sparse": "sparse", "multivector": "multi"}
"""Short names of the components, used in lines of scores and weights."""


class _Console(Console):
    """A console that writes to the current sys.stdout or sys.stderr, so that redirection works."""

    def __init__(self, *, stderr: bool) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(stderr=stderr, width=None if stream.isatty() else _PLAIN_WIDTH, highlight=False)


out = _Console(stderr=False)
"""Console for results."""

err = _Console(stderr=True)
"""Console for progress, warnings and error messages."""


def print_json(document: Any) -> None:
    """Print the JSON document of a ``--json`` call on stdout."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(document, ensure_ascii=not is_utf8, indent=2, allow_nan=False) + "\n")


def print_table(table: Table) -> None:
    """Print a table on stdout; without a terminal, trailing spaces are removed from its lines."""
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as capture:
        out.print(table)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def warn(message: str) -> None:
    """Print a warning on stderr."""
    err.print(Text.assemble(("warning  ", "yellow"), message), soft_wrap=True)


class _Warnings(logging.Handler):
    """Prints the log records of the package on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record as one line."""
        if record.levelno >= logging.WARNING:
            warn(record.getMessage())
        else:
            err.print(Text.assemble(("· ", "dim"), (record.getMessage(), "dim")), soft_wrap=True)


@contextlib.contextmanager
def logged(*, debug: bool) -> Iterator[None]:
    """Show the log of the package: warnings and, with ``debug``, also information such as retries."""
    log, handler = logging.getLogger("m3_connectors"), _Warnings()
    level = log.level
    log.setLevel(logging.INFO if debug else logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def escape_what_cannot_be_printed() -> None:
    """Print characters that the terminal cannot encode, and file names that are not Unicode, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Show a status line during an operation if stderr is a terminal."""
    if err.is_terminal:
        with err.status(what):
            yield
    else:
        yield


def lines_of(error: Exception) -> list[str]:
    """Return the lines of an error's message and of its notes: what happened, then what to do."""
    notes: list[str] = getattr(error, "__notes__", [])
    return [*str(error).splitlines(), *notes]


def duration(seconds: float) -> str:
    """Format seconds for people: ``0.4 s``, ``12 s``, ``2 min 10 s``, ``3 h 12 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plural(count: int, noun: str) -> str:
    """Return the count with the noun: ``1 document``, ``1,204 documents``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def without_controls(line: str) -> str:
    """A line of text whose control characters are blanks: in a terminal they could do anything, such as clear it."""
    return "".join(
        " " if unicodedata.category(letter) == "Cc" and letter != "\t" else letter for letter in line
    )


def one_line(text: str) -> str:
    """Return the text with every run of whitespace and control characters replaced by one space."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text[:1000]).split())
