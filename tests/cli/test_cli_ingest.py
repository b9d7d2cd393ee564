"""``m3 ingest`` from the command line: again, changed, gone, deleted behind its back, interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from m3_connectors.blocking import connect
from m3_connectors.cli.app import main
from m3_connectors.documents import Document

URL = "qdrant:./data"
PROGRAM = "import sys; from m3_connectors.cli.app import main; sys.exit(main())"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``docs`` with two pages and a table, in the current directory; the ledger is beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text("# Fox\nThe fox sees a lake.\n# Lake\nThe lake is deep.\n")
    (docs / "b.txt").write_text("the wizard reads a book " * 40)
    (docs / "c.jsonl").write_text("".join(f'{{"id": "r{i}", "text": "row {i}"}}\n' for i in range(5)))
    return docs


def ingest(capsys: pytest.CaptureFixture[str], checkpoint: Path, *arguments: str) -> dict[str, Any]:
    command = ["ingest", "docs", "--to", URL, "-m", str(checkpoint), "--chunk", "headings:64", "--json"]
    assert main([*command, *arguments]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_again_changed_and_gone(folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = ingest(capsys, checkpoint)
    assert (first["read"], first["documents"], first["unchanged"]) == (7, 7, 0)
    with connect(URL, create=False) as index:
        (part,) = index.get(["a.md#1"])
        assert index.count() == first["chunks"]
        assert index.count({"chunk.parent": "a.md"}) == 2
    assert part is not None
    assert part.text == "# Lake\nThe lake is deep.\n"
    assert part.metadata["chunk"]["titles"] == ["Lake"]
    assert ingest(capsys, checkpoint)["unchanged"] == 7
    (folder / "a.md").unlink()
    (folder / "c.jsonl").write_text('{"id": "r0", "text": "row 0"}\n{"id": "r1", "text": "new"}\n')
    report = ingest(capsys, checkpoint, "--sync")
    assert [report[name] for name in ("documents", "replaced", "removed", "unchanged")] == [1, 1, 4, 2]
    with connect(URL, create=False) as index:
        assert index.count({"chunk.parent": "a.md"}) == 0


def test_sync_keeps_what_could_not_be_read_and_says_so(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(capsys, checkpoint)
    (folder / "c.jsonl").write_text('{"id": "r0", "text": "row 0"}\n{"id": "r1", "te\n')
    (folder / "b.txt").write_bytes(b"\xff\xfe\xff")
    report = ingest(capsys, checkpoint, "--sync")
    assert (report["removed"], report["kept"]) == (0, ["b.txt", "r1", "r2", "r3", "r4"])
    with connect(URL, create=False) as index:
        assert index.count({"chunk.parent": "r4"}) == 1


def test_an_empty_folder_removes_nothing(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ingest(capsys, checkpoint)["chunks"]
    for file in folder.iterdir():
        file.unlink()
    assert main(["ingest", "docs", "--to", URL, "--sync"]) == 1
    assert "Nothing was stored or removed" in capsys.readouterr().err
    with connect(URL, create=False) as index:
        assert index.count() == before


def test_an_empty_folder_among_others_keeps_its_documents(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder.parent / "other"
    other.mkdir()
    (other / "x.txt").write_text("the lake")
    both = ["ingest", "docs", "other", "--to", URL, "-m", str(checkpoint), "--sync", "--json"]
    assert main(both) == 0
    capsys.readouterr()
    (other / "x.txt").unlink()
    (folder / "b.txt").unlink()
    assert main(both) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["removed"] == 1
    assert [id.rpartition("/")[2] for id in report["kept"]] == ["x.txt"]


def test_verify_names_what_is_missing_and_the_next_run_stores_it(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ingest", "verify", "--to", URL]) == 1
    assert "no ledger" in capsys.readouterr().err
    ingest(capsys, checkpoint)
    assert main(["ingest", "verify", "--to", URL]) == 0
    assert "7 documents, none missing" in capsys.readouterr().out
    with connect(URL, create=False) as index:
        index.delete(["r3#0", "a.md#0"])
    assert main(["ingest", "verify", "--to", URL]) == 1
    said = capsys.readouterr()
    assert "2 of 7 documents missing in the store" in said.out
    *named, marked = said.err.splitlines()
    assert named == ["  missing: 'a.md'", "  missing: 'r3'"]
    assert "marked in the ledger: the next m3 ingest" in marked
    report = ingest(capsys, checkpoint)
    assert (report["documents"], report["unchanged"]) == (2, 5)
    with connect(URL, create=False) as index:
        index.drop()
    assert main(["ingest", "verify", "--to", URL, "--hashes"]) == 1
    said = capsys.readouterr()
    assert "there is no collection" in said.err
    assert said.err.count("  missing: ") == 7
    assert "7 of 7 documents missing in the store" in said.out
    assert ingest(capsys, checkpoint)["documents"] == 7


def test_verify_with_hashes_names_what_was_changed_behind_its_back(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(capsys, checkpoint)
    assert main(["ingest", "verify", "--to", URL, "--hashes"]) == 0
    assert "7 documents, none missing · none changed" in capsys.readouterr().out
    with connect(URL, create=False) as index:
        ((document,), rows) = next(index.scan_embeddings({"chunk.parent": "r3"}))
        index.add([Document(document.id, document.text + "!", document.metadata)], embeddings=rows)
    assert main(["ingest", "verify", "--to", URL]) == 0
    capsys.readouterr()
    assert main(["ingest", "verify", "--to", URL, "--hashes"]) == 1
    said = capsys.readouterr()
    assert "1 changed" in said.out
    assert said.err.splitlines()[0] == "  changed: 'r3'"
    report = ingest(capsys, checkpoint)
    assert (report["documents"], report["unchanged"]) == (1, 6)
    assert main(["ingest", "verify", "--to", URL, "--hashes"]) == 0


def test_too_many_errors_end_the_run(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "d.jsonl").write_text("no record\n" * 3)
    command = ["ingest", "docs", "--to", URL, "-m", str(checkpoint), "--max-errors"]
    assert main([*command, "2"]) == 1
    assert "more than 2 records cannot be stored" in capsys.readouterr().err
    assert main([*command, "3"]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-", "--sync"], "a stream cannot say"),
        (["docs", "--chunk", "words"], "tokens:512:64"),
    ],
)
def test_impossible_options(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", *arguments, "--to", URL]) == 2
    assert says in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_store_that_does_not_last_is_named_and_has_no_ledger(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["ingest", "docs", "--to", "memory:"], ["index", "memory:", "docs"]):
        assert main([*command, "-m", str(checkpoint)]) == 0
        said = capsys.readouterr()
        assert "is discarded" in said.err
        assert said.out.startswith("  7 documents · ")
    assert not list(folder.parent.glob("state/**/*.sqlite"))


def test_ctrl_c_stores_what_is_under_way_and_the_next_run_continues(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fifo = folder.parent / "rows"
    os.mkfifo(fifo)
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "ingest",
        "rows",
        "--to",
        URL,
        "-m",
        str(checkpoint),
        "--id",
        "id",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    rows = [json.dumps({"id": f"r{i}", "text": f"row {i}" + " fox" * 50}) + "\n" for i in range(2000)]
    # More than a pipe holds: when it is written, the run is reading. It may end before it has read the rest.
    with contextlib.suppress(BrokenPipeError), fifo.open("w") as pipe:
        pipe.writelines(rows[:1000])
        pipe.flush()
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        at_once = process.stderr.readline()
        pipe.writelines(rows[1000:])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, at_once + err
    assert out == ""
    assert at_once.startswith("Stopping after the current batch (")
    assert at_once.endswith("stored); press Ctrl-C again to stop at once.\n")
    assert err.splitlines()[-1].endswith("documents stored. Run the same command to continue.")
    Path("rows.jsonl").write_text("".join(rows))
    assert main(["ingest", "rows.jsonl", "--to", URL, "-m", str(checkpoint), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["documents"] + report["unchanged"] == 2000
    with connect(URL, create=False) as index:
        assert index.count() == 2000
