"""``m3 ingest --shard``: two runs are one, what cannot be is refused, and reports do not replace each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from m3_connectors.blocking import connect
from m3_connectors.cli.app import main

URL = "qdrant:./data"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    rows = [json.dumps({"id": f"r{i}", "text": f"row {i}"}) for i in range(40)]
    Path("rows.jsonl").write_text("\n".join([*rows, "no record"]) + "\n")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], checkpoint: Path, shard: str, *arguments: str) -> dict[str, Any]:
    command = ["ingest", "rows.jsonl", "--to", URL, "-m", str(checkpoint), "--shard", shard, "--json"]
    assert main([*command, *arguments]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_two_shards_are_one_run_with_their_own_reports(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (run(capsys, checkpoint, shard) for shard in ("1/2", "2/2"))
    assert (first["shard"], second["shard"]) == ("1/2", "2/2")
    assert 0 < first["documents"] < 40
    assert first["documents"] + second["documents"] == 40
    assert [Path(path).name for path in first["dead_letters"]] == ["rows.1-of-2.dead.jsonl"]
    assert Path("rows.1-of-2.dead.jsonl").read_bytes() == Path("rows.2-of-2.dead.jsonl").read_bytes()
    with connect(URL, create=False) as index:
        assert index.count() == 40
    again = run(capsys, checkpoint, "1/2", "--sync")
    assert (again["unchanged"], again["removed"]) == (first["documents"], 0)
    assert main(["ingest", "rows.jsonl", "--to", URL, "-m", str(checkpoint), "--shard", "2/2"]) == 0
    assert "shard 2/2: 0 documents" in capsys.readouterr().out


@pytest.mark.parametrize("bad", ["0/4", "5/4", "a/b", "half"])
def test_bad_shards_are_refused(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "rows.jsonl", "--to", URL, "--shard", bad]) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "two runs are 1/2 and 2/2" in said
    assert not Path("data").exists()


def test_a_store_for_one_process_says_so(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, checkpoint, "1/2")
    with connect(URL, create=False):
        command = ["ingest", "rows.jsonl", "--to", URL, "-m", str(checkpoint), "--shard", "2/2"]
        assert main(command) == 1
    assert "Run the shards one after the other, or store into a server" in capsys.readouterr().err
