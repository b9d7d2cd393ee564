"""``m3 index`` interrupted, by Ctrl-C and by kill -9: the same command again makes it whole."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m3_connectors.blocking import connect
from m3_connectors.cli.app import main

PROGRAM = "import sys; from m3_connectors.cli.app import main; sys.exit(main())"
SECOND_BATCH_HELD = """
import anyio
from pathlib import Path
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend

upsert, calls = EdgeBackend.upsert, []

async def held(self, documents, embeddings):
    calls.append(documents)
    if len(calls) == 2:
        Path("second").touch()
        while not Path("interrupted").exists():
            await anyio.sleep(0.001)
    return await upsert(self, documents, embeddings)

EdgeBackend.upsert = held
"""
URL = "qdrant:./data"


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A corpus of 4,000 documents, in ``corpus.jsonl`` of the current directory; text by id."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    words = ["fox", "lake", "wizard", "forest", "library", "table", "city", "book"]
    texts = {f"doc-{i}": " ".join(rng.choices(words, k=rng.randint(3, 12))) for i in range(4000)}
    rows = (json.dumps({"id": id, "text": text}) for id, text in texts.items())
    Path("corpus.jsonl").write_text("\n".join(rows) + "\n")
    return texts


def start(checkpoint: Path, program: str = PROGRAM) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, "index", URL, "corpus.jsonl", "-m", str(checkpoint)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], path: str) -> None:
    deadline = time.monotonic() + 120
    while not Path(path).exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_whole(texts: dict[str, str], checkpoint: Path) -> None:
    assert main(["index", URL, "corpus.jsonl", "-m", str(checkpoint)]) == 0
    with connect(URL, create=False) as index:
        assert index.count() == len(texts)
        assert {document.id: document.text for document in index.get(list(texts)) if document} == texts


def test_kill_9_at_three_moments(texts: dict[str, str], checkpoint: Path) -> None:
    kills = 0
    for seconds in (0.02, 0.3, 0.8):
        process = start(checkpoint)
        wait_for(process, "data")
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 1
    assert_whole(texts, checkpoint)


def test_ctrl_c_leaves_a_usable_collection(texts: dict[str, str], checkpoint: Path) -> None:
    process = start(checkpoint, SECOND_BATCH_HELD + PROGRAM)
    wait_for(process, "second")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    at_once = process.stderr.readline().removesuffix("\n")  # while the batch is not stored yet
    Path("interrupted").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    (at_the_end,) = err.splitlines()
    assert re.fullmatch(
        r"Stopping after the current batch \([0-9,]+ documents stored\); press Ctrl-C again to stop at once\.",
        at_once,
    )
    assert at_the_end.endswith("documents stored. Run the same command to continue.")
    safe = int(at_the_end.split()[0].replace(",", ""))
    with connect(URL, create=False) as index:
        assert safe <= index.count() < len(texts)
    assert_whole(texts, checkpoint)
