"""A benchmark that is cut off: what was measured is there, and the same command goes on after it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pyarrow.parquet as pq
import pytest

from m3_connectors.bench import run as running
from m3_connectors.bench.folder import BenchFolder
from m3_connectors.bench.rows import RequestRow
from m3_connectors.bench.scenario import Scenario, read_scenario
from m3_connectors.bench.session import Session
from m3_connectors.cli.app import main
from m3_connectors.environment import environment
from m3_connectors.errors import InvalidInput

PROGRAM = "import sys; from m3_connectors.cli.app import main; sys.exit(main())"
SCENARIO = """
name = "tiny"
[[stores]]
name = "edge"
url = "qdrant:./data"
[corpus]
documents = 100
dimension = 16
vocabulary = 500
rows = { mean = 4 }
[queries]
count = 5
k = 5
[recall]
queries = 2
[[loads]]
warm_up_seconds = 0
requests = 20
[[loads]]
concurrency = 2
warm_up_seconds = 0
seconds = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(SCENARIO)
    return tmp_path


def cut_off(how: signal.Signals) -> tuple[int, str]:
    """Run until the second load has begun, then send the signal; exit code and what stderr said."""
    command = [sys.executable, "-c", PROGRAM, "bench", "tiny.toml", "--out", "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while "closed-2" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.send_signal(how)
        return process.wait(60), said + process.stderr.read()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_finished_loads_survive_and_the_same_command_goes_on(here: Path, how: signal.Signals) -> None:
    code, said = cut_off(how)
    folder = BenchFolder(here / "out")
    (collection,) = folder.record.collections
    assert collection.count == 100
    summary = folder.summary()
    assert not summary.complete
    assert summary.fills[0].documents_per_second > 0
    before = [row for row in folder.requests().to_pylist() if row["load"] == "closed-1"]
    assert len(before) == 20
    if how is not signal.SIGKILL:
        assert code == 130
        assert "To continue, run: m3 bench tiny.toml --out out" in said

    assert main(["bench", "tiny.toml", "--out", "out"]) == 0
    whole = BenchFolder(here / "out")
    rows = whole.requests().to_pylist()
    assert [row for row in rows if row["load"] == "closed-1"] == before  # not asked again
    second = [row for row in rows if row["load"] == "closed-2"]
    assert max(row["end_seconds"] for row in second) - min(row["start_seconds"] for row in second) > 2.5
    assert len({row["number"] for row in second}) == len(second)  # nothing of the load that was cut off
    assert whole.summary().complete
    assert whole.summary().sessions == 2
    assert not whole.record.collections[0].filled_again
    assert whole.writes().num_rows > 0
    assert sorted(path.name for path in (here / "out").iterdir()) == [
        "bench.json",
        "recall.parquet",
        "requests.parquet",
        "summary.json",
        "writes.parquet",
    ]


def tiny(**changes: Any) -> Scenario:
    raw: dict[str, Any] = {
        "name": "tiny",
        "stores": [{"name": "s", "url": "memory:"}],
        "corpus": {"documents": 60, "dimension": 16, "vocabulary": 500, "rows": {"mean": 4}},
        "recall": {"queries": 0},
        "loads": [
            {"warm_up_seconds": 0, "requests": 5},
            {"concurrency": 2, "warm_up_seconds": 0, "requests": 5},
        ],
    }
    return read_scenario(raw | changes, "tiny")


def stopped_after(monkeypatch: pytest.MonkeyPatch, what: str, out: Path, scenario: Scenario) -> None:
    """A run that ends with an error in this function of ``run``."""

    async def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("cut off")

    with monkeypatch.context() as patched:
        patched.setattr(running, what, fail)
        with pytest.raises(RuntimeError, match="cut off"):
            anyio.run(running.run, scenario, out)


def test_writes_that_were_measured_are_kept_though_nothing_else_was_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = tiny(stores=[{"name": "s", "url": f"qdrant:{tmp_path / 'data'}"}])
    stopped_after(monkeypatch, "disk_bytes", tmp_path / "out", scenario)
    before = BenchFolder(tmp_path / "out").writes()
    folder = anyio.run(running.run, scenario, tmp_path / "out")
    assert folder.writes() == before
    assert not folder.record.collections[0].reused


def test_a_store_that_forgot_is_filled_again_and_its_first_writing_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(monkeypatch, "compare", tmp_path / "out", tiny(recall={"queries": 1}))
    before = BenchFolder(tmp_path / "out").writes()
    folder = anyio.run(running.run, tiny(recall={"queries": 1}), tmp_path / "out")
    (collection,) = folder.record.collections
    assert collection.filled_again
    assert folder.writes() == before
    assert not folder.summary().void


def test_what_does_not_belong_together_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stopped_after(monkeypatch, "harness_seconds", out, tiny())
    with pytest.raises(InvalidInput, match="an unfinished run of another scenario"):
        anyio.run(running.run, tiny(seed=9), out)
    record = json.loads((out / "bench.json").read_text())
    record["environment"]["cores"] = 999
    (out / "bench.json").write_text(json.dumps(record))
    with pytest.raises(InvalidInput, match="started with another cores"):
        anyio.run(running.run, tiny(), out)


def test_two_benchmarks_do_not_write_into_one_folder(tmp_path: Path) -> None:
    scenario = tiny().record()
    with (
        Session(tmp_path, scenario, environment()),
        pytest.raises(InvalidInput, match="another process is writing a benchmark"),
    ):
        Session(tmp_path, scenario, environment())
    with Session(tmp_path, scenario, environment()) as again:
        assert len(again.record.sessions) == 2


def test_a_part_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    with Session(tmp_path, tiny().record(), environment()) as session:
        part = tmp_path / "parts" / "requests-00004.parquet"
        rows = session.rows(RequestRow, 4)
        rows.__enter__()
        assert not part.exists()
        rows.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert pq.read_table(part).num_rows == 0  # cut off, and readable
        assert not session.has(RequestRow, 4)
        with session.rows(RequestRow, 4):
            pass
        assert session.has(RequestRow, 4)


def test_an_interrupted_folder_of_an_earlier_version_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text('{"format": 1, "complete": false}')
    with pytest.raises(InvalidInput, match="lacks the key scenario"):
        anyio.run(running.run, tiny(), tmp_path)
