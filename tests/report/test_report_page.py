"""Reports: the figures show what is in the files, and a browser draws them."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pytest
from evaluations import write_evaluation
from matplotlib import image
from summaries import load_of, summary_of
from test_report_write import measure

from m3_connectors.bench.records import Summary
from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.evaluation.record import Fusion, Protocol
from m3_connectors.report.comparison_tables import comparison_tables
from m3_connectors.report.cost_plots import latency_plot, method_plot
from m3_connectors.report.page import Section, page
from m3_connectors.report.quality_cost_plot import quality_against_cost
from m3_connectors.report.quality_plots import by_language, by_length, over_weights, quality_plots
from m3_connectors.report.style import Plot
from m3_connectors.report.table import Column, Table
from m3_connectors.report.write import write_report

SVG = "{http://www.w3.org/2000/svg}"
NOTHING_VOID = summary_of(())
METHODS = ("dense", "sparse", "multi_vec", "dense_sparse", "all")


def write(
    path: Path,
    name: str,
    languages: tuple[str, str],
    seed: int,
    *,
    good: str = "dense",
    fusion: Fusion = "exact",
) -> EvaluationFolder:
    """60 queries over 40 documents; the component ``good`` alone knows what is relevant."""
    random = np.random.default_rng(seed)
    cells, qrels, characters = {}, {}, {f"d{j:02}": 100 * (j + 1) for j in range(40)}
    for i in range(60):
        scores = random.uniform(0.1, 0.5, size=(40, 3))
        relevant = int(random.integers(40))
        scores[relevant, ("dense", "sparse", "multivector").index(good)] = 0.9
        cells[f"q{i}"] = {f"d{j:02}": tuple(scores[j].tolist()) for j in range(40)}
        qrels[f"q{i}"] = {f"d{relevant:02}": 1}
    split = "test" if languages[0] == languages[1] else f"q-{languages[0]}"
    return write_evaluation(
        path,
        cells,
        qrels,
        name=name,
        split=split,
        languages=languages,
        characters=characters,
        protocol=Protocol(fusion=fusion),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[EvaluationFolder]:
    root = tmp_path_factory.mktemp("evaluations")
    kinds = [("toy/de", ("de", "de")), ("toy/en", ("en", "en")), ("toy/en", ("de", "en"))]
    return [write(root / str(i), name, languages, i) for i, (name, languages) in enumerate(kinds)]


def requests(stores: dict[str, float], *, count: int = 200) -> pa.Table:
    """Requests of each store whose latency is exponential with this mean in seconds."""
    random = np.random.default_rng(0)
    rows = [
        {
            "store": store,
            "documents": 1000,
            "load": load,
            "phase": "warm-up" if i < 10 else "measured",
            "error": "Unavailable: gone" if i == 11 else None,
            "intended_seconds": float(i),
            "end_seconds": i + float(random.exponential(mean)),
        }
        for store, mean in stores.items()
        for load in ("closed-1", "closed-8")
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows)


def summary(p50: dict[str, float], *, void: tuple[str, ...] = ()) -> Summary:
    """Stores with these latencies; the loads of those named in ``void`` must not be used."""
    return summary_of(
        load_of(
            store,
            method,
            seconds * factor * (i + 1),
            seconds * factor * (i + 2),
            load,
            ("3 requests failed",) if store in void else (),
        )
        for store, seconds in p50.items()
        for factor, load in ((1, "closed-1"), (9, "closed-8"))
        for i, method in enumerate(METHODS)
    )


def texts(plot: Plot) -> set[str]:
    return {(element.text or "").strip() for element in ET.fromstring(plot.svg).iter(f"{SVG}text")}


def test_quality_by_language_parts_what_is_asked_in_another_language(folders: list[EvaluationFolder]) -> None:
    plot = by_language(folders)
    assert plot is not None
    assert {"de", "en", *METHODS} <= texts(plot)
    assert {"documents in the query's language", "documents in another language"} <= texts(plot)
    alone = by_language(folders[:2])
    assert alone is not None
    assert "documents in another language" not in texts(alone)


def test_without_languages_there_is_no_figure_of_them(tmp_path: Path) -> None:
    nameless = write_evaluation(tmp_path / "e", {"q": {"a": (0.5, 0.5, 0.5)}}, {"q": {"a": 1}})
    assert by_language([nameless]) is None
    assert by_length([nameless]) is None  # nor one of lengths for a single query


def test_quality_by_length_uses_what_is_known_of_the_documents(folders: list[EvaluationFolder]) -> None:
    plot = by_length(folders)
    assert plot is not None
    assert "characters of the relevant document (median of the group)" in texts(plot)
    assert "of 180 queries" in plot.caption


def test_the_heat_map_is_brightest_where_the_good_component_weighs_most(tmp_path: Path) -> None:
    for good, corner in (("dense", (0.0, 0.0)), ("sparse", (1.0, 0.0)), ("multivector", (0.5, 3**0.5 / 2))):
        folder = write(tmp_path / good, "toy", ("en", "en"), 3, good=good)
        with pytest.MonkeyPatch.context() as patch:
            drawn: list[tuple[np.ndarray, np.ndarray]] = []
            from matplotlib.axes import Axes

            scatter = Axes.scatter

            def record(
                self: Axes,
                x: Any,
                y: Any,
                *args: Any,
                drawn: Any = drawn,
                scatter: Any = scatter,
                **options: Any,
            ) -> Any:
                if "c" in options:
                    drawn.append((np.stack([x, y], axis=1), np.asarray(options["c"])))
                return scatter(self, x, y, *args, **options)

            patch.setattr(Axes, "scatter", record)
            assert over_weights([folder]) is not None
        ((places, values),) = drawn
        assert len(values) == 231
        nearest = np.linalg.norm(places - corner, axis=1) < 0.2
        assert values[nearest].mean() > values[~nearest].mean() + 0.1


def test_the_same_files_give_the_same_figures(folders: list[EvaluationFolder]) -> None:
    assert quality_plots(folders) == quality_plots(folders)


def test_latency_leaves_out_warm_up_and_errors_and_has_a_panel_for_each_load() -> None:
    plot = latency_plot("three stores", requests({"edge": 0.002, "slow": 0.02}), NOTHING_VOID, "x")
    assert plot is not None
    assert {"closed-1, 1,000 documents", "closed-8, 1,000 documents", "edge", "slow"} <= texts(plot)
    rows = requests({"edge": 0.002})
    assert latency_plot("nothing", rows.slice(0, 10), NOTHING_VOID, "x") is None  # warm-up only


def test_void_loads_are_in_no_figure() -> None:
    broken = summary({"edge": 0.001, "slow": 0.01}, void=("slow",))
    plot = latency_plot("two stores", requests({"edge": 0.002, "slow": 0.02}), broken, "x")
    assert plot is not None
    assert "slow" not in texts(plot)
    assert "Loads with invalid numbers are omitted." in plot.caption
    methods = method_plot("two stores", broken, "x")
    assert methods is not None
    assert "slow" not in texts(methods)


def test_methods_and_cost_take_the_lightest_load(folders: list[EvaluationFolder]) -> None:
    plot = method_plot("three stores", summary({"edge": 0.001, "slow": 0.01}), "x")
    assert plot is not None
    assert {"1,000 documents, closed-1", *METHODS} <= texts(plot)
    (cost,) = quality_against_cost(folders, {"three stores": summary({"edge": 0.001})})
    assert {"edge, 1,000", "mean nDCG@10", *METHODS} <= texts(cost)
    assert quality_against_cost([], {"three stores": summary({"edge": 0.001})}) == []


def test_two_protocols_are_never_averaged(folders: list[EvaluationFolder], tmp_path: Path) -> None:
    """A tree with the same dataset under two models, stores or protocols has figures and lines of each."""
    both = [folders[0], write(tmp_path / "paper", "toy/de", ("de", "de"), 0, good="sparse", fusion="paper")]
    plots = {plot.name: plot for plot in quality_plots(both)}
    assert {"by-language-ndcg-10-exact-fusion", "by-language-ndcg-10-paper-fusion"} < plots.keys()
    assert {"toy (1 set)", "(exact fusion)", "(paper fusion)"} <= texts(plots["weights"])
    costs = quality_against_cost(both, {"three stores": summary({"edge": 0.001})})
    assert [cost.title for cost in costs] == [
        "nDCG@10 against cost (exact fusion)",
        "nDCG@10 against cost (paper fusion)",
    ]
    for table in comparison_tables(both, {})[:2]:
        assert {str(row[0]).partition(" ")[2] for row in table.rows} == {"(exact fusion)", "(paper fusion)"}


def test_a_table_marks_the_best_and_shows_what_is_missing() -> None:
    table = Table(
        "t",
        "A | title",
        (Column("method"), Column("nDCG@10", best=max), Column("p50, ms", decimals=1, best=min), Column("n")),
        (("all", 0.5004, 7.0, 1200), ("dense|x", 0.5001, None, 3), ("sparse", 0.4, 2.0, 4)),
        note="A note.",
    )
    assert table.shown()[0] == [("all", False), ("0.500", True), ("7.0", False), ("1,200", False)]
    assert table.shown()[1][:3] == [("dense|x", False), ("0.500", True), ("–", False)]
    assert "| dense\\|x | **0.500** | – | 3 |" in table.to_markdown()
    assert json.loads(json.dumps(table.to_json()))["rows"][1] == ["dense|x", 0.5001, None, 3]


def test_a_page_needs_nothing_from_outside_and_escapes_what_it_shows(folders: list[EvaluationFolder]) -> None:
    table = Table("t", "<b>", (Column("query"),), (("<script>alert(1)</script>",),), note="a < b")
    html = page("Report & more", [Section("One", (table, *quality_plots(folders)), ("<i>",), ("5 > 4",))])
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    # Namespaces are names; nothing is fetched from them.
    fetched = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert not re.search(r"(?:https?:)?//\w", re.sub(r"<rdf:RDF.*?</rdf:RDF>", "", fetched, flags=re.S))
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


@pytest.fixture
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium: apt-get install chromium")
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    return found


def test_a_browser_draws_every_figure(chromium: str, folders: list[EvaluationFolder], tmp_path: Path) -> None:
    cost = quality_against_cost(folders, {"three stores": summary({"edge": 0.001, "slow": 0.01})})
    plots = [
        *quality_plots(folders),
        latency_plot("three stores", requests({"edge": 0.002, "slow": 0.02}), NOTHING_VOID, "x"),
        method_plot("three stores", summary({"edge": 0.001, "slow": 0.01}), "x"),
        *cost,
    ]
    named = [METHODS, METHODS, ("best here", "used"), ("edge", "slow"), ("edge", "slow"), METHODS]
    assert len(plots) == len(named)
    table = Table("t", "A table", (Column("method"), Column("nDCG@10")), (("all", 0.5), ("dense", 0.4)))
    html = page("Report", [Section("Figures", (table, *(plot for plot in plots if plot)))])
    seen, picture = browse(chromium, html, tmp_path)
    assert len(seen) == len(plots)
    for figure, plot, names in zip(seen, plots, named, strict=True):
        assert plot is not None
        left, top, width, height = (round(value) for value in figure["place"])
        assert width > 400
        assert height > 200
        area = picture[top : top + height, left : left + width, :3]
        assert area.shape[:2] == (height, width), f"{plot.name} is not on the picture"
        background = np.all(area > 0.99, axis=2).mean()
        colourful = (area.max(axis=2) - area.min(axis=2) > 0.2).mean()
        assert 0.3 < background < 0.99, f"{plot.name}: {background:.0%} of it is white"
        assert colourful > 0.001, f"{plot.name} has axes but no data"
        assert all(box["width"] > 0 and box["height"] > 0 for box in figure["texts"])
        assert {*names} <= {box["text"] for box in figure["texts"]}, plot.name
        assert overlapping(figure["texts"]) == [], plot.name


def test_labels_of_methods_of_one_quality_do_not_overlap(chromium: str, tmp_path: Path) -> None:
    """Every method finds the relevant document first: all labels belong at the same height."""
    scores = {f"q{i}": {"a": (0.9, 0.9, 0.9), "b": (0.1, 0.1, 0.1)} for i in range(5)}
    qrels = {query: {"a": 1} for query in scores}
    folder = write_evaluation(tmp_path / "e", scores, qrels)
    plots = quality_against_cost([folder], {"one": summary({"edge": 0.001})})
    ((figure,), _) = browse(chromium, page("Report", [Section("Figures", tuple(plots))]), tmp_path)
    assert {*METHODS} <= {box["text"] for box in figure["texts"]}
    assert overlapping(figure["texts"]) == []


LONG = "an-organisation-with-a-long-name/questions-that-are-asked-frequently-2024-version-2"


@pytest.mark.parametrize(
    "names", [["mine"], ["toy/de", "toy/en", "other/fr", "third/sw"], [LONG, f"{LONG}-b"]]
)
def test_nothing_is_cut_off_whatever_the_width(names: list[str], chromium: str, tmp_path: Path) -> None:
    for number, name in enumerate(names):
        fusion: Fusion = "paper" if name == f"{LONG}-b" else "exact"
        write(tmp_path / "tree" / str(number), name, ("en", "en"), number, fusion=fusion)
    measure(tmp_path / "tree" / "cost", "an-embedded-store-with-a-long-name")
    write_report(tmp_path / "tree")
    html = (tmp_path / "tree" / "report" / "report.html").read_text(encoding="utf-8")
    # A4 across, within its margins; what paper is asked to look like is asked of the screen.
    paper = html.replace("@media print", "@media all")
    for width, shown in ((1300, html), (800, html), (1032, paper)):
        seen = layout(chromium, shown, tmp_path, width)
        assert seen["inside"] == width
        assert seen["page"] <= width, width
        assert seen["beyond"] == [], width
        assert seen["cut"] == [], width  # of figures: the legend, the colour bar, every mark and text
        assert seen["figures"] >= 4
        if width == 1300:
            assert seen["scrolled"] == []


def layout(chromium: str, html: str, directory: Path, width: int) -> dict[str, Any]:
    """How a page lies in a window of so many pixels: what reaches beyond it, what is cut off, which tables scroll."""
    return measured(
        chromium,
        html,
        directory,
        width,
        """(() => {
            const name = e => `${e.tagName} ${(e.textContent || "").trim().slice(0, 40)}`;
            const out = (r, box) => r.width > 0 && (
                r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1);
            const scrolls = e => getComputedStyle(e).overflowX !== "visible";
            const free = e => !e.closest("svg") && !(e.closest(".wide") && scrolls(e.closest(".wide")));
            const figures = [...document.querySelectorAll("figure > svg")];
            return {
                inside: innerWidth,
                page: document.documentElement.scrollWidth,
                beyond: [...document.querySelectorAll("body *")].filter(free)
                    .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(name),
                scrolled: [...document.querySelectorAll(".wide")]
                    .filter(e => e.scrollWidth > e.clientWidth + 1).map(name),
                figures: figures.length,
                cut: figures.flatMap(svg => [...svg.querySelectorAll("text, path, use, image")]
                    .filter(e => !e.closest("defs") && !e.closest("[clip-path]"))
                    .filter(e => out(e.getBoundingClientRect(), svg.getBoundingClientRect())).map(name)),
            };
        })()""",
    )


def overlapping(boxes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Texts that stand on each other by more than a pixel."""
    return [
        (one["text"], other["text"])
        for one, other in itertools.combinations(boxes, 2)
        if min(one["right"], other["right"]) - max(one["left"], other["left"]) > 1
        and min(one["bottom"], other["bottom"]) - max(one["top"], other["top"]) > 1
    ]


