"""Measure the disk use of a collection in milvus-lite, whose Parquet files contain the size of each column."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from m3_connectors.backends.milvus.backend import MilvusBackend
from m3_connectors.backends.milvus.layout import parts_name
from m3_connectors.backends.milvus.naming import stored_name
from m3_connectors.files import allocated_bytes, allocated_bytes_by_part, files_below

_INDEXES = (
    ("dense graph", r"/indexes/.*\.dense\.hnsw"),
    ("dense index", r"/indexes/.*\.dense\."),
    ("log", r"/wal"),
)
_VECTORS = ("dense", "sparse", "multivector")


async def disk_bytes(backend: MilvusBackend, directory: Path | None) -> dict[str, int] | None:
    """Return the bytes on disk by component; see ``Store.disk``. None for a server that was not started here."""
    where = backend._where
    root = where if isinstance(where, Path) else directory and directory / "data"
    name = stored_name(backend.collection)
    if root is None or not (root / "collections" / name).is_dir():
        return None
    files = [path for part in (name, parts_name(name)) for path in files_below(root / "collections" / part)]
    sizes = allocated_bytes_by_part((path for path in files if path.suffix != ".parquet"), _INDEXES)
    for path in files:
        if path.suffix == ".parquet":
            metadata = pq.read_metadata(path)
            rest = allocated_bytes(path)
            for i in range(metadata.num_row_groups):
                for j in range(metadata.num_columns):
                    column = metadata.row_group(i).column(j)
                    field = column.path_in_schema.partition(".")[0]
                    sizes[field if field in _VECTORS else "text and metadata"] += column.total_compressed_size
                    rest -= column.total_compressed_size
            sizes["other"] += rest
    return dict(sizes)
