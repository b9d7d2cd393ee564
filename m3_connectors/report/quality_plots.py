"""Figures of evaluations: quality by query language, by document length, and over all weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.evaluation.record import DEPTHS
from m3_connectors.evaluation.tune import Surface, surface
from m3_connectors.methods import ALL, LONG_DOCUMENTS, MIRACL, Weights
from m3_connectors.report.fair import Fair, fair, left_out
from m3_connectors.report.style import Look, Plot, drawing, finish, legend, look, slugs
from m3_connectors.report.variants import crosses, family_name, variants

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LENGTH_GROUPS = 5
"""The number of groups of equal size by the length of the relevant document."""

FEWEST_QUERIES = 5
"""The fewest queries over which a mean is drawn."""

_MOST_PANELS = 6

_TITLE_LETTERS = 34
"""The most characters in a line of a panel's title; a longer line would overlap the next panel."""

_MARKS = {
    "best here": ("*", "#d55e00"),
    "used": ("o", "white"),
    "paper (MIRACL)": ("s", "white"),
    "paper (long)": ("^", "white"),
}
"""The weights marked in a heat map, each with a marker and a colour."""


def quality_plots(folders: Sequence[EvaluationFolder]) -> list[Plot]:
    """Return every figure for which these evaluations have data.

    Args:
        folders: Complete evaluations.

    Raises:
        InvalidInput: A file is missing or damaged.
        MissingDependency: matplotlib or pyarrow is not installed.
    """
    plots = [
        draw(members, variant, anchor)
        for (variant, anchor), members in alike(folders).items()
        for draw in (by_language, by_length)
    ]
    return [plot for plot in [*plots, over_weights(folders)] if plot is not None]


def alike(folders: Sequence[EvaluationFolder]) -> dict[tuple[str, str], list[EvaluationFolder]]:
    """The evaluations that one figure may show; they share the main measure, model, store and protocol.

    Returns:
        By what tells them from others (``variants``), and what the figure's file name ends with.
    """
    groups: dict[tuple[str, str], list[EvaluationFolder]] = defaultdict(list)
    for folder, variant in zip(folders, variants(folders), strict=True):
        groups[folder.record.protocol.measures[0], variant].append(folder)
    anchors = slugs(measure + variant for measure, variant in groups)
    return {(variant, anchors[measure + variant]): members for (measure, variant), members in groups.items()}


def by_language(folders: Sequence[EvaluationFolder], variant: str = "", anchor: str = "all") -> Plot | None:
    """Plot the main measure by query language, for queries in the documents' language and in other languages.

    A point is the mean over datasets, each of which counts once; of one language all methods have the same
    ones. None without languages. ``variant`` says which evaluations these are, where there are others, and
    ``anchor`` ends the file name (``alike``).
    """
    kinds: dict[str, dict[str, list[EvaluationFolder]]] = {
        "same": defaultdict(list),
        "other": defaultdict(list),
    }
    for folder in folders:
        dataset = folder.record.dataset
        if dataset.query_language is not None:
            kinds["other" if crosses(dataset) else "same"][dataset.query_language].append(folder)
    compared = {
        kind: {language: fair(members, _methods(members)) for language, members in sorted(languages.items())}
        for kind, languages in kinds.items()
        if languages
    }
    if not compared:
        return None
    measure = folders[0].record.protocol.measures[0]
    titles = {"same": "documents in the query's language", "other": "documents in another language"}
    style = look(_methods(folders))
    with drawing() as figure:
        canvas = figure(width_inches=9.6 if len(compared) > 1 else 7.2)
        panels = canvas.subplots(1, len(compared), squeeze=False, sharey=True)[0]
        for axes, (kind, languages) in zip(panels, compared.items(), strict=True):
            means = {
                (method, x): mean
                for x, of_language in enumerate(languages.values())
                for method, mean in compared_means(of_language).items()
            }
            for offset, (method, (colour, marker, _)) in _spread(style):
                points = [(x + offset, mean) for (name, x), mean in means.items() if name == method]
                if points:
                    axes.plot(*zip(*points, strict=True), marker, color=colour, label=method, markersize=6)
            axes.set_xticks(range(len(languages)), list(languages))
            axes.set_xlim(-0.5, len(languages) - 0.5)
            axes.grid(visible=False, axis="x")
            axes.set(xlabel="query language", title=titles[kind])
        panels[0].set_ylabel(measure)
        panels[0].set_ylim(0, panels[0].get_ylim()[1] * 1.03)
        legend(canvas, style)
        caption = (
            f"Mean {measure} by query language; for several datasets in one language, the mean of their means."
            + left_out(part for languages in compared.values() for part in languages.values())
        )
        return finish(canvas, f"by-language-{anchor}", f"{measure} by query language{variant}", caption)


