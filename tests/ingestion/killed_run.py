"""One run that kills itself with kill -9 at the n-th moment: ``killed_run.py FOLDER DOCUMENTS MOMENT``.

Moments are before and after each write of the store and each change of the ledger.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from stub_encoder import STORAGE, StubEncoder

from m3_connectors import Document, connect
from m3_connectors.backends.base import Backend
from m3_connectors.ingestion import Chunking, Ledger, ingest

_moments = itertools.count(1)
_last = int(sys.argv[3])


def moment() -> None:
    if next(_moments) == _last:
        os.kill(os.getpid(), signal.SIGKILL)


def wrap(kind: type, name: str) -> None:
    original = getattr(kind, name)

    def changed(self: Any, versions: Any) -> None:
        moment()
        original(self, versions)
        moment()

    async def written(self: Any, *given: Any) -> Any:
        moment()
        answer = await original(self, *given)
        moment()
        return answer

    setattr(kind, name, written if kind is Backend else changed)


for kind, name in ((Ledger, "begin"), (Ledger, "acknowledge"), (Backend, "upsert"), (Backend, "delete")):
    wrap(kind, name)

folder = Path(sys.argv[1])
documents = [Document(**row) for row in json.loads(Path(sys.argv[2]).read_text())]
encoder = StubEncoder()
with (
    connect(f"qdrant:{folder / 'data'}", encoder=encoder, storage=STORAGE) as index,
    Ledger(folder / "ledger.sqlite") as ledger,
):
    ingest(documents, index, ledger=ledger, chunking=Chunking("tokens", 16), sync=[""])
