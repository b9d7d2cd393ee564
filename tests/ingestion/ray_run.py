"""One ingestion on Ray in a process of its own: ``ray_run.py REQUEST.json``; it prints its report as JSON.

The processes of Ray import this file too, to read parts and to create encoders.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stub_encoder import STORAGE, StubEncoder

from m3_connectors import Document, M3Embeddings
from m3_connectors.embeddings import COMPONENTS, Component
from m3_connectors.errors import ModelFormat
from m3_connectors.ingestion import Chunking, IngestProgress, Origin, Shard, ingest_on_ray


class Noting(StubEncoder):
    """Notes the texts that it encodes in a file of its process."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._file = Path(folder) / f"encoded-{os.getpid()}.jsonl"

    def encode(self, texts: Sequence[str], *, components: Sequence[Component] = COMPONENTS) -> M3Embeddings:
        with self._file.open("a") as file:
            file.writelines(json.dumps(text) + "\n" for text in texts)
        if any("poison" in text for text in texts):
            raise ValueError("no vector")
        if any("damaged" in text for text in texts):
            raise ModelFormat("the weights are damaged.\n  Use others.")
        return super().encode(texts, components=components)


class MakeNoting:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __call__(self) -> Noting:
        return Noting(self._folder)


def read(part: str) -> Iterator[object]:
    """Yield the rows of a JSON Lines file; a line that is no row is skipped and named."""
    for number, line in enumerate(Path(part).read_text().splitlines(), 1):
        try:
            yield Document(**json.loads(line))
        except (TypeError, ValueError):
            yield number


def kill(stage: str) -> None:
    """Kill one process of ours that runs a stage."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            if title.startswith(b"ray::") and stage.encode() in title and is_ours(folder):
                os.kill(int(folder.name), signal.SIGKILL)
                return
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise AssertionError(f"no process runs {stage}")


def is_ours(folder: Path) -> bool:
    while folder.name != "1":
        parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        if parent == str(os.getpid()):
            return True
        folder = folder.with_name(parent)
        if parent == "0":
            return False
    return False


def main() -> None:
    asked: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    skipped: list[tuple[str, int]] = []
    killed: list[str] = []
    refused: list[tuple[str, str, str, str]] = []

    def progress(now: IngestProgress) -> None:
        if asked.get("kill") and not killed:
            killed.append(asked["kill"])
            kill(asked["kill"])

    report = ingest_on_ray(
        asked["parts"],
        read,
        asked["url"],
        asked["collection"],
        encoder=MakeNoting(asked["folder"]),
        ledger=Path(asked["ledger"]),
        address="local",
        encoders=2,
        storage=STORAGE,
        options=asked["options"],
        chunking=Chunking("tokens", 16),
        origin=lambda part: Origin("source", part),
        sync=["source"],
        shard=Shard.parse(asked.get("shard", "1/1")),
        progress=progress,
        on_refused=lambda one: refused.append((one.document.id, one.stage, one.reason, one.origin.file)),
        on_skipped=lambda part, record: skipped.append((part, record)),
    )
    counts = {
        name: getattr(report, name)
        for name in ("read", "unchanged", "documents", "chunks", "replaced", "removed", "refused")
    }
    repeated = list(report.repeated)
    print(
        json.dumps(
            {**counts, "repeated": repeated, "skipped": skipped, "refusals": refused, "killed": killed}
        )
    )


if __name__ == "__main__":
    main()
