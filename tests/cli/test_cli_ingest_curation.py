"""``m3 ingest`` with curation: what is dropped, where it is named, and what becomes of what was stored before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from m3_connectors.blocking import connect
from m3_connectors.cli.app import main

URL = "qdrant:./data"
LONG = "The wizard reads an old book about rivers, lakes and mountains while the fox sleeps beside the warm fire. "
ROWS = {
    "long": LONG * 3,
    "same": "  " + LONG * 3,
    "near": LONG * 2 + LONG.replace("warm", "cold"),
    "other": "A ship sails over the sea and the captain looks for the island with the tall white tower.",
    "short": "too short",
    "german": "Der Zauberer liest ein altes Buch über Flüsse, Seen und Berge, während der Fuchs am Feuer schläft.",
}


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "rows.jsonl"
    write(path, ROWS)
    return path


def write(path: Path, texts: dict[str, str]) -> None:
    path.write_text("".join(json.dumps({"id": id, "text": text}) + "\n" for id, text in texts.items()))


def ingest(capsys: pytest.CaptureFixture[str], checkpoint: Path, *arguments: str) -> dict[str, Any]:
    assert main(["ingest", "rows.jsonl", "--to", URL, "-m", str(checkpoint), "--json", *arguments]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def dropped() -> dict[str, dict[str, Any]]:
    letters = map(json.loads, Path("rows.dropped.jsonl").read_text().splitlines())
    return {letter["id"]: letter for letter in letters}


def stored() -> list[str]:
    with connect(URL, create=False) as index:
        return sorted(document.id for document in index.get(list(ROWS)) if document)


ALL = ("--drop-duplicates", "near:0.7", "--characters", "20:", "--languages", "en")


def test_each_dropped_document_is_counted_and_named(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ingest(capsys, checkpoint, *ALL)
    assert stored() == ["long", "other"]
    assert report["read"] == report["documents"] == 2
    assert report["curation"] == {
        "read": 6,
        "kept": 2,
        "dropped": {"exact duplicates": 1, "near duplicates": 1, "characters": 1, "language": 1},
        "dropped_known": 0,
        "dropped_documents": [str(Path.cwd() / "rows.dropped.jsonl")],
        "languages": {"en": 2},
    }
    letters = dropped()
    assert {id: (letter["stage"], letter.get("duplicate_of")) for id, letter in letters.items()} == {
        "same": ("exact duplicates", "long"),
        "near": ("near duplicates", "long"),
        "short": ("characters", None),
        "german": ("language", None),
    }
    assert letters["short"] == {
        "id": "short",
        "file": "rows.jsonl",
        "stage": "characters",
        "reason": "has 9 characters, fewer than 20",
        "value": 9,
        "known": False,
    }
    with connect(URL, create=False) as index:
        (document,) = index.get(["other"])
    assert document is not None
    assert document.metadata["language"] == "en"
    assert document.metadata["language_confidence"] > 0.5


def test_again_nothing_changes(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ingest(capsys, checkpoint, *ALL)
    before = dropped()
    report = ingest(capsys, checkpoint, *ALL, "--sync")
    assert (report["documents"], report["unchanged"], report["removed"]) == (0, 2, 0)
    assert dropped() == before
    assert stored() == ["long", "other"]


def test_what_was_stored_and_is_dropped_now_is_removed_with_sync_and_named(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ingest(capsys, checkpoint)["curation"] is None
    assert stored() == sorted(ROWS)
    assert not Path("rows.dropped.jsonl").exists()
    command = ["ingest", "rows.jsonl", "--to", URL, "-m", str(checkpoint), "--drop-duplicates", "exact"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "1 dropped: 1 exact duplicates (see rows.dropped.jsonl)" in said.out
    assert "1 dropped document may be in the collection from an earlier run; --sync removes" in said.err
    assert stored() == sorted(ROWS)
    report = ingest(capsys, checkpoint, "--drop-duplicates", "exact", "--sync")
    assert (report["removed"], report["curation"]["dropped_known"]) == (1, 1)
    assert dropped()["same"]["known"] is True
    assert "same" not in stored()


def test_the_duplicate_comes_back_when_the_original_goes(
    rows: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(capsys, checkpoint, "--drop-duplicates", "exact", "--sync")
    assert "same" not in stored()
    write(rows, {id: text for id, text in ROWS.items() if id != "long"})
    report = ingest(capsys, checkpoint, "--drop-duplicates", "exact", "--sync")
    assert (report["documents"], report["removed"]) == (1, 1)
    assert "same" in stored()
    assert "long" not in stored()
    assert not Path("rows.dropped.jsonl").exists()


def test_if_everything_is_dropped_nothing_is_removed(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(capsys, checkpoint)
    assert main(["ingest", "rows.jsonl", "--to", URL, "--words", "1000:", "--sync"]) == 1
    said = capsys.readouterr().err
    assert "nothing was stored or removed: curation dropped all 6 documents (6 words)" in said
    assert "rows.dropped.jsonl" in said
    assert stored() == sorted(ROWS)


def test_the_report_of_dropped_documents_is_not_read_as_a_source(
    rows: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(capsys, checkpoint, "--characters", "20:")
    assert main(["ingest", ".", "--to", "qdrant:../data2", "-m", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["read"] == len(ROWS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--drop-duplicates", "all"], "Give exact, near or near:0.9"),
        (["--drop-duplicates", "near:2"], "out of range"),
        (["--characters", "50"], "MIN:MAX"),
        (["--words", "9:3"], "contains no count"),
        (["--min-letters", "2"], "a number from 0 to 1"),
        (["--max-broken", "x"], "a number from 0 to 1"),
    ],
)
def test_impossible_options(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "rows.jsonl", "--to", URL, *arguments]) == 2
    assert says in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_an_unknown_language_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "rows.jsonl", "--to", URL, "--languages", "en,english"]) == 1
    assert "the language 'english' cannot be detected" in capsys.readouterr().err
    assert not Path("data").exists()


def test_a_dry_run_shows_what_would_be_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "rows.jsonl", "--to", URL, "--dry-run", "--json", *ALL]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [document["id"] for document in shown["documents"]] == ["long", "other"]
    assert shown["documents"][0]["metadata"]["language"] == "en"
    assert [drop["id"] for drop in shown["dropped"]] == ["same", "near", "short", "german"]
    assert main(["ingest", "rows.jsonl", "--to", URL, "--dry-run", *ALL]) == 0
    said = capsys.readouterr()
    assert "2 documents, 4 dropped; nothing was stored" in said.out
    assert "dropped  'short' has 9 characters, fewer than 20" in said.err
    assert not Path("rows.dropped.jsonl").exists()
