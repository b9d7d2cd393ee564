"""The figure that joins evaluations and benchmarks: the quality of a method and its latency on each store."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from m3_connectors.bench.records import Summary
from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.report.cost_plots import lightest, p50_milliseconds
from m3_connectors.report.fair import Fair, fair, left_out
from m3_connectors.report.quality_plots import alike, compared_means
from m3_connectors.report.style import Plot, drawing, finish, legend, look, plain_ticks, stacked
from m3_connectors.report.variants import crosses

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABEL_POINTS, _LABEL_INCHES = 9, 0.19
"""The font size of a method's label, and the share of the figure's height that it occupies."""

_LEGEND_COLUMNS = 3

_TITLES = {False: "queries in the documents' language", True: "queries in another language"}


@dataclasses.dataclass(frozen=True)
class _Cost:
    """The latency of one method on one collection."""

    store: str
    method: str
    milliseconds: float


def quality_against_cost(folders: Sequence[EvaluationFolder], summaries: Mapping[str, Summary]) -> list[Plot]:
    """Plot the main measure of each method against its p50 on each store, per measure, model and protocol.

    Queries in the documents' language and in another have panels of their own, on one scale. A mean is over
    evaluations that all methods of its panel have.

    Args:
        folders: Complete evaluations.
        summaries: Of benchmarks, by name.
    """
    costs = [
        _Cost(
            # Two benchmarks may include the same store.
            f"{load.store}, {load.documents:,}{f' ({name})' if len(summaries) > 1 else ''}",
            load.method,
            p50_milliseconds(load),
        )
        for name, summary in summaries.items()
        for load in lightest(summary)
        if load.method is not None
    ]
    plots = (_plot(members, costs, *group) for group, members in alike(folders).items())
    return [plot for plot in plots if plot is not None]


def _plot(
    folders: Sequence[EvaluationFolder], costs: Sequence[_Cost], variant: str, anchor: str
) -> Plot | None:
    priced = dict.fromkeys(cost.method for cost in costs)
    panels: dict[bool, Fair] = {}
    for crossing in (False, True):
        compared = fair([one for one in folders if crosses(one.record.dataset) == crossing], priced)
        if compared.methods:
            panels[crossing] = compared
    if not panels:
        return None
    measure = folders[0].record.protocol.measures[0]
    style = look(cost.store for cost in costs)
    quality = {crossing: compared_means(compared) for crossing, compared in panels.items()}
    tall = max(2.8, _LABEL_INCHES * (1 + max(map(len, quality.values()))))
    rows = -(-len(style) // _LEGEND_COLUMNS)
    with drawing() as figure:
        canvas = figure(width_inches=9.6 if len(panels) > 1 else 7.2, height_inches=tall + 1.0 + 0.23 * rows)
        drawn = canvas.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
        for axes, (crossing, means) in zip(drawn, quality.items(), strict=True):
            for store, (colour, marker, _) in style.items():
                own = [cost for cost in costs if cost.store == store and cost.method in means]
                across, up = [cost.milliseconds for cost in own], [means[cost.method] for cost in own]
                if own:
                    axes.plot(across, up, marker, color=colour, label=store, markersize=7)
            axes.set(xscale="log", xlabel="p50, ms", title=_TITLES[crossing])
        drawn[0].set_ylabel(f"mean {measure}")
        drawn[0].margins(0.06)
        low, high = drawn[0].get_ylim()
        for axes, means in zip(drawn, quality.values(), strict=True):
            _labels(axes, means, costs, (high - low) * _LABEL_INCHES / tall)
        drawn[0].set_ylim(low, high)
        plain_ticks(drawn[0].xaxis)
        legend(canvas, style, columns=_LEGEND_COLUMNS)
        caption = (
            f"Mean {measure} of {' and '.join(_counted(*panel) for panel in panels.items())} against the latency of "
            "the same method in the benchmarks (synthetic corpora of the given size; the latency does not include "
            f"encoding the query; void loads are omitted).{left_out(panels.values())}{_without(folders, priced)}"
        )
        return finish(canvas, f"quality-against-cost-{anchor}", f"{measure} against cost{variant}", caption)


def _labels(axes: Axes, means: Mapping[str, float], costs: Sequence[_Cost], apart: float) -> None:
    """Write the methods' names to the right of the axes without overlaps, each with a line to its slowest point."""
    places = stacked(list(means.values()), apart)
    for (method, mean), place in zip(means.items(), places, strict=True):
        slowest = max(cost.milliseconds for cost in costs if cost.method == method)
        axes.annotate(
            method,
            (slowest, mean),
            xytext=(1.03, place),
            textcoords=axes.get_yaxis_transform(),
            fontsize=_LABEL_POINTS,
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
        )


def _counted(crossing: bool, compared: Fair) -> str:
    count = len(compared.folders)
    kind = "in another language" if crossing else "in the documents' language"
    return f"{count} evaluation{'s' * (count > 1)} {kind}"


def _without(folders: Sequence[EvaluationFolder], priced: Collection[str]) -> str:
    names = dict.fromkeys(method.name for folder in folders for method in folder.record.methods)
    missing = [name for name in names if name not in priced]
    return f" No benchmark measured: {', '.join(missing)}." if missing else ""
