"""Summaries of benchmarks that were not run."""

from __future__ import annotations

from collections.abc import Iterable

from m3_connectors.bench.records import Latency, Load, Summary


def load_of(
    store: str, method: str, p50: float, p95: float, load: str = "closed-1", void: tuple[str, ...] = ()
) -> Load:
    """One method of a load of 1,000 documents with these latencies in seconds."""
    return Load(
        store=store,
        documents=1000,
        load=load,
        method=method,
        requests=100,
        answered=100,
        errors={},
        latency_seconds=Latency(p50=p50, p95=p95, p99=None, mean=p50, max=None, **{"p99.9": None}),
        waited_to_be_sent_seconds=None,
        requests_per_second=None,
        round_trips=None,
        store_share=None,
        client_cpu_seconds=None,
        client_cpu_share=None,
        server_cpu_seconds=None,
        server_cpu_share=None,
        void=void,
        noted=(),
    )


def summary_of(loads: Iterable[Load]) -> Summary:
    return Summary(
        name="s",
        complete=True,
        sessions=1,
        void=False,
        harness_seconds_per_request=1e-4,
        fills=(),
        loads=tuple(loads),
        recall=(),
    )
