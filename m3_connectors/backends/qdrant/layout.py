"""The layout of a document's vectors in a Qdrant point, for both engines.

The vectors are ``dense``, ``sparse`` and ``multi_0`` … ``multi_k``: a Qdrant server refuses a multi-vector of
2**20 floats or more (in points and in queries), so the rows of a longer document continue in the next one.

Rows in float16 and float32 are scored by the engine. No form of the engine has the scores of the compact
precisions, so their bytes are scored here: a server keeps them in the same vectors (``carried``), and Edge in a file
(``edge.row_file``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import scipy.sparse as sp

from m3_connectors.backends.base import Schema
from m3_connectors.backends.blobs import HEADER_BYTES, pack_multivectors
from m3_connectors.backends.qdrant import carried
from m3_connectors.documents import Document
from m3_connectors.embeddings import Float32, Int64, M3Embeddings, MultiVectors
from m3_connectors.errors import InvalidInput

MAX_FLOATS = 2**20 - 1
"""The maximum number of floats in one multi-vector (server 1.18: ``MAX_MULTIVECTOR_FLATTENED_LEN``)."""

MAX_ROWS = 8192
"""The number of rows that the layout can hold: those of the model's longest text."""

ROWS = "rows"
"""The key of the rows that the engine does not score, among the vectors of a point that was read."""

SparseRow = tuple[Int64, Float32]
"""Token ids, sorted, and their weights."""

Vector = Float32 | SparseRow
"""``[d]`` dense, ``[rows, d]`` multi-vector, or a sparse row."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The named vectors of a collection.

    Attributes:
        schema: The schema of the collection.
        row_width: The number of floats of a row in a multi-vector.
        rows_per_vector: The maximum number of rows in one multi-vector, and in one multi-vector query.
        multivectors: The names of the multi-vectors, in the order of the document's rows.
    """

    schema: Schema
    row_width: int
    rows_per_vector: int
    multivectors: tuple[str, ...]

    @classmethod
    def of(cls, schema: Schema) -> Self:
        """Return the layout for a schema."""
        width, longest = schema.model.dimension, MAX_ROWS
        if not is_native(schema):
            longest = carried.vectors_for(HEADER_BYTES + schema.precision.encoded_bytes(longest, width))
            width = carried.WIDTH
        rows = max(1, MAX_FLOATS // width)
        vectors = 0
        if "multivector" in schema.written:
            vectors = 1 if schema.storage.long_documents == "error" else -(-longest // rows)
        return cls(schema, width, rows, tuple(f"multi_{i}" for i in range(vectors)))

    @property
    def scores_rows(self) -> bool:
        """Whether the engine scores the rows of multi-vectors; otherwise they are bytes that are scored here."""
        return is_native(self.schema)

    @property
    def room(self) -> int:
        """The maximum number of rows of a document."""
        rows = self.rows_per_vector * len(self.multivectors)
        if self.scores_rows:
            return rows
        room = carried.most_bytes(rows) - HEADER_BYTES
        return self.schema.precision.rows_within(room, self.schema.model.dimension)

    def check_rows(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """Raise InvalidInput if a document has more multi-vector rows than the layout can hold."""
        if "multivector" not in embeddings.components:
            return
        for position in np.flatnonzero(embeddings.multivectors.counts > self.room)[:1]:
            raise InvalidInput(
                f"documents[{position}] (id {documents[position].id!r}) has "
                f"{embeddings.multivectors.counts[position]} multi-vector rows; this collection stores at "
                f"most {self.room} for a document.\n"
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
        if "multivector" in embeddings.components and self.multivectors:
            rows = embeddings.multivectors[i]
            if not self.scores_rows:
                (blob,) = pack_multivectors(embeddings.multivectors[i : i + 1], self.schema.precision)
                rows = carried.carry(blob)
            for name, start in zip(
                self.multivectors, range(0, len(rows), self.rows_per_vector), strict=False
            ):
                yield name, rows[start : start + self.rows_per_vector]

    def embeddings(self, vectors: Sequence[Mapping[str, Any]]) -> M3Embeddings:
        """Return the embeddings of points that were read with their vectors.

        Args:
            vectors: For each point its vectors by name, as ``Vector``, and as ``ROWS`` its encoded rows if the engine
                does not score them.
        """
        schema = self.schema
        dense: Float32 = np.array([vector["dense"] for vector in vectors], dtype=np.float32)
        sparse = multivectors = None
        if "sparse" in schema.components:
            sparse = self.sparse([vector.get("sparse") for vector in vectors])
        if "multivector" in schema.components:
            multivectors = self._rows(vectors)
        return M3Embeddings(dense, sparse, multivectors, model=schema.model)

    def sparse(self, rows: Sequence[SparseRow | None]) -> sp.csr_array:
        """Return sparse vectors as a matrix; a point without one has an empty row."""
        empty: SparseRow = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        filled = [row or empty for row in rows]
        offsets = np.cumsum([0, *(len(row[0]) for row in filled)])
        columns = np.concatenate([row[0] for row in filled])
        weights = np.concatenate([row[1] for row in filled]).astype(np.float32)
        return sp.csr_array((weights, columns, offsets), shape=(len(rows), self.schema.model.vocabulary_size))

    def _rows(self, vectors: Sequence[Mapping[str, Any]]) -> MultiVectors:
        precision, dimension = self.schema.precision, self.schema.model.dimension
        if self.scores_rows:
            present = ([vector[name] for name in self.multivectors if name in vector] for vector in vectors)
            return MultiVectors.from_list([np.concatenate(parts) for parts in present], dimension)
        return precision.decode_documents([vector[ROWS] for vector in vectors], dimension)

    def rows_bytes(self, rows: int) -> int:
        """Return the size of a document's rows: of the floats that the engine scores, or of the bytes."""
        if self.scores_rows:
            return 4 * self.row_width * rows
        return self.schema.precision.encoded_bytes(rows, self.schema.model.dimension)


def is_native(schema: Schema) -> bool:
    """Whether the engine holds and scores rows of this schema's precision."""
    return not schema.precision.is_compact


def floats(vector: Vector) -> int:
    """Return the number of numbers in a vector."""
    return vector.size if isinstance(vector, np.ndarray) else 2 * len(vector[0])


def sparse_row(matrix: sp.csr_array, i: int) -> SparseRow:
    """Return token ids and weights of one row of a canonical CSR matrix."""
    row = slice(matrix.indptr[i], matrix.indptr[i + 1])
    return matrix.indices[row], matrix.data[row]
