"""One run of a shard, started with others at the same moment: ``sharded_run.py`` and one JSON object on stdin.

It opens the collection and the ledger, which may not exist yet, when it receives a second line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from stub_encoder import STORAGE, StubEncoder

from m3_connectors import Document, connect
from m3_connectors.ingestion import Chunking, Ledger, Origin, Shard, ingest

asked = json.loads(sys.stdin.readline())
documents = [Document(**row) for row in json.loads(Path(asked["documents"]).read_text())]
encoder = StubEncoder()
print("ready", flush=True)
sys.stdin.readline()
with (
    Ledger(Path(asked["ledger"])) as ledger,
    connect(asked["url"], asked["collection"], encoder=encoder, storage=STORAGE, **asked["options"]) as index,
):
    report = ingest(
        documents,
        index,
        ledger=ledger,
        chunking=Chunking("tokens", 16),
        shard=Shard.parse(asked["shard"]),
        origin=lambda: Origin("source", "file"),
        sync=["source"],
    )
print(
    json.dumps(
        {
            "read": report.read,
            "unchanged": report.unchanged,
            "documents": report.documents,
            "removed": report.removed,
            "missing": report.missing and report.missing.missing,
            "texts": encoder.texts,
        }
    )
)
