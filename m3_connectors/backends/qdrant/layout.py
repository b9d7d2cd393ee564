"""The layout of a document's vectors in a Qdrant point, for both engines.

The vectors are ``dense``, ``sparse`` and ``multi_0`` … ``multi_k``: a Qdrant server refuses a multi-vector of
2**20 floats or more (in points and in queries), so the rows of a longer document continue in the next one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import scipy.sparse as sp

from m3_connectors.backends.base import Schema
from m3_connectors.documents import Document
from m3_connectors.embeddings import Float32, Int64, M3Embeddings, MultiVectors
from m3_connectors.errors import InvalidInput

MAX_FLOATS = 2**20 - 1
"""The maximum number of floats in one multi-vector (server 1.18: ``MAX_MULTIVECTOR_FLATTENED_LEN``)."""

MAX_ROWS = 8192
"""The number of rows that the layout can hold: those of the model's longest text."""

SparseRow = tuple[Int64, Float32]
"""Token ids, sorted, and their weights."""

Vector = Float32 | SparseRow
"""``[d]`` dense, ``[rows, d]`` multi-vector, or a sparse row."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The named vectors of a collection.

    Attributes:
        schema: The schema of the collection.
        rows_per_vector: The maximum number of rows in one multi-vector, and in one multi-vector query.
        multivectors: The names of the multi-vectors, in the order of the document's rows.
    """

    schema: Schema
    rows_per_vector: int
    multivectors: tuple[str, ...]

    @classmethod
    def of(cls, schema: Schema) -> Self:
        """Return the layout for a schema."""
        rows = max(1, MAX_FLOATS // schema.model.dimension)
        vectors = 0
        if "multivector" in schema.written:
            vectors = 1 if schema.storage.long_documents == "error" else -(-MAX_ROWS // rows)
        return cls(schema, rows, tuple(f"multi_{i}" for i in range(vectors)))

    def check_rows(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """Raise InvalidInput if a document has more multi-vector rows than the layout can hold."""
        if "multivector" not in embeddings.components:
            return
        room = self.rows_per_vector * len(self.multivectors)
        for position in np.flatnonzero(embeddings.multivectors.counts > room)[:1]:
            raise InvalidInput(
                f"documents[{position}] (id {documents[position].id!r}) has "
                f"{embeddings.multivectors.counts[position]} multi-vector rows; this collection stores at "
                f"most {room} for a document.\n"
                '  Split the text, or create the collection with Storage(long_documents="split") (up to '
                f"{MAX_ROWS} rows)."
            )

    def vectors(self, embeddings: M3Embeddings, i: int) -> Iterator[tuple[str, Vector]]:
        """Yield the named vectors of document i; a component without entries has no vector."""
        yield "dense", embeddings.dense[i]
        if "sparse" in embeddings.components:
            row = sparse_row(embeddings.sparse, i)
            if len(row[0]):
                yield "sparse", row
        if "multivector" in embeddings.components:
            rows = embeddings.multivectors[i]
            for name, start in zip(
                self.multivectors, range(0, len(rows), self.rows_per_vector), strict=False
            ):
                yield name, rows[start : start + self.rows_per_vector]

    def embeddings(self, vectors: Sequence[Mapping[str, Any]]) -> M3Embeddings:
        """Return the embeddings of points that were read with their vectors (by name, as ``Vector``)."""
        schema = self.schema
        dense: Float32 = np.array([vector["dense"] for vector in vectors], dtype=np.float32)
        sparse = multivectors = None
        if "sparse" in schema.components:
            sparse = _csr([vector.get("sparse") for vector in vectors], schema.model.vocabulary_size)
        if "multivector" in schema.components:
            present = ([vector[name] for name in self.multivectors if name in vector] for vector in vectors)
            rows = [np.concatenate(parts) for parts in present]
            multivectors = MultiVectors.from_list(rows, schema.model.dimension)
        return M3Embeddings(dense, sparse, multivectors, model=schema.model)


def floats(vector: Vector) -> int:
    """Return the number of numbers in a vector."""
    return vector.size if isinstance(vector, np.ndarray) else 2 * len(vector[0])


def sparse_row(matrix: sp.csr_array, i: int) -> SparseRow:
    """Return token ids and weights of one row of a canonical CSR matrix."""
    row = slice(matrix.indptr[i], matrix.indptr[i + 1])
    return matrix.indices[row], matrix.data[row]


def _csr(rows: Sequence[SparseRow | None], vocabulary_size: int) -> sp.csr_array:
    empty: SparseRow = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
    filled = [row or empty for row in rows]
    offsets = np.cumsum([0, *(len(row[0]) for row in filled)])
    columns = np.concatenate([row[0] for row in filled])
    weights = np.concatenate([row[1] for row in filled]).astype(np.float32)
    return sp.csr_array((weights, columns, offsets), shape=(len(rows), vocabulary_size))