def compared_means(compared: Fair) -> dict[str, float]:
    """Return the main measure of each method; each evaluation counts once."""
    means = [(folder.means(), folder.record.protocol.measures[0]) for folder in compared.folders]
    return {
        method: float(np.mean([of_folder[method][measure] for of_folder, measure in means]))
        for method in compared.methods
    }


def by_length(folders: Sequence[EvaluationFolder], variant: str = "", anchor: str = "all") -> Plot | None:
    """Plot the main measure by the length of the relevant document; None if there are too few queries.

    ``variant`` and ``anchor`` are as for ``by_language``.
    """
    style = look(_methods(folders))
    compared = fair(folders, style)
    folders = compared.folders
    lengths: list[float] = []
    values: dict[str, list[float]] = {method: [] for method in compared.methods}
    known_tokens = all(folder.documents()["tokens"].null_count == 0 for folder in folders)
    unit = "tokens" if known_tokens else "characters"
    for folder in folders:
        documents = folder.documents()
        sizes = dict(zip(documents["document_id"].to_pylist(), documents[unit].to_pylist(), strict=True))
        measure = folder.record.protocol.measures[0]
        for query, grades in folder.qrels().items():
            relevant = [
                (-grade, document) for document, grade in grades.items() if grade > 0 and document in sizes
            ]
            if relevant:
                lengths.append(sizes[min(relevant)[1]])
                for method, column in values.items():
                    column.append(folder.values[method][measure][query])
    if len(lengths) < LENGTH_GROUPS * FEWEST_QUERIES or min(lengths) == max(lengths):
        return None
    measure = folders[0].record.protocol.measures[0]
    groups: list[npt.NDArray[np.int64]] = np.array_split(np.argsort(lengths, kind="stable"), LENGTH_GROUPS)
    middles = [float(np.median(np.asarray(lengths)[group])) for group in groups]
    with drawing() as figure:
        canvas = figure()
        axes = canvas.add_subplot()
        shown = {method: style[method] for method in values}
        for offset, (method, (colour, marker, line)) in _spread(shown):
            parts = [np.asarray(values[method])[group] for group in groups]
            axes.errorbar(
                np.arange(LENGTH_GROUPS) + offset,
                [part.mean() for part in parts],
                [1.96 * part.std(ddof=1) / math.sqrt(len(part)) for part in parts],
                color=colour,
                marker=marker,
                linestyle=line,
                linewidth=1,
                label=method,
                capsize=2,
                elinewidth=0.8,
            )
        axes.set_xticks(range(LENGTH_GROUPS), [f"{middle:,.0f}" for middle in middles])
        axes.grid(visible=False, axis="x")
        axes.set(xlabel=f"{unit} of the relevant document (median of the group)", ylabel=measure)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.03)
        legend(canvas, style)
        caption = (
            f"Mean {measure} of {len(lengths):,} queries in {LENGTH_GROUPS} groups of equal size by the length of "
            "their most relevant document, with 95 % intervals (normal approximation). Points of one group are drawn "
            f"side by side.{left_out([compared])}"
        )
        return finish(canvas, f"by-length-{anchor}", f"{measure} by document length{variant}", caption)


