"""Figures compare what can be compared, and everything in them can be told apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import write_evaluation
from matplotlib.figure import Figure
from summaries import load_of, summary_of

from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.methods import ALL, DENSE, METHODS, SPARSE, Method
from m3_connectors.report import cost_plots, quality_cost_plot, quality_plots
from m3_connectors.report.cost_plots import latency_plot, method_plot
from m3_connectors.report.fair import fair
from m3_connectors.report.quality_cost_plot import quality_against_cost
from m3_connectors.report.quality_plots import by_language, by_length
from m3_connectors.report.style import look, slugs, stacked

EVERY = tuple(METHODS.values())
COSTS = {
    "bench": summary_of(
        load_of(store, method, seconds, 2 * seconds)
        for store, seconds in (("a", 0.002), ("b", 0.2), ("c", 0.3))
        for method in METHODS
    )
}


def write(
    path: Path,
    *,
    good: float,
    methods: Sequence[Method] = EVERY,
    languages: tuple[str, str] = ("de", "de"),
    baselines: Sequence[str] = (),
) -> EvaluationFolder:
    """40 questions, of which a share ``good`` has the relevant document first in every ranking and the others last."""
    cells, qrels = {}, {}
    for i in range(40):
        first = i < good * 40
        cells[f"q{i}"] = {f"d{j:02}": (1 - j / 20,) * 3 for j in range(12)}
        qrels[f"q{i}"] = {"d00" if first else "d11": 1}
    run = {query: [(document, scores[0]) for document, scores in cells[query].items()] for query in cells}
    return write_evaluation(
        path,
        cells,
        qrels,
        name=f"set/{path.name}",
        methods=methods,
        languages=languages,
        characters={f"d{j:02}": 100 * (j + 1) for j in range(12)},
        baselines=dict.fromkeys(baselines, run),
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were made since."""
    figures: list[Figure] = []
    for module in (quality_plots, quality_cost_plot, cost_plots):
        finish = module.finish

        def keep(figure: Figure, *args: Any, finish: Any = finish) -> Any:
            plot = finish(figure, *args)
            figures.append(figure)
            return plot

        monkeypatch.setattr(module, "finish", keep)
    return figures


def heights(figure: Figure, panel: int = 0) -> dict[str, set[float]]:
    """The heights of each line of a panel by its label."""
    return {
        str(line.get_label()): {round(float(y), 6) for y in np.asarray(line.get_ydata())}
        for line in figure.axes[panel].lines
    }


def test_an_easy_set_that_one_method_lacks_makes_no_other_look_better(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    easy = write(tmp_path / "easy", good=1.0)
    hard = write(tmp_path / "hard", good=0.0, methods=[SPARSE, ALL])
    (plot,) = quality_against_cost([easy, hard], COSTS)
    assert heights(drawn[-1])["a, 1,000"] == {1.0}  # over both sets Sparse would have 0.5
    assert "not all methods shown have them: set/hard test." in plot.caption
    assert "of 1 evaluation in the documents' language" in plot.caption
    language = by_language([easy, hard])
    assert language is not None
    assert all(points == {1.0} for points in heights(drawn[-1]).values())
    assert "set/hard test" in language.caption
    length = by_length([easy, hard])
    assert length is None or "of 40 queries" in length.caption


def test_a_rare_method_takes_no_evaluation_from_the_others(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, good=0.5, methods=[DENSE, SPARSE]) for name in ("a", "b", "c")]
    folders.append(write(tmp_path / "d", good=0.5, methods=[DENSE, SPARSE, ALL]))
    compared = fair(folders, ["dense", "sparse", "all"])
    assert (compared.methods, compared.missing_methods) == (("dense", "sparse"), ("all",))
    assert list(compared.folders) == folders
    apart = [write(tmp_path / method.name, good=0.5, methods=[method]) for method in (DENSE, SPARSE)]
    compared = fair(apart, ["dense", "sparse"])
    assert (compared.methods, compared.missing_methods) == (("dense",), ("sparse",))
    assert fair([], ["dense"]).methods == ()


