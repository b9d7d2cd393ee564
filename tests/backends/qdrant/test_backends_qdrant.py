from __future__ import annotations

from pathlib import Path

from m3_connectors.backends.base import Backend
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.testing.conformance import BackendConformance


class TestEdge(BackendConformance):
    def make_backend(self, directory: Path, collection: str) -> Backend:
        return EdgeBackend(directory, collection)
