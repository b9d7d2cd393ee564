"""Figures of benchmarks: how latency is distributed, what each method takes, and quality against cost."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.report.quality_plots import main_values
from m3_connectors.report.style import Plot, drawing, finish, look
from m3_connectors.report.variants import variants

if TYPE_CHECKING:
    import pyarrow as pa

_MILLISECONDS = 1000.0


def latency_plot(name: str, requests: pa.Table, summary: Mapping[str, Any]) -> Plot | None:
    """Which share of the requests took longer than a time: a panel for each load and size, a line for each store.

    Args:
        name: Of the benchmark.
        requests: Raw rows (``bench.rows.RequestRow``).
        summary: ``bench.summary.summarise``; void loads are left out.

    Returns:
        None without an answered request.
    """
    void = {_key(load) for load in summary["loads"] if load["void"]}
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
                for store, (colour, _) in style.items():
                    latency = np.sort(latencies.get((store, size, load), []))
                    if len(latency):
                        slower = 1 - np.arange(len(latency)) / len(latency)
                        axes.step(latency * _MILLISECONDS, slower, where="post", color=colour, label=store)
                axes.set(xscale="log", yscale="log", title=f"{load}, {size:,} documents")
                axes.set_xlabel("ms" if line == len(sizes) - 1 else "")
                axes.set_ylabel("share that took longer" if column == 0 else "")
        handles = {
            label: handle
            for axes in all_axes.flat
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        canvas.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
        caption = (
            f"{name}: share of the answered requests (all methods of the mix) that took longer than a time, from the "
            "moment that each was meant to be sent. Both axes are logarithmic: 10⁻² is the 99th percentile."
            + (_VOID if void else "")
        )
        return finish(canvas, f"latency-{_slug(name)}", f"Latency: {name}", caption)


def method_plot(name: str, summary: Mapping[str, Any]) -> Plot | None:
    """p50 of each method under the lightest load, whiskers to p95; a panel for each size. None without a method.

    Args:
        name: Of the benchmark.
        summary: ``bench.summary.summarise``.
    """
    loads = [load for load in _lightest(summary) if load["method"] is not None]
    if not loads:
        return None
    methods = list(dict.fromkeys(load["method"] for load in loads))
    sizes = sorted({load["documents"] for load in loads})
    style = look([load["store"] for load in loads])
    with drawing() as figure:
        canvas = figure(height_inches=1.0 + 0.34 * len(methods) * len(sizes) + 0.7)
        all_axes = canvas.subplots(len(sizes), 1, squeeze=False, sharex=True)[:, 0]
        for axes, size in zip(all_axes, sizes, strict=True):
            for number, (store, (colour, marker)) in enumerate(style.items()):
                offset = (number - (len(style) - 1) / 2) * 0.2
                own = [load for load in loads if (load["store"], load["documents"]) == (store, size)]
                p50 = [load["latency_seconds"]["p50"] * _MILLISECONDS for load in own]
                p95 = [
                    (load["latency_seconds"]["p95"] or load["latency_seconds"]["p50"]) * _MILLISECONDS
                    for load in own
                ]
                places = [methods.index(load["method"]) + offset for load in own]
                beyond = [[0.0] * len(own), [max(0.0, b - a) for a, b in zip(p50, p95, strict=True)]]
                axes.errorbar(
                    p50, places, xerr=beyond, fmt=marker, color=colour, label=store, capsize=2, elinewidth=0.8
                )
            axes.set_yticks(range(len(methods)), methods)
            axes.set(xscale="log", title=f"{size:,} documents, {loads[0]['load']}")
            axes.invert_yaxis()
        all_axes[-1].set_xlabel("ms: p50, whisker to p95")
        canvas.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        caption = (
            f"{name}: latency of each method under its lightest load, a request at a time where there is one."
        )
        return finish(canvas, f"methods-{_slug(name)}", f"Latency by method: {name}", caption)


def quality_against_cost(
    folders: Sequence[EvaluationFolder], summaries: Mapping[str, Mapping[str, Any]]
) -> Plot | None:
    """The main measure of each method against its p50 on each store; None unless both are known of a method.

    Args:
        folders: Complete evaluations; a method's quality is the mean over those with the first one's main measure,
            of each model, store and protocol by itself.
        summaries: Of benchmarks, by name.
    """
    means: dict[tuple[str, str], list[float]] = {}
    measure = folders[0].record.protocol.measures[0] if folders else ""
    averaged = [folder.record.protocol.measures[0] == measure for folder in folders]
    for folder, variant in itertools.compress(zip(folders, variants(folders), strict=True), averaged):
        for method, values in main_values(folder).items():
            means.setdefault((method, variant), []).append(float(np.mean(list(values.values()))))
    quality = {f"{method}{variant}": float(np.mean(of_sets)) for (method, variant), of_sets in means.items()}
    points = [
        (
            f"{load['store']}, {load['documents']:,}",
            f"{method}{variant}",
            load["latency_seconds"]["p50"] * _MILLISECONDS,
        )
        for summary in summaries.values()
        for load in _lightest(summary)
        for method, variant in means
        if load["method"] == method
    ]
    if not points:
        return None
    style = look([store for store, _, _ in points])
    with drawing() as figure:
        canvas = figure(height_inches=4.4)
        axes = canvas.add_subplot()
        for store, (colour, marker) in style.items():
            own = sorted((took, quality[method], method) for s, method, took in points if s == store)
            across, up, _ = zip(*own, strict=True)
            axes.plot(across, up, marker, color=colour, label=store, markersize=7)
        # A method has one quality on every store: one label for each height.
        right = max(took for _, _, took in points)
        for method in dict.fromkeys(method for _, method, _ in points):
            axes.annotate(
                method,
                (right, quality[method]),
                xytext=(8, -3),
                textcoords="offset points",
                fontsize=9,
            )
        axes.set(xscale="log", xlabel="p50, ms", ylabel=f"mean {measure}")
        axes.margins(x=0.15)
        canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        caption = (
            f"Mean {measure} of {sum(averaged)} evaluations against the latency of the same method in the benchmarks "
            "(their corpora are synthetic, of the size that is named; encoding the query is not part of it)."
        )
        return finish(canvas, "quality-against-cost", "Quality against cost", caption)


_VOID = " Loads whose numbers are void are left out."


def _key(load: Mapping[str, Any]) -> tuple[str, int, str]:
    return load["store"], load["documents"], load["load"]


def _measured(requests: pa.Table, void: Collection[tuple[str, int, str]]) -> dict[str, list[Any]]:
    """Columns of the answered requests that were measured and count, with their latencies in seconds."""
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


def _lightest(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of each store's and size's first load that has latencies and is not void."""
    first: dict[tuple[str, int], str] = {}
    rows = [
        load
        for load in summary["loads"]
        if load["answered"] and load["latency_seconds"]["p50"] is not None and not load["void"]
    ]
    for load in rows:
        first.setdefault((load["store"], load["documents"]), load["load"])
    return [load for load in rows if first[load["store"], load["documents"]] == load["load"]]


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")
