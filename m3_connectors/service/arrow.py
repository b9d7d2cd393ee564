"""Embeddings as a stream of Apache Arrow: one row for each text."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import MissingDependency

MEDIA_TYPE = "application/vnd.apache.arrow.stream"


def stream(embeddings: M3Embeddings) -> bytes:
    """Return one record batch: ``dense``, ``sparse_ids`` and ``sparse_weights``, ``multivectors``, and the counts.

    The metadata of the schema have the model, as JSON under ``model``.

    Raises:
        MissingDependency: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingDependency("pyarrow", "parquet") from None

    def rows(values: Any) -> Any:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), pa.float32())
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])

    columns: dict[str, Any] = {}
    if "dense" in embeddings.components:
        columns["dense"] = rows(embeddings.dense)
    if "sparse" in embeddings.components:
        matrix = embeddings.sparse
        bounds = pa.array(matrix.indptr.astype(np.int32))
        ids = pa.array(matrix.indices.astype(np.uint32))
        columns["sparse_ids"] = pa.ListArray.from_arrays(bounds, ids)
        columns["sparse_weights"] = pa.ListArray.from_arrays(bounds, pa.array(matrix.data))
    if "multivector" in embeddings.components:
        vectors = embeddings.multivectors
        columns["multivectors"] = pa.ListArray.from_arrays(
            pa.array(vectors.offsets.astype(np.int32)), rows(vectors.rows)
        )
    columns["truncated"] = pa.array(embeddings.truncated)
    if embeddings.token_counts is not None:
        columns["token_count"] = pa.array(embeddings.token_counts)
    model = None if embeddings.model is None else embeddings.model.to_json()
    table = pa.record_batch(columns).replace_schema_metadata({"model": json.dumps(model)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_batch(table)
    return bytes(sink.getvalue())
