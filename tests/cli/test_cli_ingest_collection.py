"""``m3 ingest`` with another collection as its source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stub_encoder import StubEncoder

from m3_connectors import Document, Storage, connect
from m3_connectors.cli.app import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with connect("qdrant:./old", "notes", encoder=StubEncoder(), storage=Storage("int4")) as index:
        index.add([Document(f"d{i}", f"text {i}") for i in range(20)])


def test_a_collection_is_copied_and_the_next_run_copies_what_changed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = ["ingest", "qdrant:./old#notes", "--to", "qdrant:./new", "--sync"]
    assert main(copy) == 0
    assert "20 documents copied" in capsys.readouterr().out
    with connect("qdrant:./old", "notes", encoder=StubEncoder()) as index:
        index.add([Document("d3", "new")])
        index.delete(["d4"])
    assert main([*copy, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    counts = {name: report[name] for name in ("documents", "unchanged", "replaced", "removed", "changes")}
    assert counts == {"documents": 1, "unchanged": 18, "replaced": 1, "removed": 1, "changes": []}
    assert main(["ingest", "verify", "--to", "qdrant:./new", "--hashes"]) == 0
    with connect("qdrant:./new", create=False) as index:
        assert index.schema.storage == Storage("int4")


def test_a_source_that_has_become_empty_removes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    copy = ["ingest", "qdrant:./old#notes", "--to", "qdrant:./new", "--sync"]
    assert main(copy) == 0
    with connect("qdrant:./old", "notes", encoder=StubEncoder()) as index:
        index.delete([f"d{i}" for i in range(20)])
    assert main(copy) == 1
    assert "Nothing was removed" in capsys.readouterr().err
    with connect("qdrant:./new", create=False) as index:
        assert index.count() == 20


def test_another_precision_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--to", "qdrant:./new", "--multivector-dtype", "float16"]
    assert main(["ingest", "qdrant:./old#notes", *arguments]) == 0
    assert "read from int4 and stored as float16" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["qdrant:./old#notes", "--to", "qdrant:old", "-c", "notes"], "is also the target"),
        (["qdrant:./old#notes", "docs", "--to", "qdrant:./new"], "once for it and once for the other"),
        (
            ["qdrant:./old#notes", "--to", "qdrant:./new", "--chunk", "tokens:512"],
            "no effect when the source",
        ),
        (["qdrant:./old#other", "--to", "qdrant:./new"], "no collection"),
        (["qdrant:./old#notes", "--to", "memory:"], "discarded when this command ends"),
    ],
)
def test_what_cannot_be_copied_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ingest", *arguments]) != 0
    assert says in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not Path("new").exists()
