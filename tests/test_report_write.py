"""The report of a tree: every benchmark is in it, and what is not whole is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest

from m3_connectors.bench import run as running
from m3_connectors.bench.scenario import read_scenario
from m3_connectors.cli.app import main
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


def test_an_interrupted_benchmark_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure(tmp_path / "whole")
    measure(tmp_path / "cut")
    record = tmp_path / "cut" / "bench.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"complete": False}))
    assert write_report(tmp_path).cut_off == (tmp_path / "cut",)
    assert main(["report", str(tmp_path)]) == 0
    assert f"{tmp_path / 'cut'} was interrupted" in capsys.readouterr().err
    assert "This benchmark was interrupted" in (tmp_path / "report" / "report.html").read_text()


def test_a_killed_benchmark_is_warned_of_and_the_others_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(tmp_path / "whole")
    measure(tmp_path / "killed")
    (tmp_path / "killed" / "requests.parquet").write_bytes(b"PAR1")  # killed before the footer was written
    report = write_report(tmp_path)
    assert report.unreadable == (tmp_path / "killed",)
    assert [table.title for table in report.tables if table.title.startswith("Answering")] == [
        "Answering: whole"
    ]
    assert "and run it again" in (tmp_path / "report" / "report.html").read_text()
    assert main(["report", str(tmp_path)]) == 0
    assert f"{tmp_path / 'killed'} cannot be read" in " ".join(capsys.readouterr().err.split("\n"))


def test_a_figure_of_what_is_no_longer_there_is_removed_and_nothing_else(tmp_path: Path) -> None:
    measure(tmp_path / "old")
    measure(tmp_path / "new")
    before = write_report(tmp_path)
    own = tmp_path / "report" / "notes.txt"
    own.write_text("mine")
    shutil.rmtree(tmp_path / "old")
    after = write_report(tmp_path)
    assert any("-old." in path.name for path in before.files)
    there = {path for path in (tmp_path / "report").iterdir() if path.name != FILES}
    assert there == {*after.files, own}
