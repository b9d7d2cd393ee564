"""Figures of benchmarks: the latency distribution and the latency of each method."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from m3_connectors.bench.records import Load, Summary
from m3_connectors.report.style import Plot, drawing, finish, legend, look, plain_ticks

if TYPE_CHECKING:
    import pyarrow as pa

MILLISECONDS = 1000.0


def latency_plot(name: str, requests: pa.Table, summary: Summary, anchor: str) -> Plot | None:
    """Plot the share of requests slower than a given time: one panel per load and size, one line per store.

    Args:
        name: Of the benchmark.
        requests: Raw rows (``bench.rows.RequestRow``).
        summary: ``bench.summary.summarise``; void loads are left out.
        anchor: What the figure's file name ends with.

    Returns:
        None without an answered request.
    """
    void = {_key(load) for load in summary.loads if load.void}
    rows = _measured(requests, void)
    if not rows["store"]:
        return None
    loads = list(dict.fromkeys(rows["load"]))
    sizes = sorted(set(rows["documents"]))
    style = look(rows["store"])
    latencies: dict[tuple[str, int, str], list[float]] = {}
    for took, *key in zip(rows["latency"], rows["store"], rows["documents"], rows["load"], strict=True):
        latencies.setdefault((key[0], key[1], key[2]), []).append(took)
    with drawing() as figure:
        canvas = figure(width_inches=2.9 * len(loads) + 1.0, height_inches=2.7 * len(sizes) + 0.7)
        all_axes = canvas.subplots(len(sizes), len(loads), squeeze=False, sharex=True, sharey=True)
        for line, size in enumerate(sizes):
            for column, load in enumerate(loads):
                axes = all_axes[line][column]
                for store, (colour, _, dashes) in style.items():
                    latency = np.sort(latencies.get((store, size, load), []))
                    if len(latency):
                        slower = 1 - np.arange(len(latency)) / len(latency)
                        axes.step(
                            latency * MILLISECONDS,
                            slower,
                            where="post",
                            color=colour,
                            linestyle=dashes,
                            label=store,
                        )
                axes.set(xscale="log", yscale="log", title=f"{load}, {size:,} documents")
                axes.set_xlabel("ms" if line == len(sizes) - 1 else "")
                axes.set_ylabel("share of slower requests" if column == 0 else "")
        plain_ticks(all_axes[0][0].xaxis)
        plain_ticks(all_axes[0][0].yaxis, per_cent=True)
        legend(canvas, style)
        caption = (
            f"{name}: share of the completed requests (all methods of the mix) slower than a given time, "
            "measured from the scheduled time of each. Both axes are logarithmic; 1 % is the 99th percentile."
            + (_VOID if void else "")
        )
        return finish(canvas, f"latency-{anchor}", f"Latency: {name}", caption)


def method_plot(name: str, summary: Summary, anchor: str) -> Plot | None:
    """Plot p50 (whiskers to p95) of each method under the lightest load, one panel per size; None if empty.

    Args:
        name: Of the benchmark.
        summary: ``bench.summary.summarise``.
        anchor: What the figure's file name ends with.
    """
    loads = [load for load in lightest(summary) if load.method is not None]
    if not loads:
        return None
    methods = list(dict.fromkeys(load.method for load in loads))
    sizes = sorted({load.documents for load in loads})
    style = look([load.store for load in loads])
    with drawing() as figure:
        line = 0.14 + 0.16 * len(style)
        canvas = figure(height_inches=0.9 + (0.5 + line * len(methods)) * len(sizes))
        all_axes = canvas.subplots(len(sizes), 1, squeeze=False, sharex=True)[:, 0]
        for axes, size in zip(all_axes, sizes, strict=True):
            for number, (store, (colour, marker, _)) in enumerate(style.items()):
                offset = (number + 0.5) / len(style) * 0.8 - 0.4
                own = [load for load in loads if (load.store, load.documents) == (store, size)]
                p50 = [p50_milliseconds(load) for load in own]
                p95 = [
                    p50_milliseconds(load)
                    if load.latency_seconds.p95 is None
                    else load.latency_seconds.p95 * MILLISECONDS
                    for load in own
                ]
                places = [methods.index(load.method) + offset for load in own]
                beyond = [[0.0] * len(own), [max(0.0, b - a) for a, b in zip(p50, p95, strict=True)]]
                axes.errorbar(
                    p50, places, xerr=beyond, fmt=marker, color=colour, label=store, capsize=2, elinewidth=0.8
                )
            axes.set_yticks(range(len(methods)), methods)
            axes.set(xscale="log", title=f"{size:,} documents, {loads[0].load}")
            axes.set_ylim(len(methods) - 0.5, -0.5)
        plain_ticks(all_axes[0].xaxis)
        all_axes[-1].set_xlabel("ms: p50, whisker to p95")
        legend(canvas, style)
        caption = (
            f"{name}: latency of each method under its lightest load, one request at a time if available."
        )
        return finish(canvas, f"methods-{anchor}", f"Latency by method: {name}", caption)


_VOID = " Loads with invalid numbers are omitted."


def _key(load: Load) -> tuple[str, int, str]:
    return load.store, load.documents, load.load


def _measured(requests: pa.Table, void: Collection[tuple[str, int, str]]) -> dict[str, list[Any]]:
    """Return the answered requests of the valid measured loads, with their latencies in seconds."""
    names = ("phase", "error", "store", "documents", "load", "intended_seconds", "end_seconds")
    kept = [
        (store, documents, load, end - intended)
        for phase, error, store, documents, load, intended, end in zip(
            *(requests[name].to_pylist() for name in names), strict=True
        )
        if phase == "measured" and error is None and end is not None and (store, documents, load) not in void
    ]
    columns = list(zip(*kept, strict=True)) if kept else [()] * 4
    return dict(zip(("store", "documents", "load", "latency"), map(list, columns), strict=True))


def p50_milliseconds(load: Load) -> float:
    """Return the p50 of a load that ``lightest`` returned."""
    assert load.latency_seconds.p50 is not None
    return load.latency_seconds.p50 * MILLISECONDS


def lightest(summary: Summary) -> list[Load]:
    """Return the rows of the first valid load with latencies, for each store and size."""
    first: dict[tuple[str, int], str] = {}
    rows = [
        load
        for load in summary.loads
        if load.answered and load.latency_seconds.p50 is not None and not load.void
    ]
    for load in rows:
        first.setdefault((load.store, load.documents), load.load)
    return [load for load in rows if first[load.store, load.documents] == load.load]
