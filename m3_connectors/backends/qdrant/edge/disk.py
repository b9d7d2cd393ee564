"""Measure the disk use of an Edge collection by the names of the engine's files."""

from __future__ import annotations

import re
from pathlib import Path

from m3_connectors.backends.qdrant.edge import row_file
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.files import allocated_bytes_by_part, files_below

_PARTS = (
    ("dense", r"vector_storage-dense/"),
    ("dense graph", r"vector_index-dense/"),
    ("sparse", r"vector_(storage|index)-sparse/"),
    ("multivector", rf"vector_(storage|index)-multi_\d+/|/{re.escape(row_file.NAME)}$"),
    ("text and metadata", r"payload_(storage|index)/"),
    ("log", r"/wal/"),
)


async def disk_bytes(backend: EdgeBackend, _: Path | None) -> dict[str, int]:
    """Return the bytes on disk by component; see ``Store.disk``."""
    # The engine removes rewritten files when it is flushed.
    await backend._run("flush", lambda edge: edge.flush())
    return dict(allocated_bytes_by_part(files_below(backend.directory / backend.collection), _PARTS))
