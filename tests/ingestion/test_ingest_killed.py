"""Runs that end with kill -9 at seeded moments: the next one makes the store whole, with nothing lost or doubled."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from test_ingest import Place, text

from m3_connectors import Document

PROGRAM = Path(__file__).with_name("killed_run.py")


def test_kill_9_at_seeded_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    place = Place(tmp_path)
    kills = 0
    documents: list[Document] = []
    paths = os.pathsep.join([str(PROGRAM.parents[1]), *sys.path])
    for _ in range(8):
        # Each time some documents are new, longer, shorter, or gone.
        documents = [
            dataclasses.replace(d, text=text(rng.randint(1, 200), rng.choice(["fox", "lake"])))
            if rng.random() < 0.3
            else d
            for d in documents
            if rng.random() > 0.1
        ]
        ids = {document.id for document in documents}
        new = [f"d{i}" for i in rng.sample(range(500), 60) if f"d{i}" not in ids]
        documents += [Document(id, text(rng.randint(1, 120))) for id in new]
        file = tmp_path / "documents.json"
        file.write_text(json.dumps([dataclasses.asdict(document) for document in documents]))
        command = [sys.executable, str(PROGRAM), str(tmp_path), str(file), str(rng.randint(1, 12))]
        ended = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
        )
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        kills += ended.returncode != 0
    assert kills >= 4
    place.run(documents, sync=[""])
    place.assert_holds(documents)
