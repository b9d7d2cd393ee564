"""``m3 ingest`` when documents are refused, when the store is down, and when Ctrl-C is pressed twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.blocking import connect
from m3_connectors.cli.app import main
from m3_connectors.documents import Document
from m3_connectors.errors import Rejected, Unavailable
from m3_connectors.ingestion import failures

URL = "qdrant:./data"
WHERE = {"backend": "qdrant", "operation": "upsert"}
HELD = """
import anyio, sys
from pathlib import Path
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.cli.app import main

upsert, calls = EdgeBackend.upsert, []

async def held(self, documents, embeddings):
    calls.append(documents)
    if len(calls) == 2:
        Path("held").touch()
        await anyio.sleep_forever()
    return await upsert(self, documents, embeddings)

EdgeBackend.upsert = held
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    """The current directory has ``docs/rows.jsonl`` with 6 rows, one of them "bad"; the ledger is beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("M3_MODEL", str(checkpoint))
    monkeypatch.setattr(failures, "_FIRST_PAUSE_SECONDS", 0.001)
    rows = [{"id": f"r{i}", "text": f"{'bad' if i == 3 else 'good'} row {i}", "n": i} for i in range(6)]
    Path("docs").mkdir()
    Path("docs/rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def m3(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def refusing(
    monkeypatch: pytest.MonkeyPatch, refuse: Callable[[Sequence[Document]], Exception | None]
) -> None:
    upsert = EdgeBackend._upsert

    async def picky(self: EdgeBackend, documents: Sequence[Document], embeddings: Any) -> None:
        if (error := refuse(documents)) is not None:
            raise error
        await upsert(self, documents, embeddings)

    monkeypatch.setattr(EdgeBackend, "_upsert", picky)


def bad(documents: Sequence[Document]) -> Exception | None:
    return Rejected("refused", **WHERE) if any("bad" in d.text for d in documents) else None


def letters() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("docs.dead.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("chunk", ["none", "tokens:16:0"])
def test_a_dead_letter_has_the_document_and_retry_stores_it(
    m3: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, chunk: str
) -> None:
    with Path("docs/rows.jsonl").open("a") as file:
        file.write("\nno record\n")
    command = ("ingest", "docs", "--to", URL, "--chunk", chunk, "--json")
    with monkeypatch.context() as patch:
        refusing(patch, bad)
        code, out, _ = m3(*command)
        assert code == 0
        assert (json.loads(out)["documents"], json.loads(out)["skipped"]) == (5, 2)
        (unread, refused) = sorted(letters(), key=lambda letter: letter["stage"])
        assert (unread["stage"], unread["line"]) == ("read", 7)
        assert (refused["stage"], refused["id"], refused["text"]) == ("write", "r3", "bad row 3")
        assert (refused["file"], refused["metadata"]) == ("docs/rows.jsonl", {"n": 3})
        assert "refused" in refused["reason"]
        code, _, err = m3("ingest", "retry", "docs.dead.jsonl", "--to", URL)
        assert code == 1
        assert "nothing was stored" in err
        assert len(letters()) == 2
    code, out, err = m3("ingest", "retry", "docs.dead.jsonl", "--to", URL, "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["documents"], report["skipped"], report["dead_letters"]) == (1, 1, ["docs.dead.jsonl"])
    assert "1 record in docs.dead.jsonl could not be read" in err
    assert letters() == [unread]
    code, out, _ = m3(*command)
    assert (json.loads(out)["documents"], json.loads(out)["unchanged"]) == (0, 6)
    with connect(URL, create=False) as index:
        assert index.count() == 6
    code, _, err = m3("ingest", "retry", "docs.dead.jsonl", "--to", URL)
    assert code == 1
    assert "has no document" in err


def test_a_retried_document_is_still_of_its_source(
    m3: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refusing(patch, bad)
        assert m3("ingest", "docs", "--to", URL)[0] == 0
    assert m3("ingest", "retry", "docs.dead.jsonl", "--to", URL)[0] == 0
    assert not Path("docs.dead.jsonl").exists()
    Path("docs/rows.jsonl").write_text('{"id": "r0", "text": "good row 0", "n": 0}\n')
    _, out, _ = m3("ingest", "docs", "--to", URL, "--sync", "--json")
    assert json.loads(out)["removed"] == 5
    with connect(URL, create=False) as index:
        assert index.count() == 1


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"file": "a", "lines": 3}',
        '{"id": "a", "text": "x"}',
        '{"file": "a", "line": 1, "reason": "r", "id": "a", "text": "x", "metadata": [1]}',
    ],
)
def test_what_is_no_dead_letter_cannot_be_retried(m3: Callable[..., tuple[int, str, str]], line: str) -> None:
    Path("own.jsonl").write_text(line + "\n")
    code, _, err = m3("ingest", "retry", "own.jsonl", "--to", URL)
    assert code == 1
    assert "own.jsonl:1 is not a dead letter" in err
    assert Path("own.jsonl").read_text() == line + "\n"


def test_errors_of_all_stages_count(
    m3: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("docs/rows.jsonl").open("a") as file:
        file.write("\nno record\n")
    refusing(monkeypatch, bad)
    code, _, err = m3("ingest", "docs", "--to", URL, "--max-errors", "1")
    assert code == 1
    assert "more than 1 record cannot be stored, the last is docs/rows.jsonl: document 'r3'" in err
    assert m3("index", URL, "docs", "--max-errors", "2")[0] == 0


def test_a_store_that_is_down_is_waited_for_and_the_wait_is_shown(
    m3: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([Unavailable("no connection", **WHERE)] * 3)
    refusing(monkeypatch, lambda _: next(answers, None))
    code, out, err = m3("index", URL, "docs")
    assert code == 0
    assert "waiting for the store" in out
    first, last = err.splitlines()
    assert first.startswith("waiting for the store, 0.0 s of at most 5 min 0 s: qdrant upsert: no connection")
    assert last.startswith("the store answers again after 0.")
    refusing(monkeypatch, lambda _: Unavailable("no connection", **WHERE))
    Path("docs/rows.jsonl").write_text('{"id": "new", "text": "new"}\n')
    code, _, err = m3("index", URL, "docs", "--wait", "0")
    assert code == 1
    assert err.splitlines()[0] == "Unavailable: qdrant upsert: no connection"


def test_a_second_ctrl_c_stops_at_once_and_the_next_run_goes_on(
    m3: Callable[..., tuple[int, str, str]],
) -> None:
    rows = [{"id": f"r{i}", "text": f"row {i}"} for i in range(3000)]
    Path("docs/rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, "-c", HELD, "ingest", "docs", "--to", URL]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not Path("held").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline().endswith("press Ctrl-C again to stop at once.\n")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    _, out, _ = m3("ingest", "docs", "--to", URL, "--json")
    report = json.loads(out)
    assert (report["documents"] + report["unchanged"], report["count"]) == (3000, 3000)
