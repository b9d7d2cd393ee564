"""Tables of benchmarks, from the summary of their raw rows."""

from __future__ import annotations

from collections.abc import Mapping

from m3_connectors.bench.records import Load, Summary
from m3_connectors.report.table import Cell, Column, Table

_REMARKS = (
    "void because", "but", "filter lets pass", "of these", "CPU of the server, %", "CPU of the server, ms",
    "server's memory, MB",
)  # fmt: skip
"""Columns that are omitted if they are empty in every row."""

_MILLISECONDS, _MEGABYTES, _PERCENT = 1e3, 1e-6, 100.0


def cost_tables(name: str, summary: Summary, anchor: str) -> list[Table]:
    """Return the tables of writes, requests and recall of one benchmark.

    Args:
        name: Of the benchmark.
        summary: ``bench.summary.summarise``.
        anchor: What the tables' keys end with.
    """
    return [
        table
        for table in (
            _fills(name, summary, anchor),
            _loads(name, summary, anchor),
            _recall(name, summary, anchor),
        )
        if table.rows
    ]


def _fills(name: str, summary: Summary, anchor: str) -> Table:
    rows = tuple(
        (
            fill.store,
            fill.documents,
            fill.documents_per_second,
            fill.megabytes_per_second,
            _times(fill.client_cpu_share, _PERCENT),
            _times(fill.server_cpu_share, _PERCENT),
            fill.optimize_seconds,
            _times(fill.server_memory_bytes, _MEGABYTES),
            fill.disk_bytes_per_document,
            _parts(fill.component_bytes_per_document),
            fill.comparable_bytes_per_document,
            sum(planned.values()) if (planned := fill.planned_bytes_per_document) else None,
            "; ".join(fill.void),
        )
        for fill in summary.fills
    )
    columns = (
        Column("store"), Column("documents"), Column("documents/s", 0), Column("MB/s", 1), Column("client CPU, %", 0),
        Column("CPU of the server, %", 0), Column("index, s", 1), Column("server's memory, MB", 0),
        Column("bytes per document", 0), Column("of these"), Column("without what passes", 0), Column("planned", 0),
        Column("void because"),
    )  # fmt: skip
    note = (
        "100 % is one core. – means unknown, or not applicable to this store. Planned: by m3 bench "
        "plan, which excludes temporary data: a log, or a second copy until it is merged."
    )
    return Table(f"writes-{anchor}", f"Writing: {name}", columns, rows, note).without_empty(*_REMARKS)


def _loads(name: str, summary: Summary, anchor: str) -> Table:
    methods = {load.method for load in summary.loads} - {None}
    # A mix of one method is that method.
    together = "all together" if len(methods) > 1 else next(iter(methods), "")
    rows = tuple(
        _load(load, load.method or together or "")
        for load in summary.loads
        if load.method is None or len(methods) > 1
    )
    columns = (
        Column("store"), Column("documents"), Column("load"), Column("method"), Column("answered"), Column("errors"),
        Column("p50, ms", 2), Column("p95, ms", 2), Column("p99, ms", 2), Column("p99.9, ms", 2),
        Column("requests/s", 1), Column("in the store, %", 0), Column("round trips", 1), Column("client CPU, ms", 2),
        Column("client CPU, %", 0), Column("CPU of the server, ms", 2), Column("void because"), Column("but"),
    )  # fmt: skip
    seconds = summary.harness_seconds_per_request
    harness = "–" if seconds is None else f"{seconds * _MILLISECONDS:.3f}"
    note = (
        "Latency is measured from the scheduled time of a request; – means too few requests for a quantile. "
        f"The harness itself takes {harness} ms per request. "
        "CPU in ms is per request, CPU in % is relative to one core."
    )
    return Table(f"answers-{anchor}", f"Answering: {name}", columns, rows, note).without_empty(*_REMARKS)


def _load(load: Load, method: str) -> tuple[Cell, ...]:
    latency = load.latency_seconds
    return (
        load.store,
        load.documents,
        load.load,
        method,
        load.answered,
        load.requests - load.answered,
        *(_times(getattr(latency, quantile), _MILLISECONDS) for quantile in ("p50", "p95", "p99", "p99_9")),
        load.requests_per_second,
        _times(load.store_share, _PERCENT),
        load.round_trips,
        _times(load.client_cpu_seconds, _MILLISECONDS),
        _times(load.client_cpu_share, _PERCENT),
        _times(load.server_cpu_seconds, _MILLISECONDS),
        "; ".join(load.void),
        "; ".join(load.noted),
    )


def _recall(name: str, summary: Summary, anchor: str) -> Table:
    rows = tuple(
        (
            one.store,
            one.documents,
            one.kind,
            one.method,
            one.depth,
            one.selectivity,
            one.queries,
            one.recall,
            one.worst,
            _times(one.approximate_p50_seconds, _MILLISECONDS),
            _times(one.exact_p50_seconds, _MILLISECONDS),
            "; ".join(one.void),
        )
        for one in summary.recall
    )
    columns = (
        Column("store"), Column("documents"), Column("of"), Column("method"), Column("depth"),
        Column("filter lets pass", 2), Column("queries"), Column("recall"), Column("worst query"),
        Column("p50, ms", 2), Column("exact p50, ms", 2), Column("void because"),
    )  # fmt: skip
    note = "The share of the exact results that the approximate lists contain, by score: ties count as found."
    return Table(
        f"recall-{anchor}", f"Recall of the approximate part: {name}", columns, rows, note
    ).without_empty(*_REMARKS)


def _parts(sizes: Mapping[str, float] | None) -> str:
    ordered = sorted((sizes or {}).items(), key=lambda part: -part[1])
    return " · ".join(f"{name} {size:,.0f}" for name, size in ordered if size >= 0.5)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
