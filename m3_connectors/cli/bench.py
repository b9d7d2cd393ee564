"""``m3 bench``: measure the cost of retrieval on live stores, or calculate it for another scale."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer
from rich.table import Table

from m3_connectors.cli.bench_plan import plan
from m3_connectors.cli.console import INTERRUPTED, duration, err, out, print_json, print_table, warn
from m3_connectors.cli.options import Debug, Json, RunByDefault
from m3_connectors.errors import BackendError, MissingDependency

if TYPE_CHECKING:
    from m3_connectors.bench.folder import BenchFolder
    from m3_connectors.bench.records import BenchRecord, Fill, Recall, Summary
    from m3_connectors.bench.run import Server
    from m3_connectors.bench.scenario import Store

VOID = 3
"""Exit code when a result is void, that is, must not be used."""


bench = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    help="Measure live stores with m3 bench SCENARIO.toml, "
    "or calculate costs with m3 bench plan --docs 100e6 --tokens 300.",
)
bench.command()(plan)


@bench.command()
def run(
    scenario: Annotated[
        Path, typer.Argument(metavar="SCENARIO.toml", help="The scenario; see docs/benchmarks.md.")
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder for the measured data.", show_default="NAME-DATE-TIME"
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fill the stores of a scenario, query them and print the costs.

    The exit code is 3 if a result is void.
    """
    try:
        importlib.import_module("pyarrow")
    except ImportError:
        raise MissingDependency("pyarrow", "eval") from None
    from m3_connectors.bench.folder import RECORD
    from m3_connectors.bench.run import run as measure
    from m3_connectors.bench.scenario import load_scenario

    loaded = load_scenario(scenario)
    where = folder or Path(f"{loaded.name}-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    began = time.perf_counter()
    kept = (
        f"the measurements so far are in {where}; show them with: m3 report {where}\n"
        f"  To continue, run: m3 bench {scenario} --out {where}"
    )

    async def measuring(progress: _Progress) -> BenchFolder:
        return await measure(loaded, where, servers=_server, progress=progress, where=str(scenario))

    try:
        with _progress() as progress, _terminated_as_interrupted():
            measured = anyio.run(measuring, progress)
    except KeyboardInterrupt:
        err.print(kept, markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except BackendError as error:
        if (where / RECORD).exists():  # otherwise no measurement has started
            error.add_note(f"  {kept}")
        raise
    summary = measured.write_summary()
    if json:
        print_json(summary.to_json())
    else:
        _print(summary, measured.record)
        out.print(f"  {where} · {duration(time.perf_counter() - began)}", markup=False, soft_wrap=True)
    if summary.void:
        raise typer.Exit(VOID)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that rows are written and started servers are stopped."""

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may install signal handlers
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _server(store: Store) -> Iterator[Server]:
    """Yield a store's server: the one at its URL, or one that is started for the measurement."""
    from m3_connectors.bench.run import Server, named_servers

    if store.start is None:
        with named_servers(store) as server:
            yield server
        return
    from m3_connectors.testing.servers.start import start

    running = start(store.start)
    try:
        local = running.server
        yield Server(
            running.url,
            {**running.options, **store.options},
            session=local.pid if local else None,
            directory=local.directory if local else None,
        )
    finally:
        running.stop()


class _Progress:
    """Shows a live line in a terminal, and prints one line per step otherwise."""

    def __init__(self, status: Any) -> None:
        self._status = status
        self._step = ""

    def __call__(self, store: str, documents: int, what: str, done: int | None = None) -> None:
        step = f"{store} · {documents:,} documents · {what}"
        if self._status is not None:
            self._status.update(step if done is None else f"{step} {done:,}")
        elif step != self._step:
            err.print(step, markup=False, soft_wrap=True)
        self._step = step


@contextlib.contextmanager
def _progress() -> Iterator[_Progress]:
    if err.is_terminal:
        with err.status("measuring the harness itself …") as status:
            yield _Progress(status)
    else:
        yield _Progress(None)


def _print(summary: Summary, record: BenchRecord) -> None:
    corpus, machine = record.scenario.corpus, record.environment
    out.print(
        f"  {summary.name} · synthetic documents of {corpus.dimension:,} dimensions and "
        f"{corpus.rows.mean:g} rows ({corpus.storage.multivector_dtype}), "
        f"queries of {corpus.query_rows} rows, "
        f"top {record.scenario.queries.k}; nothing is encoded\n"
        f"  {machine.processor}, {machine.cores} cores · the harness itself takes "
        f"{_number(summary.harness_seconds_per_request, '.3f', 1e3)} ms per request",
        markup=False,
        soft_wrap=True,
    )
    print_table(fills_table(summary.fills))
    print_table(_loads(summary))
    if any(item.selectivity is not None for item in summary.recall):
        print_table(recall_table(summary.recall))
    busy = (machine.load_average or [0.0])[0]
    if machine.cores and busy > machine.cores:
        warn(f"the machine was busy before the start (load {busy:.1f}): other work affects these numbers.")
    if summary.sessions > 1:
        warn(f"measured in {summary.sessions} sessions: the record describes the machine of each.")
    for kind in ("void", "noted"):
        reasons = dict.fromkeys(
            (
                item.store,
                item.documents,
                load,
                reason,
            )
            for load, item in (
                *(("all", fill) for fill in summary.fills),
                *((load.load, load) for load in summary.loads),
                *(("recall", one) for one in summary.recall),
            )
            for reason in getattr(item, kind, ())
        )
        for store, documents, load, reason in reasons:
            warn(f"{kind}: {store} · {documents:,} documents · {load}: {reason}")
    for item in summary.loads:
        if item.method is None and item.errors:
            for error, count in item.errors.items():
                warn(f"{item.store} · {item.documents:,} · {item.load}: {count:,} × {error}")


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in columns:
        table.add_column(name, justify="left" if name in ("store", "load", "bytes per document") else "right")
    return table


def fills_table(fills: Sequence[Fill]) -> Table:
    """Return a table of the writes, one row per collection: the speed, and the bytes per document.

    Planned bytes are next to the measured bytes of the same components; the last column has all components.
    """
    table = _table(
        "store",
        "documents",
        "docs/s",
        "MB/s",
        "client CPU",
        "server CPU",
        "index s",
        "server memory",
        "bytes planned",
        "measured",
        "bytes per document",
    )
    for fill in fills:
        parts = fill.component_bytes_per_document or {}
        largest = sorted(parts.items(), key=lambda part: -part[1])
        planned = fill.planned_bytes_per_document
        each = " · ".join(f"{name} {size:,.0f}" for name, size in largest if size >= 0.5)
        table.add_row(
            fill.store,
            f"{fill.documents:,}",
            "reused" if fill.reused else _number(fill.documents_per_second, ",.0f"),
            _number(fill.megabytes_per_second, ".1f"),
            _number(fill.client_cpu_share, ".0%"),
            _number(fill.server_cpu_share, ".0%"),
            _number(fill.optimize_seconds, ".1f"),
            _number(fill.server_memory_bytes, ",.0f", 1e-6, " MB"),
            _number(sum(planned.values()) if planned else None, ",.0f"),
            _number(fill.comparable_bytes_per_document if planned else None, ",.0f"),
            f"{sum(parts.values()):,.0f}: {each}" if parts else "not reported by the store",
        )
    return table


def _loads(summary: Summary) -> Table:
    recall = _recall_of_methods(summary.recall)
    table = _table(
        "store", "documents", "load", "method", "n", "p50 ms", "p95", "p99", "p99.9", "req/s", "recall",
        "in store", "trips", "client CPU", "client ms", "server ms",
    )  # fmt: skip
    methods = {item.method for item in summary.loads} - {None}
    for item in summary.loads:
        if item.method is not None and len(methods) == 1:
            continue
        method = item.method or (next(iter(methods)) if len(methods) == 1 else None) or ""
        latency = item.latency_seconds
        table.add_row(
            item.store,
            f"{item.documents:,}",
            f"{item.load}{' VOID' if item.void else ''}",
            method,
            f"{item.answered:,}",
            *(_number(getattr(latency, name), ",.1f", 1e3) for name in ("p50", "p95", "p99", "p99_9")),
            _number(item.requests_per_second, ",.1f"),
            _number(recall.get((item.store, item.documents, method)), ".3f"),
            _number(item.store_share, ".0%"),
            _number(item.round_trips, ".1f"),
            _number(item.client_cpu_share, ".0%"),
            _number(item.client_cpu_seconds, ",.1f", 1e3),
            _number(item.server_cpu_seconds, ",.1f", 1e3),
        )
    return table


def _recall_of_methods(recall: Sequence[Recall]) -> dict[tuple[str, int, str], float]:
    """Return the recall of each method over all queries, with and without filters, as in its requests."""
    asked: dict[tuple[str, int, str], list[tuple[int, float]]] = {}
    for item in recall:
        if item.kind == "search" and item.recall is not None:
            key = item.store, item.documents, item.method
            asked.setdefault(key, []).append((item.queries, item.recall))
    return {
        key: sum(queries * value for queries, value in some) / sum(queries for queries, _ in some)
        for key, some in asked.items()
    }


def recall_table(recall: Sequence[Recall]) -> Table:
    """Return a table of recall, approximate latency and exact latency, one row per filter."""
    table = _table("store", "documents", "of", "filter", "queries", "recall", "worst", "p50 ms", "exact p50")
    for item in recall:
        table.add_row(
            item.store,
            f"{item.documents:,}",
            item.method if item.kind == "search" else f"{item.method} list of {item.depth}",
            _number(item.selectivity, "g"),
            f"{item.queries:,}",
            _number(item.recall, ".3f"),
            _number(item.worst, ".3f"),
            _number(item.approximate_p50_seconds, ",.1f", 1e3),
            _number(item.exact_p50_seconds, ",.1f", 1e3),
        )
    return table


def _number(value: float | None, form: str, factor: float = 1.0, unit: str = "") -> str:
    return "–" if value is None else f"{value * factor:{form}}{unit}"
