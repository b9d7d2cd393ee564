"""How a document is laid out as a Qdrant point, and read back.

Vectors ``dense``, ``sparse`` and ``multi_0`` … ``multi_k``: a Qdrant server refuses a multi-vector of 2**20 floats or
more (stored or asked), so a longer document continues in the next one. The engine in the process has no such limit
but keeps the same layout.

The payload has our own keys at the top, so that they and the caller's never meet. The metadata are there twice: as
JSON text, which is what is given back (the engine changes the last bit of one float in eight), and as a tree to
filter on. ``flags`` and ``dates`` repeat, in the same nesting, what the engine cannot tell apart in that tree: Edge
0.9 takes a match on True for one on 1, and Qdrant takes ``2024-1-1`` and the 61st second of a minute for dates.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import qdrant_edge as engine
import scipy.sparse as sp

from m3_connectors.backends.base import Schema
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, Float32, M3Embeddings, MultiVectors
from m3_connectors.errors import InvalidInput
from m3_connectors.filters import parse_date

ID = "id"
TEXT = "text"
JSON = "json"
METADATA = "metadata"
FLAGS = "flags"
DATES = "dates"

MAX_FLOATS = 2**20 - 1
"""Most floats in one multi-vector (server 1.18: ``MAX_MULTIVECTOR_FLATTENED_LEN``)."""

MAX_ROWS = 8192
"""Rows that the layout has room for: the model's longest text."""

PointId = int | uuid.UUID | str
"""An id as the engine's binding types it; ours are UUIDs."""

_NAMESPACE = uuid.UUID("6ffd1b52-7d3c-5c58-9a46-0d1f2a8f6c3e")