def test_the_picture_for_papers_is_the_same_figure(folders: list[EvaluationFolder]) -> None:
    for plot in quality_plots(folders):
        png = image.imread(io.BytesIO(plot.png))
        across, up = (float(x) for x in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', plot.svg).groups())  # type: ignore[union-attr]
        assert png.shape[1] / png.shape[0] == pytest.approx(across / up, rel=0.01)


def browse(chromium: str, html: str, directory: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """What the browser makes of each figure (its left, top, width and height; its texts' boxes), and its picture."""
    seen = measured(
        chromium,
        html,
        directory,
        1300,
        """[...document.querySelectorAll("figure > svg")].map(svg => {
            const r = svg.getBoundingClientRect();
            const texts = [...svg.querySelectorAll("text")].filter(t => t.textContent.trim()).map(t =>
                ({text: t.textContent.trim(), ...t.getBoundingClientRect().toJSON()}));
            return {place: [r.x, r.y, r.width, r.height], texts};
        })""",
    )
    shot = directory / "page.png"
    subprocess.run(
        [*_command(chromium, directory, 1300), f"--screenshot={shot}", (directory / "page.html").as_uri()],
        capture_output=True,
        timeout=120,
        check=True,
    )
    return seen, image.imread(shot)


def measured(chromium: str, html: str, directory: Path, width: int, expression: str) -> Any:
    """What an expression in JavaScript says of the page, in a window of so many pixels."""
    script = (
        '<script>addEventListener("load", () => { document.title = '
        f"encodeURIComponent(JSON.stringify({expression})) }})</script>"
    )
    # The page forbids scripts; this copy is measured by one.
    copy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    path = directory / "page.html"
    path.write_text(copy.replace("</body>", f"{script}</body>"), encoding="utf-8")
    command = [*_command(chromium, directory, width), "--dump-dom", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(unquote(re.search(r"<title>(.*?)</title>", dom.stdout, re.S)[1]))  # type: ignore[index]


def _command(chromium: str, directory: Path, width: int) -> list[str]:
    return [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},6000",
        f"--user-data-dir={directory / 'profile'}", "--virtual-time-budget=5000",
    ]  # fmt: skip
