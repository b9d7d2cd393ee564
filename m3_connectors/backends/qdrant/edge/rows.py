"""Points of the engine in this process: the shared layout and payload, in the engine's classes.

The engine does not limit the rows of a multi-vector, but uses the server's layout. Rows that the engine does not
score are in the ``row_file``, and the payload has their place in it under the key ``ROWS``.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import qdrant_edge as engine

from m3_connectors.backends.base import Schema
from m3_connectors.backends.blobs import multivector_bytes, pack_multivectors
from m3_connectors.backends.qdrant import layout as shared
from m3_connectors.backends.qdrant.edge.row_file import Place, RowFile
from m3_connectors.backends.qdrant.layout import MAX_ROWS, ROWS, Vector
from m3_connectors.backends.qdrant.payload import ID, document_of, payload_of, point_id
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, M3Embeddings

__all__ = [
    "ID",
    "ROWS",
    "Layout",
    "PointId",
    "document_of",
    "payload_of",
    "payloads",
    "point_id",
    "stored",
    "vectors",
]

PointId = int | uuid.UUID | str
"""An id as the engine's binding declares it; the ids of this package are UUIDs."""

_DATATYPES: dict[str | None, engine.VectorStorageDatatype] = {
    "float16": engine.VectorStorageDatatype.Float16,
    "float32": engine.VectorStorageDatatype.Float32,
}


class Layout(shared.Layout):
    """The named vectors of a collection in the engine, and the rows in its ``row_file``."""

    @classmethod
    def of(cls, schema: Schema) -> Self:
        layout = super().of(schema)
        return layout if layout.scores_rows else dataclasses.replace(layout, multivectors=())

    @property
    def room(self) -> int:
        return super().room if self.scores_rows else MAX_ROWS

    def edge_config(self) -> engine.EdgeConfig:
        """Return the engine's configuration: inner products, one graph (dense), exact scans of the rest."""
        width = self.schema.model.dimension
        vectors = {"dense": engine.EdgeVectorParams(width, engine.Distance.Dot)}
        for name in self.multivectors:
            vectors[name] = engine.EdgeVectorParams(
                width,
                engine.Distance.Dot,
                multivector_config=engine.MultiVectorConfig(engine.MultiVectorComparator.MaxSim),
                datatype=_DATATYPES[self.schema.precision.engine_dtype],
                hnsw_config=engine.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=1),
                memory=engine.Memory.Cold,
            )
        return engine.EdgeConfig(
            vectors,
            {"sparse": engine.EdgeSparseVectorParams()} if "sparse" in self.schema.written else None,
            # ``optimize`` is called only when a graph is wanted, so every segment gets one.
            optimizers=engine.EdgeOptimizersConfig(indexing_threshold=1),
            wal_enabled=True,
        )

    def creations(self) -> dict[str, engine.UpdateOperation]:
        """Return, by name, the operations that create the vectors in a shard that exists, with the defaults of graphs.

        ``edge_config``, given to the engine when it opens the shard, replaces these defaults.
        """
        width, precision = self.schema.model.dimension, self.schema.precision
        rows = engine.MultiVectorConfig(engine.MultiVectorComparator.MaxSim)
        create = engine.UpdateOperation
        made = {
            name: create.create_dense_vector(
                name, width, engine.Distance.Dot, rows, _DATATYPES[precision.engine_dtype]
            )
            for name in self.multivectors
        }
        return made | (
            {"sparse": create.create_sparse_vector("sparse")} if "sparse" in self.schema.written else {}
        )

    def lacking(self, component: Component) -> engine.Filter:
        """Return the filter of the points that do not have a component."""
        if component == "multivector" and not self.scores_rows:
            return engine.Filter(must=[engine.IsEmptyCondition(ROWS)])
        name = self.multivectors[0] if component == "multivector" else component
        return engine.Filter(must_not=[engine.HasVectorCondition(name)])

    def blobs(self, embeddings: M3Embeddings) -> list[bytes]:
        """Return the rows of each document for the ``row_file``; none if the engine scores them."""
        if self.scores_rows or "multivector" not in embeddings.components:
            return []
        return pack_multivectors(embeddings.multivectors, self.schema.precision)

    def points(
        self, documents: Sequence[Document], embeddings: M3Embeddings, places: Sequence[Place]
    ) -> list[engine.Point]:
        """Return the points of checked documents, whose ``blobs`` are in these places."""
        return [
            engine.Point(
                point_id(document.id),
                {name: _as_sent(vector) for name, vector in self.vectors(embeddings, i)},
                payload_of(document) | ({ROWS: list(places[i])} if places else {}),
            )
            for i, document in enumerate(documents)
        ]

    def nearest(self, component: Component, query: M3Embeddings) -> engine.Query:
        """Return the query of one component of one text; ``multivector`` uses the first multi-vector."""
        if component == "dense":
            return engine.Query.Nearest(query.dense[0].tolist(), using="dense")
        if component == "sparse":
            vector = engine.SparseVector(query.sparse.indices.tolist(), query.sparse.data.tolist())
            return engine.Query.Nearest(vector, using="sparse")
        return engine.Query.Nearest(query.multivectors[0].tolist(), using=self.multivectors[0])

    def nearest_row(self, query: M3Embeddings, row: int, part: int) -> engine.Query:
        """Return the query of one multi-vector row of one text against one of the multi-vectors."""
        return engine.Query.Nearest([query.multivectors[0][row].tolist()], using=self.multivectors[part])

    @staticmethod
    def query_rows(query: M3Embeddings) -> int:
        """Return the number of multi-vector rows of one text."""
        return len(query.multivectors.rows)

    def encoded_rows(self, file: RowFile, payload: Mapping[str, Any]) -> memoryview:
        """Return the encoded rows of a point that was read with ``ID`` and ``ROWS``.

        Raises:
            DamagedRows: They are missing, or are not rows of this collection.
        """
        try:
            blob = file.read(payload[ROWS])
            return multivector_bytes([blob], self.schema.precision, self.schema.model.dimension)[0]
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedRows(
                f"the multi-vector rows of document {payload.get(ID)!r} cannot be read: {error}.\n"
                "  Index the document again."
            ) from error

    def embeddings(self, vectors: Sequence[Mapping[str, Any]]) -> M3Embeddings:
        """Return the embeddings of points that were read with their vectors, and with ``encoded_rows`` as ``ROWS``."""
        return super().embeddings(
            [{name: _as_read(vector) for name, vector in named.items()} for named in vectors]
        )


