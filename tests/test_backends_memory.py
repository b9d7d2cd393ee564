from __future__ import annotations

from pathlib import Path

from m3_connectors.backends.base import Backend
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.testing.conformance import BackendConformance


class TestMemory(BackendConformance):
    def make_backend(self, directory: Path, collection: str) -> Backend:
        return MemoryBackend(collection)