def test_questions_in_another_language_have_a_panel_of_their_own_on_the_same_scale(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    folders = [
        write(tmp_path / "same", good=1.0),
        write(tmp_path / "other", good=0.25, languages=("fr", "de")),
    ]
    quality_against_cost(folders, COSTS)
    by_language(folders)
    for figure in drawn:
        same, other = figure.axes
        assert same.get_ylim() == other.get_ylim()
        assert max(heights(figure, 0)[next(iter(heights(figure, 0)))]) == 1.0
        assert max(heights(figure, 1)[next(iter(heights(figure, 1)))]) < 0.6


def test_legends_name_what_only_one_panel_has(tmp_path: Path, drawn: list[Figure]) -> None:
    by_language(
        [
            write(tmp_path / "same", good=1.0, baselines=["bm25"]),
            write(tmp_path / "other", good=0.5, languages=("fr", "de"), baselines=["rrf"]),
        ]
    )
    (legend,) = drawn[-1].legends
    assert [text.get_text() for text in legend.get_texts()] == [*METHODS, "bm25", "rrf"]


def test_what_no_benchmark_measured_is_named(tmp_path: Path) -> None:
    (plot,) = quality_against_cost([write(tmp_path / "a", good=0.5, baselines=["bm25", "rrf"])], COSTS)
    assert plot.caption.endswith("No benchmark measured: bm25, rrf.")


def test_two_benchmarks_of_one_store_are_told_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    quality_against_cost([write(tmp_path / "a", good=0.5)], {"old": COSTS["bench"], "new": COSTS["bench"]})
    assert {"a, 1,000 (old)", "a, 1,000 (new)"} <= heights(drawn[-1]).keys()


def test_numbers_on_logarithmic_axes_are_plain(drawn: list[Figure]) -> None:
    import pyarrow as pa

    row = {
        "phase": "measured",
        "error": None,
        "store": "a",
        "documents": 9,
        "load": "l",
        "intended_seconds": 0.0,
    }
    rows = pa.Table.from_pylist([row | {"end_seconds": 0.0004 * 1.02**i} for i in range(400)])
    latency_plot("x", rows, summary_of(()), "x")
    method_plot("x", COSTS["bench"], "x")
    latency, methods = drawn
    shown = [
        {label.get_text() for label in axis.get_ticklabels()}
        for axis in (latency.axes[0].xaxis, latency.axes[0].yaxis, methods.axes[0].xaxis)
    ]
    assert {"1", "10", "100", "1,000"} <= shown[0]
    assert {"100 %", "10 %", "1 %"} <= shown[1]
    assert {"10", "100"} <= shown[2]
    assert not any("$" in label for labels in shown for label in labels)


def test_every_store_of_a_method_is_within_the_axes(drawn: list[Figure]) -> None:
    one = summary_of(load for load in COSTS["bench"].loads if load.method == "all")
    method_plot("x", one, "x")
    low, high = sorted(drawn[-1].axes[0].get_ylim())
    for points in heights(drawn[-1]).values():
        assert all(low + 0.1 < y < high - 0.1 for y in points)  # the marker, too


def test_intervals_of_one_group_stand_side_by_side(tmp_path: Path, drawn: list[Figure]) -> None:
    random = np.random.default_rng(0)
    cells = {f"q{i}": {f"d{j}": tuple(random.random(3).tolist()) for j in range(20)} for i in range(60)}
    qrels = {query: {f"d{i % 20}": 1} for i, query in enumerate(cells)}
    folder = write_evaluation(tmp_path / "e", cells, qrels, characters={f"d{j}": j + 1 for j in range(20)})  # type: ignore[arg-type]
    assert by_length([folder]) is not None
    firsts = sorted(
        float(container.lines[0].get_xdata()[0])  # type: ignore[union-attr]
        for container in drawn[-1].axes[0].containers
    )
    assert len(firsts) == len(METHODS)
    assert min(b - a for a, b in itertools.pairwise(firsts)) > 0.05


def test_no_two_of_many_methods_look_alike() -> None:
    looks = look([str(i) for i in range(40)])
    assert len({(one.colour, one.marker) for one in looks.values()}) == 40
    assert len({(one.colour, one.line) for one in list(looks.values())[:36]}) == 36


def test_names_that_are_written_alike_have_files_of_their_own() -> None:
    given = slugs(["a b", "a-b", "A_b", "a-b-2", "日本", "☃", "!"])
    assert len(set(given.values())) == len(given)
    assert given["a b"] == "a-b"
    assert given["日本"] == "日本"


def test_labels_are_moved_apart_and_no_further() -> None:
    assert stacked([0.1, 0.9, 0.5], 0.1) == [0.1, 0.9, 0.5]
    assert stacked([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    random = np.random.default_rng(1)
    for _ in range(100):
        heights = random.random(8).tolist()
        places = stacked(heights, 0.15)
        assert np.diff(sorted(places)).min() > 0.15 - 1e-9
        assert np.argsort(places).tolist() == np.argsort(heights).tolist()
