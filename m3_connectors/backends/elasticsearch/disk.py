"""Measure the disk use of a collection in Elasticsearch, which reports it by field."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from m3_connectors.backends.elasticsearch.backend import ElasticsearchBackend
from m3_connectors.backends.elasticsearch.connection import segment

_FIELDS = {
    "dense": "dense",
    "sparse": "sparse",
    "sparse_blob": "sparse",
    "multivector_blob": "multivector",
    "multivector": "multivector",
    "_source": "text and metadata",
    "_recovery_source": "second copy until merged",
}


async def disk_bytes(backend: ElasticsearchBackend, _: Path | None) -> dict[str, int]:
    """Return the bytes on disk by component; see ``Store.disk``."""
    path = f"/{segment(backend._alias)}/_disk_usage"
    answer = await backend._connection.request(
        "describe", "POST", path, None, run_expensive_tasks="true", flush="true"
    )
    index = next(value for name, value in answer.items() if name != "_shards")
    sizes: Counter[str] = Counter()
    for field, usage in index["fields"].items():
        # Sparse tokens are features of one field; blobs and vectors are separate fields.
        sizes[_FIELDS.get(field.partition(".")[0], "other")] += usage["total_in_bytes"]
    sizes["other"] += max(0, index["store_size_in_bytes"] - index["all_fields"]["total_in_bytes"])
    return dict(sizes)
