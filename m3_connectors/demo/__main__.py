"""``python -m m3_connectors.demo``: search text that every machine has with all methods of M3."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from m3_connectors.blocking import Index, connect
from m3_connectors.cli.console import (
    duration,
    err,
    escape_what_cannot_be_printed,
    lines_of,
    one_line,
    out,
    working,
)
from m3_connectors.cli.evaluate import measures_table
from m3_connectors.cli.explain import explanation_lines
from m3_connectors.cli.opening import load_encoder
from m3_connectors.cli.progress import Progress
from m3_connectors.cli.threads import settle_threads
from m3_connectors.demo.pydocs import Entry, collect
from m3_connectors.documents import Document, Hit
from m3_connectors.embeddings import COMPONENTS
from m3_connectors.errors import M3Error, MissingDependency, NotFound
from m3_connectors.evaluation.baselines.baseline import Baseline
from m3_connectors.evaluation.baselines.bm25 import WordBM25
from m3_connectors.evaluation.datasets.dataset import Corpus, Dataset
from m3_connectors.evaluation.evaluate import Plan, evaluate

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder

URL = "qdrant:./demo-data"
COLLECTION = "pydocs"
KNOWN_ITEMS = "known-items"
ENTRIES = 6000
"""The number of documents: all of the standard library, and then those of installed packages."""
KNOWN_ITEM_DOCUMENTS = 1500
KNOWN_ITEM_QUERIES = 300
QUESTIONS = {
    "how long does a small piece of code take to run": ("timeit",),
    "remove whitespace from both ends of a string": ("str.strip",),
    "parse the options given on the command line": ("argparse", "getopt", "optparse"),
    "cómo abrir una página web en el navegador": ("webbrowser",),
    "ein Archiv mit komprimierten Dateien lesen": ("tarfile", "zipfile", "shutil.unpack_archive"),
}
"""Questions, each with the names of right answers; names below them are right too."""


def main() -> int:
    """Run the demo and return the exit code: 0, 1 (the reason is on stderr), or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m m3_connectors.demo", description=__doc__)
    parser.add_argument(
        "--model", default=os.environ.get("M3_MODEL", "m3-tiny"), help="m3-tiny, a directory or a hub name"
    )
    model = parser.parse_args().model
    escape_what_cannot_be_printed()
    try:
        demonstrate(model)
    except (M3Error, OSError) as error:
        lines = "\n".join(lines_of(error))
        err.print(f"{type(error).__name__}: {lines}", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        err.print("stopped; the next run starts from the beginning")
        return 130
    return 0


def demonstrate(
    model: str,
    *,
    url: str = URL,
    entries: int = ENTRIES,
    known_items: int = KNOWN_ITEM_DOCUMENTS,
    known_item_queries: int = KNOWN_ITEM_QUERIES,
) -> None:
    """Index the documentation of this Python, search it, explain a score, and measure the methods.

    Args:
        model: A hub name or directory.
        url: A store. The demo's collections in it are replaced.
        entries: The maximum number of documents.
        known_items: The maximum number of documents of the known-item evaluation.
        known_item_queries: The maximum number of its queries.
    """
    began = time.monotonic()
    encoder = load_encoder(model)
    _heading("1  Read", "the documentation of this Python from its source files, without importing them")
    with working("reading …"):
        documented = collect(entries)
    counts = ", ".join(f"{sum(entry.kind == kind for entry in documented):,} {kind}s" for kind in _KINDS)
    _say(f"{len(documented):,} documents ({counts.replace('classs', 'classes')}) · {_since(began)}")
    _heading("2  Index", f"dense, sparse and multi-vectors by {encoder.info}, into {url}, exact and on disk")
    documents = [Document(entry.name, entry.text, {"kind": entry.kind}) for entry in documented]
    with _fresh(url, COLLECTION, encoder) as index:
        _add(index, documents)
        _heading(
            "3  Ask",
            "five methods with their first hits (✓ means right); the last two questions are not in English",
        )
        for question in QUESTIONS:
            _ask(index, question)
        _heading("4  Explain", "how the score of a first hit is computed")
        _explain(index)
    _heading(
        "5  Measure", "known items: the summary line is the query, the rest of the docstring the document"
    )
    _measure(url, encoder, documented, known_items, known_item_queries)
    _heading("6  Next steps", f"the demo took {_since(began)}; now try your own queries and texts")
    _next_steps(url, model)


def _ask(index: Index, question: str) -> None:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("method")
    for name in ("score", "dense", "sparse", "multi"):
        table.add_column(name, justify="right")
    table.add_column("first hit")
    table.add_column("next hits", style="dim")
    # Truncate to the width that the numbers leave: in too wide a table, rich would shrink the numbers.
    room = max(40, out.width - 52)
    for name, method in index.methods.items():
        hits = index.search(question, method=method, k=3)
        if not hits:  # no document shares a token with the question
            table.add_row(name, *["–"] * 4, "  nothing found")
            continue
        first, *others = hits
        answer = _name_and_summary(first, question)
        answer.truncate(room * 2 // 3, overflow="ellipsis")
        then = Text(", ".join(hit.document.id for hit in others))
        then.truncate(room // 3, overflow="ellipsis")
        scores = (getattr(first.scores, component) for component in COMPONENTS)
        table.add_row(name, f"{first.score:.3f}", *(_number(score) for score in scores), answer, then)
    out.print(Text(f"  {question}", "bold cyan"))
    out.print(table)
    out.print()


def _name_and_summary(hit: Hit, question: str) -> Text:
    summary = one_line(hit.document.text.partition("\n")[2].partition("\n\n")[0])
    mark = "✓ " if is_right(question, hit.document.id) else "  "
    return Text.assemble((mark, "green"), (hit.document.id, "bold"), (" · ", "dim"), summary)


def is_right(question: str, name: str) -> bool:
    """Return whether the object of this name answers the question."""
    return any(name == right or name.startswith(f"{right}.") for right in QUESTIONS[question])


def _explain(index: Index) -> None:
    """Explain the first right answer; if there is none, explain the first answer and say so."""
    answers = {question: index.search(question, k=1)[0].document for question in QUESTIONS}
    right = [question for question, best in answers.items() if is_right(question, best.id)]
    question = next(iter(right or answers))
    best = answers[question]
    _say(f"“{question}” and {best.id}{'' if right else ' (a wrong answer: this model found no right one)'}:")
    out.print(explanation_lines(index.explain(question, best.id)), soft_wrap=True)


def _measure(url: str, encoder: M3Encoder, entries: Iterable[Entry], documents: int, queries: int) -> None:
    dataset = known_item_dataset(entries, documents, queries)
    with _fresh(url, KNOWN_ITEMS, encoder) as index:
        _add(index, dataset.documents)
        methods = index.methods
    baselines: list[Baseline] = []
    with contextlib.suppress(MissingDependency):
        baselines.append(WordBM25())
    plan = Plan(url, KNOWN_ITEMS, methods, baselines)
    with tempfile.TemporaryDirectory() as place, working("searching with each method …"):
        folder = evaluate(dataset, encoder, plan, Path(place))
        table = measures_table(folder)
    _say(f"{len(dataset.queries):,} queries, {len(dataset.documents):,} documents, one right for each query")
    out.print(table)


def known_item_dataset(entries: Iterable[Entry], documents: int, queries: int) -> Dataset:
    """Return a dataset of documents without their first paragraph, which is the query.

    An entry qualifies if its summary has 4 to 30 words and is unique, and if the rest has at least 100
    characters.

    Args:
        entries: The candidates; the first that qualify are used.
        documents: The maximum number of documents.
        queries: The maximum number of queries, which are spread evenly over the documents.
    """
    seen: set[str] = set()

    def qualify() -> Iterator[Entry]:
        for entry in entries:
            is_new = entry.summary.lower() not in seen and entry.details not in seen
            seen.update((entry.summary.lower(), entry.details))
            if is_new and 4 <= len(entry.summary.split()) <= 30 and len(entry.details) >= 100:
                yield entry

    chosen = list(islice(qualify(), documents))
    asked = chosen[:: max(1, -(-len(chosen) // queries))]
    return Dataset(
        name="pydocs",
        split="known-items",
        documents=Corpus.of([Document(entry.name, entry.details) for entry in chosen]),
        queries={entry.name: entry.summary for entry in asked},
        qrels={entry.name: {entry.name: 1} for entry in asked},
    )


def _fresh(url: str, collection: str, encoder: M3Encoder) -> Index:
    """Create an empty collection; the collection of an earlier run, maybe by another model, is removed."""
    with contextlib.suppress(NotFound):
        connect(url, collection, create=False).drop()
    return connect(url, collection, encoder=encoder)


def _add(index: Index, documents: Sequence[Document] | Corpus) -> None:
    started = time.monotonic()
    with Progress() as progress:
        show = partial(progress.update, "encode and store", total=len(documents), unit="documents")
        report = index.add(documents, progress=show)
    seconds = time.monotonic() - started
    _say(f"{report.written:,} documents · {duration(seconds)} · {report.written / seconds:,.0f} documents/s")


def _heading(title: str, what: str) -> None:
    out.print()
    out.print(Text.assemble((title, "bold green"), "   ", (what, "dim")), soft_wrap=True)
    out.print(Rule(style="dim"))


def _say(message: str) -> None:
    out.print(f"  {message}", markup=False, soft_wrap=True)


def _since(began: float) -> str:
    return duration(time.monotonic() - began)


def _number(score: float | None) -> str:
    return "–" if score is None else f"{score:.3f}"


def _next_steps(url: str, model: str) -> None:
    m3 = "m3" if shutil.which("m3") else os.path.relpath(os.path.join(os.path.dirname(sys.executable), "m3"))
    ask = f"{m3} search {url} -c {COLLECTION}"
    steps = (
        ("search", f'{ask} "your own question"'),
        ("filter", f"""{ask} "sort a list" --filter '{{"kind": "function"}}'"""),
        ("your own texts", f"{m3} index qdrant:./notes FOLDER --model {model}"),
        ("everything else", f"{m3} --help"),
    )
    for what, command in steps:
        out.print(Text.assemble((f"  {what:17}", "dim"), (command, "bold")), soft_wrap=True)


_KINDS = ("module", "class", "function")

if __name__ == "__main__":
    settle_threads(os.environ)
    sys.exit(main())