class DamagedRows(Exception):
    """Rows in the file are not those of the document that names them."""


def stored(edge: engine.EdgeShard, points: Sequence[PointId]) -> set[PointId]:
    """Return the points that are stored."""
    return {record.id for record in edge.retrieve(list(points), False, False)}


def payloads(
    edge: engine.EdgeShard, points: Sequence[PointId], fields: Sequence[str] | None = None
) -> dict[PointId, dict[str, Any]]:
    """Return the payloads, or some fields of them, of the points that are stored."""
    records = edge.retrieve(list(points), True if fields is None else list(fields), False)
    return {record.id: record.payload or {} for record in records}


def vectors(
    edge: engine.EdgeShard, points: Sequence[PointId], layout: Layout, file: RowFile
) -> dict[PointId, Mapping[str, Any]]:
    """Return the named vectors of the points that are stored, as ``Layout.embeddings`` takes them.

    Raises:
        DamagedRows: The rows of a document in the file are not its own.
    """
    in_file = "multivector" in layout.schema.components and not layout.scores_rows
    found: dict[PointId, Mapping[str, Any]] = {}
    for record in edge.retrieve(list(points), [ID, ROWS], True):
        if isinstance(record.vector, Mapping):
            rows = {ROWS: layout.encoded_rows(file, record.payload or {})} if in_file else {}
            found[record.id] = {**record.vector, **rows}
    return found


def _as_sent(vector: Vector) -> Any:
    # Lists, because the engine's binding reads them faster than arrays (28 ms instead of 42 ms for 512 x
    # 1,024).
    if isinstance(vector, np.ndarray):
        return vector.tolist()
    return engine.SparseVector(vector[0].tolist(), vector[1].tolist())


def _as_read(vector: Any) -> Vector | memoryview:
    if isinstance(vector, memoryview):
        return vector
    if isinstance(vector, engine.SparseVector):
        return np.array(vector.indices, dtype=np.int64), np.array(vector.values, dtype=np.float32)
    return np.array(vector, dtype=np.float32)
