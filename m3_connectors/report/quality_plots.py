"""Figures of evaluations: quality by query language, by document length, and over all weights."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.evaluation.record import DEPTHS
from m3_connectors.evaluation.tune import Surface, surface
from m3_connectors.methods import ALL, LONG_DOCUMENTS, MIRACL, Weights
from m3_connectors.report.style import Plot, drawing, finish, look
from m3_connectors.report.variants import variants

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LENGTH_GROUPS = 5
"""Groups of queries by the length of their relevant document, equally large."""

FEWEST_QUERIES = 5
"""A mean over fewer queries is not drawn."""

_MOST_PANELS = 6


def quality_plots(folders: Sequence[EvaluationFolder]) -> list[Plot]:
    """Every figure that these evaluations can fill.

    Args:
        folders: Complete evaluations.

    Raises:
        InvalidInput: A file is missing or damaged.
        MissingDependency: matplotlib or pyarrow is not installed.
    """
    alike: dict[tuple[str, str], list[EvaluationFolder]] = defaultdict(list)
    for folder, variant in zip(folders, variants(folders), strict=True):
        alike[folder.record.protocol.measures[0], variant].append(folder)
    plots = [
        draw(members, variant) for (_, variant), members in alike.items() for draw in (by_language, by_length)
    ]
    return [plot for plot in [*plots, over_weights(folders)] if plot is not None]


def by_language(folders: Sequence[EvaluationFolder], variant: str = "") -> Plot | None:
    """The main measure, which all have in common, by query language: asked in the documents' language, and in another.

    A point is the mean over datasets, each of which counts once. None without languages. ``variant`` says which
    evaluations these are, where there are others (``variants``).
    """
    kinds: dict[str, dict[tuple[str, str], list[float]]] = {
        kind: defaultdict(list) for kind in ("same", "other")
    }
    for folder in folders:
        asked, answered = folder.record.dataset.query_language, folder.record.dataset.passage_language
        if asked is None:
            continue
        kind = "same" if answered in (None, asked) else "other"
        for method, values in main_values(folder).items():
            kinds[kind][method, asked].append(float(np.mean(list(values.values()))))
    shown = {kind: means for kind, means in kinds.items() if means}
    if not shown:
        return None
    measure = folders[0].record.protocol.measures[0]
    titles = {"same": "documents in the query's language", "other": "documents in another language"}
    style = look(_methods(folders))
    with drawing() as figure:
        canvas = figure(width_inches=9.6 if len(shown) > 1 else 7.2)
        for number, (kind, means) in enumerate(shown.items(), 1):
            axes = canvas.add_subplot(1, len(shown), number)
            languages = sorted({language for _, language in means})
            for offset, (method, (colour, marker)) in _spread(style):
                points = [
                    (x + offset, np.mean(means[method, language]))
                    for x, language in enumerate(languages)
                    if (method, language) in means
                ]
                if points:
                    axes.plot(*zip(*points, strict=True), marker, color=colour, label=method, markersize=6)
            axes.set_xticks(range(len(languages)), languages)
            axes.set_xlim(-0.5, len(languages) - 0.5)
            axes.grid(visible=False, axis="x")
            axes.set(xlabel="query language", ylabel=measure if number == 1 else "", title=titles[kind])
            axes.set_ylim(0, axes.get_ylim()[1] * 1.03)
        canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        caption = (
            f"Mean {measure} by query language; of several datasets in one language the mean of their means."
        )
        title = f"{measure} by query language{variant}"
        return finish(canvas, f"by-language-{_slug(measure + variant)}", title, caption)


def by_length(folders: Sequence[EvaluationFolder], variant: str = "") -> Plot | None:
    """The main measure, which all have in common, by length of the relevant document; None with too few queries.

    ``variant`` says which evaluations these are, where there are others (``variants``).
    """
    lengths: list[float] = []
    values: dict[str, list[float]] = {method: [] for method in _methods(folders)}
    known_tokens = all(folder.documents()["tokens"].null_count == 0 for folder in folders)
    unit = "tokens" if known_tokens else "characters"
    for folder in folders:
        documents = folder.documents()
        sizes = dict(zip(documents["document_id"].to_pylist(), documents[unit].to_pylist(), strict=True))
        by_method = main_values(folder)
        for query, grades in folder.qrels().items():
            relevant = [
                (-grade, document) for document, grade in grades.items() if grade > 0 and document in sizes
            ]
            if relevant:
                lengths.append(sizes[min(relevant)[1]])
                for method, column in values.items():
                    column.append(by_method[method][query] if method in by_method else math.nan)
    if len(lengths) < LENGTH_GROUPS * FEWEST_QUERIES or min(lengths) == max(lengths):
        return None
    measure = folders[0].record.protocol.measures[0]
    groups: list[npt.NDArray[np.int64]] = np.array_split(np.argsort(lengths, kind="stable"), LENGTH_GROUPS)
    middles = [float(np.median(np.asarray(lengths)[group])) for group in groups]
    with drawing() as figure:
        canvas = figure()
        axes = canvas.add_subplot()
        for method, (colour, marker) in look(list(values)).items():
            scores = np.asarray(values[method])
            parts = [scores[group][~np.isnan(scores[group])] for group in groups]
            if min(len(part) for part in parts) >= FEWEST_QUERIES:
                errors = [1.96 * part.std(ddof=1) / math.sqrt(len(part)) for part in parts]
                means = [part.mean() for part in parts]
                axes.errorbar(
                    middles,
                    means,
                    errors,
                    color=colour,
                    marker=marker,
                    label=method,
                    capsize=2,
                    elinewidth=0.8,
                )
        axes.set_xscale("log")
        axes.set_xticks(middles, [f"{middle:,.0f}" for middle in middles])
        axes.minorticks_off()
        axes.set(xlabel=f"{unit} of the relevant document (median of the group)", ylabel=measure)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.03)
        canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        caption = (
            f"Mean {measure} of {len(lengths):,} queries in {LENGTH_GROUPS} groups of equal size by the length of "
            "their most relevant document, with 95 % intervals (normal approximation)."
        )
        title = f"{measure} by document length{variant}"
        return finish(canvas, f"by-length-{_slug(measure + variant)}", title, caption)


def over_weights(folders: Sequence[EvaluationFolder]) -> Plot | None:
    """nDCG@10 of All under every weighting (w1 + w2 + w3 = 1), a triangle for each family; None where it was not run.

    Each dataset of a family counts once; other models, stores and protocols have triangles of their own.
    """
    families: dict[tuple[str, str], list[Surface]] = defaultdict(list)
    used: dict[tuple[str, str], set[Weights]] = defaultdict(set)
    for folder, variant in zip(folders, variants(folders), strict=True):
        record = folder.record
        asked = [method for method in record.methods if method.name == ALL.name and method.weights]
        if not asked or any(record.protocol.depths[name] < DEPTHS[name] for name in ALL.candidates):
            continue
        same = record.dataset.passage_language in (None, record.dataset.query_language)
        family = record.dataset.family if same else f"{record.dataset.family}, cross-lingual"
        families[family, variant].append(surface(folder))
        used[family, variant].update(Weights(*method.weights) for method in asked if method.weights)
    if not families:
        return None
    shown = dict(list(families.items())[:_MOST_PANELS])
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    with drawing() as figure:
        canvas = figure(width_inches=3.6 * columns + 0.6, height_inches=3.5 * lines)
        for number, ((family, variant), datasets) in enumerate(shown.items(), 1):
            axes = canvas.add_subplot(lines, columns, number)
            means = np.mean([dataset.means for dataset in datasets], axis=0)
            _triangle(axes, datasets[0].weights, means, used[family, variant])
            title = f"{family} ({len(datasets)} {'sets' if len(datasets) > 1 else 'set'})"
            axes.set_title("\n".join(filter(None, (title, variant.strip()))))
        handles, labels = axes.get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=5)
        more = (
            f" {len(families) - len(shown)} more families are not drawn."
            if len(families) > len(shown)
            else ""
        )
        caption = (
            "nDCG@10 of All under each weighting of the three scores, every cell the true value from the component "
            f"scores of the same candidates (dense top {ALL.candidates['dense']}).{more} The best cell was found on "
            "these very queries: use m3 tune for weights that hold on others."
        )
        return finish(canvas, "weights", "Quality over the simplex of weights", caption)


def _triangle(
    axes: Axes, weights: npt.NDArray[np.float64], values: npt.NDArray[np.float64], used: set[Weights]
) -> None:
    """A heat map in barycentric coordinates: dense left, sparse right, multi-vector on top."""
    x, y = _corner(weights).T
    cells = axes.scatter(x, y, c=values, marker="h", s=62, cmap="viridis", linewidths=0)
    bar = axes.figure.colorbar(cells, ax=axes, shrink=0.75)
    assert bar.solids is not None
    bar.solids.set(rasterized=False, edgecolor="face")
    best = weights[int(values.argmax())]
    marks = {
        "best here": ([Weights(*best)], "*", "#d55e00"),
        "used": (sorted(used, key=tuple), "o", "white"),
        "paper (MIRACL)": ([MIRACL["all"]], "s", "white"),
        "paper (long)": ([LONG_DOCUMENTS["all"]], "^", "white"),
    }
    for label, (several, marker, colour) in marks.items():
        places = np.array([tuple(one) for one in several])
        x, y = _corner(places / places.sum(axis=1, keepdims=True)).T
        axes.scatter(x, y, marker=marker, s=70, color=colour, edgecolors="black", label=label, zorder=3)
    for name, across, up in (("dense", 0, -0.08), ("sparse", 1, -0.08), ("multi-vector", 0.5, 0.93)):
        axes.text(across, up, name, ha="center", va="center", fontsize=9)
    axes.set(xlim=(-0.12, 1.12), ylim=(-0.14, 1.0), aspect="equal")
    axes.axis("off")


def _corner(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Barycentric to plane coordinates, ``[m, 3]`` to ``[m, 2]``."""
    corners = np.array([[0, 0], [1, 0], [0.5, math.sqrt(3) / 2]])
    return np.asarray(weights @ corners)


def main_values(folder: EvaluationFolder) -> dict[str, dict[str, float]]:
    """The main measure of every query, by method."""
    table = folder.metrics()
    main = folder.record.protocol.measures[0]
    values: dict[str, dict[str, float]] = {method.name: {} for method in folder.record.methods}
    columns = (table[name].to_pylist() for name in ("query_id", "method", "measure", "value"))
    for query, method, measure, value in zip(*columns, strict=True):
        if measure == main:
            values[method][query] = value
    return values


def _methods(folders: Sequence[EvaluationFolder]) -> list[str]:
    return list(dict.fromkeys(method.name for folder in folders for method in folder.record.methods))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _spread(
    style: Mapping[str, tuple[str, str]],
) -> list[tuple[float, tuple[str, tuple[str, str]]]]:
    """The methods with their places around a tick, so that points of one language do not hide each other."""
    offsets = np.linspace(-0.3, 0.3, len(style)) if len(style) > 1 else [0.0]
    return list(zip(map(float, offsets), style.items(), strict=True))
