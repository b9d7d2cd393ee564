"""Runs that end with kill -9 at seeded moments: the next one makes the store whole, with nothing lost or doubled."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from stub_encoder import StubEncoder
from test_ingest import TOKENS, Place, text

from m3_connectors import Document

PROGRAM = Path(__file__).with_name("killed_run.py")


def killed(folder: Path, documents: list[Document], moment: int) -> bool:
    """Run in a process that kills itself at a moment; return whether it came to that."""
    file = folder / "documents.json"
    file.write_text(json.dumps([dataclasses.asdict(document) for document in documents]))
    command = [sys.executable, str(PROGRAM), str(folder), str(file), str(moment)]
    paths = os.pathsep.join([str(PROGRAM.parents[1]), *sys.path])
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    return ended.returncode != 0


def test_kill_9_at_seeded_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    place = Place(tmp_path)
    kills = 0
    documents: list[Document] = []
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
        kills += killed(tmp_path, documents, rng.randint(1, 12))
    assert kills >= 4
    place.run(documents, sync=[""])
    place.assert_holds(documents)


def test_at_every_moment_one_version_of_a_document_is_whole(tmp_path: Path) -> None:
    old = [Document("shorter", text(150)), Document("longer", text(20))]
    new = [Document("shorter", text(30, "lake")), Document("longer", text(200, "lake"))]
    states = []
    for moment in itertools.count(1):
        folder = tmp_path / str(moment)
        place = Place(folder)
        place.run(old)
        was_killed = killed(folder, new, moment)
        stored = texts_of(place)
        whole = [
            next(name for name, version in (("new", new[i]), ("old", old[i])) if chunks_of(version) <= stored)
            for i in range(2)
        ]
        left = bool(stored - chunks_of(new[0]) - chunks_of(new[1]))
        states.append((*whole, left))
        place.run(new)
        place.assert_holds(new)
        if not was_killed:
            break
    # The old one is whole until the new one is, and what is left of the old one is removed after that.
    assert list(dict.fromkeys(states)) == [("old", "old", True), ("new", "new", True), ("new", "new", False)]


def chunks_of(document: Document) -> set[str]:
    return {part.text for part in TOKENS.chunks(document, StubEncoder().token_spans)}


def texts_of(place: Place) -> set[str]:
    with place.open() as index:
        return {document.text for document in index.scan()}
