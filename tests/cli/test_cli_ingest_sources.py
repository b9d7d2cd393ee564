"""``m3 ingest`` with URLs, databases and mappings: the same ledger in each run, --sync, --dry-run, hidden passwords."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from m3_connectors.blocking import connect
from m3_connectors.cli.app import main

URL = "qdrant:./data"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def ingest(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, *arguments: str, status: int = 0
) -> dict[str, Any]:
    assert main(["ingest", *arguments, "--to", URL, "-m", str(checkpoint), "--json"]) == status
    report: dict[str, Any] = json.loads(capsys.readouterr().out) if not status else {}
    return report


def stored() -> list[str]:
    with connect(URL, create=False) as index:
        return sorted(
            document.id for document in index.get(["a.txt", "b.txt", "r1", "r2", "1", "2", "3"]) if document
        )


def test_a_remote_folder_is_synchronised(
    memory: Any, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory.pipe("/docs/a.txt", b"the fox")
    memory.pipe("/docs/b.txt", b"the lake")
    memory.pipe("/docs/c.jsonl", b'{"id": "r1", "text": "one"}\n{"id": "r2", "text": "two"}\n')
    assert ingest(capsys, checkpoint, "memory://docs")["documents"] == 4
    assert ingest(capsys, checkpoint, "memory://docs", "--sync")["unchanged"] == 4
    memory.rm("/docs/b.txt")
    memory.pipe("/docs/c.jsonl", b'{"id": "r1", "text": "one"}\n{broken\n')
    report = ingest(capsys, checkpoint, "memory://docs", "--sync")
    assert (report["removed"], report["kept"], report["unchanged"]) == (1, ["r2"], 2)
    assert stored() == ["a.txt", "r1", "r2"]
    assert Path("docs.dead.jsonl").exists()


def test_a_database_is_synchronised_whatever_folder_it_is_given_from(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect("notes.db") as db:
        db.execute("CREATE TABLE notes (id INTEGER, body TEXT, day DATE)")
        db.executemany(
            "INSERT INTO notes VALUES (?, ?, '2026-01-02')", [(1, "one"), (2, "two"), (3, "three")]
        )
    options = ["--query", "SELECT id, body, day FROM notes", "--text", "body", "--sync"]
    assert ingest(capsys, checkpoint, "sqlite:///notes.db", *options)["documents"] == 3
    with sqlite3.connect("notes.db") as db:
        db.execute("DELETE FROM notes WHERE id = 3")
        db.execute("UPDATE notes SET body = 'new' WHERE id = 1")
    db.close()
    report = ingest(capsys, checkpoint, f"sqlite:///{folder}/notes.db", *options)
    assert [report[name] for name in ("documents", "unchanged", "removed")] == [1, 1, 1]
    assert stored() == ["1", "2"]


def test_a_query_that_fails_in_the_middle_removes_nothing(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect("notes.db") as db:
        db.execute("CREATE TABLE notes (id INTEGER, text TEXT, n INTEGER)")
        db.executemany("INSERT INTO notes VALUES (?, ?, ?)", [(1, "one", 1), (2, "two", 2), (3, "three", 3)])
    # The smallest integer has no absolute value, which SQLite notices when it reaches the row.
    query = "SELECT id, text, abs(n) AS n FROM notes"
    options = ["a.txt", "sqlite:///notes.db", "--query", query, "--sync"]
    Path("a.txt").write_text("a")
    assert ingest(capsys, checkpoint, *options)["documents"] == 4
    with sqlite3.connect("notes.db") as db:
        db.execute("UPDATE notes SET n = -9223372036854775808 WHERE id = 2")
    db.close()
    report = ingest(capsys, checkpoint, *options)
    assert (report["removed"], sorted(report["kept"])) == (0, ["1", "2", "3"])
    assert stored() == ["1", "2", "3", "a.txt"]


def test_a_mapping(folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.csv").write_text("key,head,body,year\n1,Fox,in fog,2026\n")
    Path("m.toml").write_text('text = ["head", "body"]\nid = "key"\n[metadata]\npublished = "year"\n')
    assert ingest(capsys, checkpoint, "a.csv", "--mapping", "m.toml")["documents"] == 1
    with connect(URL, create=False) as index:
        (document,) = index.get(["1"])
    assert document is not None
    assert (document.text, document.metadata) == ("Fox\nin fog", {"published": 2026})
    same = ["--text", "body", "--id", "key", "--metadata", "published=year", "--metadata", "head"]
    assert ingest(capsys, checkpoint, "a.csv", *same)["replaced"] == 1
    with connect(URL, create=False) as index:
        (document,) = index.get(["1"])
    assert document is not None
    assert (document.text, document.metadata) == ("in fog", {"published": 2026, "head": "Fox"})


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["a.csv", "--mapping", "m.toml", "--id", "key"], 2, "Put the column of --id into it"),
        (["a.csv", "--query", "SELECT 1"], 2, "has no effect without a database"),
        (["memory://a.csv", "--query", "SELECT 1"], 2, "has no effect without a database"),
        (["a.csv", "--text", "body", "--metadata", "yaer"], 1, "Did you mean 'year'?"),
        (["a.csv", "--metadata", "a=x", "--metadata", "a=y"], 2, "given twice"),
        (["sqlite:///a.db"], 1, "no query is given"),
        (["postgresql://u:geheim@h/d"], 1, "postgresql://h/d is a database"),
        (["nosuch://u:geheim@h/d"], 1, "unknown scheme"),
    ],
)
def test_what_is_refused_before_the_start(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, says: str
) -> None:
    Path("a.csv").write_text("key,body,year\n1,t,2026\n")
    Path("m.toml").write_text('text = "body"\n')
    assert main(["ingest", *arguments, "--to", URL]) == status
    said = capsys.readouterr().err
    assert says in " ".join(said.replace("│", " ").split())
    assert "geheim" not in said
    assert not Path("data").exists()


class TestDryRun:
    def test_documents_are_shown_as_they_would_be_stored(
        self, folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("a.md").write_text("# Fox\nThe fox sees a lake.\n# Lake\n" + "The lake is deep. " * 40)
        Path("b.jsonl").write_text(
            '{"id": "r1", "text": "one", "n": 1}\n{broken\n{"id": "r2", "text": "two"}\n'
        )
        command = ["ingest", "a.md", "b.jsonl", "--to", URL, "-m", str(checkpoint), "--dry-run"]
        before = sorted(folder.iterdir())
        assert main([*command, "--chunk", "headings:64", "--show", "2"]) == 0
        said = capsys.readouterr()
        lines = said.out.splitlines()
        assert lines[0].startswith("a.md  (a.md; ")
        assert int(lines[0].rpartition("; ")[2].split()[0]) > 2  # chunks
        assert lines[1].startswith("  text      # Fox The fox sees a lake. # Lake The lake is deep.")
        assert lines[2:] == [
            "r1  (b.jsonl; 3 characters; 1 chunk)",
            "  text      one",
            "  metadata  n = 1",
            "  the first 2 documents, 1 skipped; nothing was stored",
        ]
        assert said.err.startswith("skipped  b.jsonl:2: not JSON")
        assert sorted(folder.iterdir()) == before  # no store, no ledger, no report

    def test_curation_is_applied(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("b.jsonl").write_text(
            '{"id": "short", "text": "one"}\n{"id": "long", "text": "one two three four"}\n'
        )
        before = sorted(folder.iterdir())
        assert main(["ingest", "b.jsonl", "--to", URL, "--dry-run", "--json", "--characters", "10:"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert [document["id"] for document in report["documents"]] == ["long"]
        assert [drop["id"] for drop in report["dropped"]] == ["short"]
        assert sorted(folder.iterdir()) == before

    def test_only_the_documents_of_the_shard_are_shown(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("b.jsonl").write_text("".join(f'{{"id": "r{i}", "text": "t"}}\n' for i in range(20)))
        shown: list[list[str]] = []
        for shard in ("1/2", "2/2"):
            command = ["ingest", "b.jsonl", "--to", URL, "--dry-run", "--json", "--show", "99"]
            assert main([*command, "--shard", shard]) == 0
            documents = json.loads(capsys.readouterr().out)["documents"]
            shown.append([document["id"] for document in documents])
        assert all(shown)
        assert sorted(shown[0] + shown[1]) == sorted(f"r{i}" for i in range(20))

    def test_json_and_no_model_without_chunking(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("b.jsonl").write_text('{"id": "r1", "text": "one", "n": 1}\n{broken\n')
        assert main(["ingest", "b.jsonl", "--to", URL, "-m", "no-such-model", "--dry-run", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["documents"] == [
            {
                "id": "r1",
                "file": "b.jsonl",
                "text": "one",
                "characters": 3,
                "metadata": {"n": 1},
                "chunks": 1,
            }
        ]
        assert report["has_more"] is False
        assert [letter["line"] for letter in report["skipped"]] == [2]


def test_a_file_that_changes_while_it_is_read_removes_nothing(
    memory: Any, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [b'{"id": "r%d", "text": "t"}\n' % i for i in (1, 2)]
    memory.pipe("/rows.jsonl", b"".join(rows))
    assert ingest(capsys, checkpoint, "memory://rows.jsonl")["documents"] == 2
    memory.pipe("/rows.jsonl", rows[0])
    from m3_connectors.readers import remote

    states = iter(range(10))
    monkeypatch.setattr(remote.RemoteFile, "_state", lambda _: {"size": next(states)})
    report = ingest(capsys, checkpoint, "memory://rows.jsonl", "--sync")
    assert (report["removed"], report["kept"], report["skipped"]) == (0, ["r2"], 1)


def test_a_column_that_is_left_out_keeps_no_document(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect("notes.db") as db:
        db.execute("CREATE TABLE notes (id TEXT, text TEXT, raw BLOB)")
        db.executemany("INSERT INTO notes VALUES (?, 'the lake', ?)", [("1", b"\xff"), ("2", b"\xfe")])
    db.close()
    query = ("sqlite:///notes.db", "--query", "SELECT * FROM notes", "--sync", "--max-errors", "0")
    assert ingest(capsys, checkpoint, *query)["documents"] == 2
    with sqlite3.connect("notes.db") as db:
        db.execute("DELETE FROM notes WHERE id = '2'")
    db.close()
    report = ingest(capsys, checkpoint, *query)
    assert (report["removed"], report["kept"], report["unchanged"]) == (1, [], 1)
    assert stored() == ["1"]