def point_id(id: str) -> PointId:
    """The id that Qdrant knows a document by (it takes 64-bit integers and UUIDs only)."""
    return uuid.uuid5(_NAMESPACE, id)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The named vectors of a collection.

    Attributes:
        schema: What the collection holds.
        rows_per_vector: Most rows in one of the multi-vectors.
        multivectors: Their names, in the order of the document's rows.
    """

    schema: Schema
    rows_per_vector: int
    multivectors: tuple[str, ...]

    @classmethod
    def of(cls, schema: Schema) -> Layout:
        """The layout for a schema."""
        rows = max(1, MAX_FLOATS // schema.model.dimension)
        vectors = 0
        if "multivector" in schema.components:
            vectors = 1 if schema.storage.long_documents == "error" else -(-MAX_ROWS // rows)
        return cls(schema, rows, tuple(f"multi_{i}" for i in range(vectors)))

    def edge_config(self) -> engine.EdgeConfig:
        """The engine's configuration: inner products, one graph (dense), everything else scanned exactly."""
        float16 = self.schema.storage.multivector_dtype == "float16"
        datatype = engine.VectorStorageDatatype.Float16 if float16 else engine.VectorStorageDatatype.Float32
        width = self.schema.model.dimension
        vectors = {"dense": engine.EdgeVectorParams(width, engine.Distance.Dot)}
        for name in self.multivectors:
            vectors[name] = engine.EdgeVectorParams(
                width,
                engine.Distance.Dot,
                multivector_config=engine.MultiVectorConfig(engine.MultiVectorComparator.MaxSim),
                datatype=datatype,
                hnsw_config=engine.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=1),
                memory=engine.Memory.Cold,
            )
        return engine.EdgeConfig(
            vectors,
            {"sparse": engine.EdgeSparseVectorParams()} if "sparse" in self.schema.components else None,
            # ``optimize`` is called only when a graph is wanted: then every segment is worth one.
            optimizers=engine.EdgeOptimizersConfig(indexing_threshold=1),
            wal_enabled=True,
        )

    def check_rows(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """Raise InvalidInput if a document has more multi-vector rows than there is room for."""
        if embeddings.multivectors is None:
            return
        room = self.rows_per_vector * len(self.multivectors)
        for position in np.flatnonzero(embeddings.multivectors.counts > room)[:1]:
            raise InvalidInput(
                f"documents[{position}] (id {documents[position].id!r}) has "
                f"{embeddings.multivectors.counts[position]} multi-vector rows; this collection has room for {room}.\n"
                '  Split the text, or make the collection with Storage(long_documents="split") (up to '
                f"{MAX_ROWS} rows)."
            )

    def points(self, documents: Sequence[Document], embeddings: M3Embeddings) -> list[engine.Point]:
        """The points of checked documents."""
        return [
            engine.Point(point_id(document.id), dict(self._vectors(embeddings, i)), payload_of(document))
            for i, document in enumerate(documents)
        ]

    def _vectors(self, embeddings: M3Embeddings, i: int) -> Iterator[tuple[str, Any]]:
        # Lists, because the engine's binding reads them faster than arrays (28 ms against 42 ms for 512 x 1,024).
        assert embeddings.dense is not None
        yield "dense", embeddings.dense[i].tolist()
        if embeddings.sparse is not None:
            sparse = embeddings.sparse
            row = slice(sparse.indptr[i], sparse.indptr[i + 1])
            if row.start < row.stop:
                yield "sparse", engine.SparseVector(sparse.indices[row].tolist(), sparse.data[row].tolist())
        if embeddings.multivectors is not None:
            rows = embeddings.multivectors[i]
            for name, start in zip(
                self.multivectors, range(0, len(rows), self.rows_per_vector), strict=False
            ):
                yield name, rows[start : start + self.rows_per_vector].tolist()

    def nearest(self, component: Component, query: M3Embeddings) -> engine.Query:
        """The query of one component of one text; ``multivector`` asks the first of the multi-vectors."""
        if component == "dense":
            assert query.dense is not None
            return engine.Query.Nearest(query.dense[0].tolist(), using="dense")
        if component == "sparse":
            assert query.sparse is not None
            vector = engine.SparseVector(query.sparse.indices.tolist(), query.sparse.data.tolist())
            return engine.Query.Nearest(vector, using="sparse")
        assert query.multivectors is not None
        return engine.Query.Nearest(query.multivectors[0].tolist(), using=self.multivectors[0])

    def nearest_row(self, query: M3Embeddings, row: int, part: int) -> engine.Query:
        """The query of one multi-vector row of one text, asking one of the multi-vectors."""
        assert query.multivectors is not None
        return engine.Query.Nearest([query.multivectors[0][row].tolist()], using=self.multivectors[part])

    @staticmethod
    def query_rows(query: M3Embeddings) -> int:
        """Multi-vector rows of one text."""
        assert query.multivectors is not None
        return len(query.multivectors.rows)

    def embeddings(self, vectors: Sequence[Mapping[str, Any]]) -> M3Embeddings:
        """Embeddings of points that were read with their vectors."""
        schema = self.schema
        sparse = multivectors = None
        if "sparse" in schema.components:
            sparse = _csr([vector.get("sparse") for vector in vectors], schema.model.vocabulary_size)
        if "multivector" in schema.components:
            rows = [[row for name in self.multivectors for row in vector.get(name, ())] for vector in vectors]
            multivectors = MultiVectors.from_list(rows, schema.model.dimension)
        dense: Float32 = np.array([vector["dense"] for vector in vectors], dtype=np.float32)
        return M3Embeddings(dense, sparse, multivectors, model=schema.model)


def stored(edge: engine.EdgeShard, points: Sequence[PointId]) -> set[PointId]:
    """Those of the points that are stored."""
    return {record.id for record in edge.retrieve(list(points), False, False)}


def payloads(
    edge: engine.EdgeShard, points: Sequence[PointId], fields: Sequence[str] | None = None
) -> dict[PointId, dict[str, Any]]:
    """Payloads, whole or some fields of them, of those points that are stored."""
    records = edge.retrieve(list(points), True if fields is None else list(fields), False)
    return {record.id: record.payload or {} for record in records}


def vectors(edge: engine.EdgeShard, points: Sequence[PointId]) -> dict[PointId, Mapping[str, Any]]:
    """Named vectors of those points that are stored."""
    records = edge.retrieve(list(points), False, True)
    return {record.id: record.vector for record in records if isinstance(record.vector, Mapping)}


def payload_of(document: Document) -> dict[str, Any]:
    """The payload of a document's point, which ``document_of`` reads."""
    text = json.dumps(document.metadata, ensure_ascii=False)
    metadata = json.loads(text)
    payload = {ID: document.id, TEXT: document.text, JSON: text, METADATA: metadata}
    payload |= {FLAGS: tree} if (tree := _select(metadata, _flag)) else {}
    payload |= {DATES: tree} if (tree := _select(metadata, _date)) else {}
    return payload


def document_of(payload: Mapping[str, Any]) -> Document:
    """The document that a point's payload holds."""
    return Document(payload[ID], payload[TEXT], json.loads(payload[JSON]))


def _csr(rows: Sequence[engine.SparseVector | None], vocabulary_size: int) -> sp.csr_array:
    indices = [row.indices if row is not None else [] for row in rows]
    values = [value for row in rows if row is not None for value in row.values]
    offsets = np.cumsum([0, *map(len, indices)])
    columns = np.array([index for row in indices for index in row], dtype=np.int64)
    parts = (np.array(values, dtype=np.float32), columns, offsets)
    return sp.csr_array(parts, shape=(len(rows), vocabulary_size))


def _select(tree: Mapping[str, Any], select: Callable[[Any], str | None]) -> dict[str, Any]:
    """The same nesting, only of the leaves (and elements of lists) that ``select`` gives a form for."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            chosen: Any = _select(value, select)
        elif isinstance(value, list):
            chosen = [form for item in value if (form := select(item)) is not None]
        else:
            chosen = select(value)
        if chosen not in (None, {}, []):
            result[key] = chosen
    return result


def _flag(value: object) -> str | None:
    return flag_form(value) if isinstance(value, bool) else None


def flag_form(value: bool) -> str:
    """How ``flags`` spell a truth value."""
    return "true" if value else "false"


def _date(value: object) -> str | None:
    date = parse_date(value)
    return None if date is None else date_form(date)


def date_form(date: datetime.datetime) -> str:
    """How ``dates`` and conditions on them spell an instant: RFC 3339 with its offset."""
    return date.isoformat(timespec="microseconds")