def over_weights(folders: Sequence[EvaluationFolder]) -> Plot | None:
    """Plot nDCG@10 of All for all weights (w1 + w2 + w3 = 1), one triangle per family; None if All was not run.

    Each dataset of a family counts once; other models, stores and protocols have triangles of their own.
    """
    families: dict[tuple[str, str], list[Surface]] = defaultdict(list)
    used: dict[tuple[str, str], set[Weights]] = defaultdict(set)
    for folder, variant in zip(folders, variants(folders), strict=True):
        record = folder.record
        asked = [method for method in record.methods if method.name == ALL.name and method.weights]
        if not asked or any(record.protocol.depths[name] < DEPTHS[name] for name in ALL.candidates):
            continue
        family = family_name(record.dataset)
        families[family, variant].append(surface(folder))
        used[family, variant].update(Weights(*method.weights) for method in asked if method.weights)
    if not families:
        return None
    shown = dict(list(families.items())[:_MOST_PANELS])
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    with drawing() as figure:
        # A page shows every figure at the same width, so a narrower figure would be enlarged.
        canvas = figure(width_inches=max(7.2, 3.6 * columns + 0.6), height_inches=3.5 * lines)
        for number, ((family, variant), datasets) in enumerate(shown.items(), 1):
            axes = canvas.add_subplot(lines, columns, number)
            means = np.mean([dataset.means for dataset in datasets], axis=0)
            _triangle(axes, datasets[0].weights, means, used[family, variant])
            title = f"{family} ({len(datasets)} {'sets' if len(datasets) > 1 else 'set'})"
            axes.set_title(
                "\n".join(line for part in (title, variant) for line in wrap(part, _TITLE_LETTERS))
            )
        legend(canvas, _MARKS)
        more = (
            f" {len(families) - len(shown)} more families are not drawn."
            if len(families) > len(shown)
            else ""
        )
        caption = (
            "nDCG@10 of All for each weighting of the three scores; every cell is exact, computed from the component "
            f"scores of the same candidates (dense top {ALL.candidates['dense']}).{more} The best cell was chosen on "
            "these queries; use m3 tune to find weights that generalise to others."
        )
        return finish(canvas, "weights", "Quality over the simplex of weights", caption)


def _triangle(
    axes: Axes, weights: npt.NDArray[np.float64], values: npt.NDArray[np.float64], used: set[Weights]
) -> None:
    """Draw a heat map in barycentric coordinates: dense left, sparse right, multi-vector on top."""
    x, y = _corner(weights).T
    cells = axes.scatter(x, y, c=values, marker="h", s=62, cmap="viridis", linewidths=0)
    bar = axes.figure.colorbar(cells, ax=axes, shrink=0.75)
    assert bar.solids is not None
    bar.solids.set(rasterized=False, edgecolor="face")
    best = weights[int(values.argmax())]
    marked = ([Weights(*best)], sorted(used, key=tuple), [MIRACL["all"]], [LONG_DOCUMENTS["all"]])
    for several, (label, (marker, colour)) in zip(marked, _MARKS.items(), strict=True):
        places = np.array([tuple(one) for one in several])
        x, y = _corner(places / places.sum(axis=1, keepdims=True)).T
        axes.scatter(x, y, marker=marker, s=70, color=colour, edgecolors="black", label=label, zorder=3)
    for name, across, up in (("dense", 0, -0.08), ("sparse", 1, -0.08), ("multi-vector", 0.5, 0.93)):
        axes.text(across, up, name, ha="center", va="center", fontsize=9)
    axes.set(xlim=(-0.12, 1.12), ylim=(-0.14, 1.0), aspect="equal")
    axes.axis("off")


def _corner(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Convert barycentric to plane coordinates, ``[m, 3]`` to ``[m, 2]``."""
    corners = np.array([[0, 0], [1, 0], [0.5, math.sqrt(3) / 2]])
    return np.asarray(weights @ corners)


def _methods(folders: Sequence[EvaluationFolder]) -> list[str]:
    return list(dict.fromkeys(method.name for folder in folders for method in folder.record.methods))


def _spread(
    style: Mapping[str, Look],
) -> list[tuple[float, tuple[str, Look]]]:
    """Yield the methods with offsets around a tick, so that points and intervals do not hide each other."""
    offsets = np.linspace(-0.3, 0.3, len(style)) if len(style) > 1 else [0.0]
    return list(zip(map(float, offsets), style.items(), strict=True))
