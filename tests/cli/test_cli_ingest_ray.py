"""``m3 ingest --ray``: the collection, the report and the dead letters are those of one process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from m3_connectors import Document
from m3_connectors.blocking import connect
from m3_connectors.cli.app import main

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='Ray is not installed: pip install "m3-connectors[ray]"'
)
COUNTS = (
    "read",
    "documents",
    "unchanged",
    "removed",
    "skipped",
    "text_columns",
    "kept",
    "duplicates",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    docs = tmp_path / "docs"
    (docs / "deep").mkdir(parents=True)
    (docs / "a.md").write_text("# Fox\nThe fox sees a lake.\n# Lake\nThe lake is deep.\n")
    (docs / "deep" / "b.txt").write_text("the wizard reads a book " * 40)
    (docs / "c.jsonl").write_text("".join(f'{{"id": "r{i}", "text": "row {i}"}}\n' for i in range(50)))
    (docs / "d.jsonl").write_text('{"id": "r7", "text": "a later row 7"}\nno record\n{"id": "x"}\n')
    (docs / "e.csv").write_text("id,text,n\ne1,one,1\ne2,two,2\n")
    (docs / "f.csv").write_text("id,text,n\nf1,one,many\n")  # so n is text in both tables
    return docs


def run(checkpoint: Path, collection: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "m3_connectors", "ingest", "docs", "--to", "qdrant:./data", "--json"]
    command += ["-c", collection, "-m", str(checkpoint), "--chunk", "headings:64", *arguments]
    paths = os.pathsep.join(sys.path)
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": paths}
    )
    assert ended.returncode == 0, ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout)
    return {name: report[name] for name in COUNTS}


def stored(collection: str) -> dict[str, Document]:
    with connect("qdrant:./data", collection, create=False) as index:
        ids = list(index.scan_ids())
        return {document.id: document for document in index.get(ids) if document}


@needs_ray
def test_the_collection_and_the_report_are_those_of_one_process(folder: Path, checkpoint: Path) -> None:
    on_ray = ("--ray", "local", "--ray-workers", "2", "--sync")
    assert run(checkpoint, "ray", *on_ray) == run(checkpoint, "one", "--sync")
    assert stored("ray") == stored("one")
    lines = [json.loads(line) for line in Path("docs.dead.jsonl").read_text().splitlines()]
    assert {(line["file"], line["line"]) for line in lines} >= {("docs/d.jsonl", 2), ("docs/d.jsonl", 3)}
    (folder / "deep" / "b.txt").unlink()
    (folder / "c.jsonl").write_text('{"id": "r0", "text": "row 0"}\n{"id": "r1", "text": "new"}\n')
    assert run(checkpoint, "ray", *on_ray) == run(checkpoint, "one", "--sync")
    assert stored("ray") == stored("one")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-", "--ray", "local"], "only this process can read"),
        (["docs", "--ray-workers", "2"], "Add --ray local"),
        (["docs", "--ray-writers", "2"], "Add --ray local"),
        (["docs", "--ray", "local", "--ray-workers", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ingest", *arguments, "--to", "qdrant:./data"]) == 2
    assert says in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_store_of_one_process_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "docs", "--to", "memory:", "--ray", "local"]) == 2
    assert "in this process only" in " ".join(capsys.readouterr().err.replace("│", " ").split())
