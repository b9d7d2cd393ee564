"""Measure the disk use of a collection by component, as far as its store reports it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq

from m3_connectors.backends.base import Backend
from m3_connectors.files import allocated_bytes

_EDGE = (
    ("dense", r"vector_storage-dense/"),
    ("dense graph", r"vector_index-dense/"),
    ("sparse", r"vector_(storage|index)-sparse/"),
    ("multivector", r"vector_(storage|index)-multi_\d+/"),
    ("text and metadata", r"payload_(storage|index)/"),
    ("log", r"/wal/"),
)
_MILVUS_INDEXES = (
    ("dense graph", r"/indexes/.*\.dense\.hnsw"),
    ("dense index", r"/indexes/.*\.dense\."),
    ("log", r"/wal"),
)
_MILVUS_COLUMNS = {"dense": "dense", "sparse": "sparse", "multivector": "multivector"}
_ELASTICSEARCH_FIELDS = {
    "dense": "dense",
    "sparse": "sparse",
    "sparse_blob": "sparse",
    "multivector_blob": "multivector",
    "multivector": "multivector",
    "_source": "text and metadata",
    "_recovery_source": "second copy until merged",
}
_OTHER = "other"


async def disk_bytes(backend: Backend, directory: Path | None) -> dict[str, int] | None:
    """Return the bytes on disk by component, or None if the store does not report them.

    Args:
        backend: The open collection.
        directory: The data directory of a server that was started here.
    """
    if backend.name == "qdrant" and hasattr(backend, "directory"):
        # The engine removes rewritten files when it is flushed.
        await backend._run("flush", lambda edge: edge.flush())  # type: ignore[attr-defined]
        return _of_files(_files(Path(backend.directory) / backend.collection), _EDGE)
    if backend.name == "milvus":
        where = getattr(backend, "_where", None)
        root = where if isinstance(where, Path) else directory and directory / "data"
        return None if root is None else _of_milvus(backend, root)
    if backend.name == "elasticsearch":
        return await _of_elasticsearch(backend)
    return None


def _of_files(files: Iterable[Path], parts: tuple[tuple[str, str], ...]) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for path in files:
        name = next((part for part, pattern in parts if re.search(pattern, path.as_posix())), _OTHER)
        sizes[name] += allocated_bytes(path)
    return dict(sizes)


def _of_milvus(backend: Backend, root: Path) -> dict[str, int] | None:
    """Return the sizes of milvus-lite's Parquet files, whose metadata contains the size of each column."""
    from m3_connectors.backends.milvus.layout import parts_name
    from m3_connectors.backends.milvus.naming import stored_name

    name = stored_name(backend.collection)
    places = [root / "collections" / part for part in (name, parts_name(name))]
    if not places[0].is_dir():
        return None
    files = [path for place in places for path in _files(place)]
    sizes = Counter(_of_files([path for path in files if path.suffix != ".parquet"], _MILVUS_INDEXES))
    for path in files:
        if path.suffix == ".parquet":
            metadata = pq.read_metadata(path)
            rest = allocated_bytes(path)
            for i in range(metadata.num_row_groups):
                for j in range(metadata.num_columns):
                    column = metadata.row_group(i).column(j)
                    field = column.path_in_schema.partition(".")[0]
                    sizes[_MILVUS_COLUMNS.get(field, "text and metadata")] += column.total_compressed_size
                    rest -= column.total_compressed_size
            sizes[_OTHER] += rest
    return dict(sizes)


async def _of_elasticsearch(backend: Backend) -> dict[str, int]:
    from m3_connectors.backends.elasticsearch.backend import ElasticsearchBackend
    from m3_connectors.backends.elasticsearch.connection import segment

    assert isinstance(backend, ElasticsearchBackend)
    answer = await backend._connection.request(
        "describe",
        "POST",
        f"/{segment(backend._alias)}/_disk_usage",
        None,
        run_expensive_tasks="true",
        flush="true",
    )
    index = next(value for name, value in answer.items() if name != "_shards")
    sizes: Counter[str] = Counter()
    for field, usage in index["fields"].items():
        # Sparse tokens are features of one field; blobs and vectors are separate fields.
        sizes[_ELASTICSEARCH_FIELDS.get(field.partition(".")[0], _OTHER)] += usage["total_in_bytes"]
    sizes[_OTHER] += max(0, index["store_size_in_bytes"] - index["all_fields"]["total_in_bytes"])
    return dict(sizes)


def _files(root: Path) -> list[Path]:
    # os.walk skips folders that the store deletes in the meantime.
    paths = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    return [path for path in paths if path.is_file()]
