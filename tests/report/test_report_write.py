"""The report of a tree: every benchmark is in it, and what is not whole is said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest
from evaluations import write_evaluation

from m3_connectors.bench import run as running
from m3_connectors.bench.scenario import read_scenario
from m3_connectors.cli.app import main
from m3_connectors.errors import InvalidInput
from m3_connectors.report.write import FILES, write_report


def measure(out: Path, store: str = "s") -> None:
    raw: dict[str, Any] = {
        "name": "tiny",
        "stores": [{"name": store, "url": "memory:"}],
        "corpus": {"documents": 60, "dimension": 16, "vocabulary": 500, "topics": 5, "rows": {"mean": 4}},
        "queries": {"count": 5, "k": 5},
        "recall": {"queries": 2, "depth": 20},
        "loads": [{"warm_up_seconds": 0, "requests": 20}],
    }
    anyio.run(running.run, read_scenario(raw, "tiny"), out)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a benchmark, to copy."""
    folder = tmp_path_factory.mktemp("measured") / "bench"
    measure(folder)
    return folder


def test_two_benchmarks_of_one_name_are_both_in_the_report(tmp_path: Path) -> None:
    for place, store in (("monday/run", "slow"), ("tuesday/run", "fast"), ("other", "third")):
        measure(tmp_path / place, store)
    report = write_report(tmp_path)
    answers = {
        table.title: table.rows[0][0] for table in report.tables if table.title.startswith("Answering")
    }
    assert answers == {
        "Answering: monday/run": "slow",
        "Answering: tuesday/run": "fast",
        "Answering: other": "third",
    }
    assert all(path.exists() for path in report.files)
    assert len(set(report.files)) == len(report.files)


def test_an_interrupted_benchmark_is_named(
    tmp_path: Path, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(measured, tmp_path / "whole")
    shutil.copytree(measured, tmp_path / "cut")
    record = tmp_path / "cut" / "bench.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"complete": False}))
    assert main(["report", str(tmp_path)]) == 0
    assert f"{tmp_path / 'cut'} was interrupted" in capsys.readouterr().err
    assert "This benchmark was interrupted" in (tmp_path / "report" / "report.html").read_text()


def test_a_killed_benchmark_is_warned_of_and_the_others_are_reported(
    tmp_path: Path, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(measured, tmp_path / "whole")
    shutil.copytree(measured, tmp_path / "killed")
    (tmp_path / "killed" / "requests.parquet").write_bytes(b"PAR1")  # killed before the footer was written
    report = write_report(tmp_path)
    assert list(report.unreadable_benchmarks) == [tmp_path / "killed"]
    assert [table.title for table in report.tables if table.title.startswith("Answering")] == [
        "Answering: whole"
    ]
    assert "and run it again" in (tmp_path / "report" / "report.html").read_text()
    assert main(["report", str(tmp_path)]) == 0
    assert f"{tmp_path / 'killed'} cannot be read" in " ".join(capsys.readouterr().err.split("\n"))


def test_a_figure_of_what_is_no_longer_there_is_removed_and_nothing_else(
    tmp_path: Path, measured: Path
) -> None:
    shutil.copytree(measured, tmp_path / "old")
    shutil.copytree(measured, tmp_path / "new")
    before = write_report(tmp_path)
    own = tmp_path / "report" / "notes.txt"
    own.write_text("mine")
    shutil.rmtree(tmp_path / "old")
    after = write_report(tmp_path)
    assert any("-old." in path.name for path in before.files)
    there = {path for path in (tmp_path / "report").iterdir() if path.name != FILES}
    assert there == {*after.files, own}


def test_a_record_that_cannot_be_read_hides_no_other(
    tmp_path: Path, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(measured, tmp_path / "whole")
    judged(tmp_path / "judged")
    broken = []
    for number, record in enumerate(['{"format": 2}', '{"format": 1}', "{", "[]", "\\xff"]):
        for place, name in (("bench", "bench.json"), ("evaluation", "evaluation.json")):
            broken.append(f"{place}{number}")
            (tmp_path / broken[-1]).mkdir()
            (tmp_path / broken[-1] / name).write_text(record)
    assert main(["report", str(tmp_path)]) == 1  # means lack an evaluation
    told = " ".join(capsys.readouterr().err.split())
    html = (tmp_path / "report" / "report.html").read_text()
    for place in broken:
        assert f"{tmp_path / place} cannot be read and is not in any table" in told
        assert f'<p class="warning">{place}: ' in html
    assert "Answering: whole" in html
    assert "nDCG@10" in html


def test_an_evaluation_whose_files_are_damaged_hides_no_other(tmp_path: Path) -> None:
    judged(tmp_path / "good")
    for damaged in ("runs/all.trec", "scores/00000.parquet", "documents.parquet", "environment.json"):
        judged(tmp_path / "bad")
        (tmp_path / "bad" / damaged).write_bytes(b"PAR1 and no more than that")
        report = write_report(tmp_path)
        assert list(report.unreadable_evaluations) == [tmp_path / "bad"], damaged
        shutil.rmtree(tmp_path / "bad")


def test_where_nothing_is_both_commands_are_named(tmp_path: Path) -> None:
    for place, what in (
        (tmp_path, "contains no evaluation and no benchmark"),
        (tmp_path / "no", "no folder"),
    ):
        with pytest.raises(InvalidInput, match=what) as told:
            write_report(place)
        assert "m3 eval" in str(told.value)
        assert "m3 bench" in str(told.value)
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"nothing at or below .* can be read") as told:
        write_report(tmp_path)
    assert "bench.json lacks the key scenario" in str(told.value)


def test_folders_that_are_written_alike_have_figures_of_their_own(tmp_path: Path, measured: Path) -> None:
    for place in ("a b", "a-b"):
        shutil.copytree(measured, tmp_path / place)
    report = write_report(tmp_path)
    assert len(set(report.files)) == len(report.files)
    assert {"latency-a-b.svg", "latency-a-b-2.svg"} <= {path.name for path in report.files}
    html = (tmp_path / "report" / "report.html").read_text()
    anchors = re.findall(r'\bid="([^"]*)"', html)
    assert len(set(anchors)) == len(anchors)
    assert set(re.findall(r'<a href="#([^"]*)"', html)) <= set(anchors)
    assert not any(" " in anchor for anchor in anchors)


def judged(path: Path) -> None:
    write_evaluation(
        path, {"q": {"a": (0.9, 0.9, 0.9), "b": (0.1, 0.1, 0.1)}}, {"q": {"a": 1}}, name=path.name
    )
