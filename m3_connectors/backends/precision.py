"""How multi-vector rows are stored: each precision encodes, decodes and rounds rows, and knows their size.

Everything that depends on the precision is here. A new one is a class (or an instance of one) with a name in
``PrecisionName`` and an entry in ``PRECISIONS``; a collection records the name only.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np

from m3_connectors import maxsim
from m3_connectors.backends.compact import Int8, Levels
from m3_connectors.backends.rotation import rotate, rotate_back
from m3_connectors.embeddings import EncodedRows, Float32, M3Embeddings, MultiVectors
from m3_connectors.errors import InvalidInput

FloatName = Literal["float16", "float32"]
PrecisionName = Literal["float16", "float32", "int8", "int4", "int2", "int1"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Precision(abc.ABC):
    """How one collection stores its multi-vector rows.

    The score of a document is that of ``scoring.multivector_scores`` for ``rounded_query(query)`` and
    ``rounded(documents)``; ``scores`` computes it from encoded rows, and differs by float32 rounding only.

    Attributes:
        name: The name in ``Storage`` and in what a collection records.
        code: The number in the header of a blob (``backends.blobs``), different for each precision.
        largest: The largest size of a value that a row can have.
        tolerance: The largest difference between a value of a row of length 1 and what is stored of it.
        digits: The number of significant decimal digits that determine a stored value, or None if that is not
            fewer than float32 has.
        engine_dtype: The type of number in which a store that scores rows itself holds them without a
            further error, or None where no store's own form has the same scores: stores keep the bytes, and
            ``scores`` scores them.
    """

    name: PrecisionName
    code: int
    largest: float
    tolerance: float
    digits: int | None
    engine_dtype: FloatName | None
    rows_together: ClassVar[int] = 1
    """A document may be encoded in parts if all but the last have a multiple of this number of rows: joined, they are
    what encoding it whole gives."""

    @property
    def is_compact(self) -> bool:
        """Whether rows are bytes that only this package can score."""
        return self.engine_dtype is None

    @abc.abstractmethod
    def encoded_bytes(self, rows: int, width: int) -> int:
        """Return the size of a document's encoded rows."""

    @abc.abstractmethod
    def rows_within(self, size: int, width: int) -> int:
        """Return the largest number of a document's rows that ``size`` bytes can hold when they are encoded."""

    @abc.abstractmethod
    def encode(self, rows: Float32) -> bytes:
        """Return a document's rows ``[t, d]`` as ``encoded_bytes(t, d)`` bytes, the same on every machine."""

    @abc.abstractmethod
    def decode(self, encoded: maxsim.Bytes, into: Float32) -> None:
        """Write a document's rows that were encoded into the float32 array ``into``, ``[t, d]``."""

    @abc.abstractmethod
    def round(self, rows: Float32) -> Float32:
        """Return a document's rows ``[t, d]`` as they are stored, float32: exactly what ``decode`` gives back."""

    @abc.abstractmethod
    def round_query(self, rows: Float32) -> Float32:
        """Return query rows ``[N, d]`` as stored rows are multiplied with them, float32."""

    @abc.abstractmethod
    def scores(self, query: Float32, encoded: Sequence[maxsim.Bytes]) -> Float32:
        """Return ``s_mul`` of encoded documents, which are never all held as float32 rows.

        Args:
            query: float32 ``[N, d]``, not yet rounded.
            encoded: For each document all its rows, as ``encode`` returns them, at least one.

        Returns:
            float32 ``[n]``.

        Raises:
            InvalidInput: The query or a document has no rows.
        """

    def encode_documents(self, documents: MultiVectors) -> Sequence[bytes]:
        """Return the rows of each document as ``encode`` does, or the bytes that they were read from."""
        if documents.encoded is not None and documents.encoded.precision == self.name:
            return documents.encoded.texts
        return [self.encode(rows) for rows in documents]

    def decode_documents(self, encoded: Sequence[maxsim.Bytes], width: int) -> MultiVectors:
        """Return the rows of documents that were encoded; compact ones keep their bytes."""
        counts = [self.rows_within(len(part), width) for part in encoded]
        offsets = np.cumsum([0, *counts], dtype=np.int64)
        rows = np.empty((int(offsets[-1]), width), dtype=np.float32)
        for part, start, stop in zip(encoded, offsets[:-1], offsets[1:], strict=True):
            self.decode(part, rows[start:stop])
        if not self.is_compact:
            return MultiVectors(rows, offsets)
        rows.flags.writeable = False  # another value would not be stored
        return MultiVectors(rows, offsets, EncodedRows(self.name, tuple(map(bytes, encoded))))

    def round_documents(self, documents: MultiVectors) -> MultiVectors:
        """Return the rows of documents as ``round`` returns those of each one."""
        return self.decode_documents(self.encode_documents(documents), documents.dimension)

    def rounded(self, embeddings: M3Embeddings) -> M3Embeddings:
        """Return documents as they are stored: the multi-vector rows rounded, everything else unchanged."""
        if "multivector" not in embeddings.components:
            return embeddings
        return embeddings.replace(multivectors=self.round_documents(embeddings.multivectors))

    def rounded_query(self, query: M3Embeddings) -> M3Embeddings:
        """Return a query as stored documents are scored with it."""
        if "multivector" not in query.components:
            return query
        multivectors = query.multivectors
        rows = self.round_query(multivectors.rows)
        return query.replace(multivectors=MultiVectors(rows, multivectors.offsets))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FloatPrecision(Precision):
    """Rows as numbers of one floating-point type, little-endian and row-major.

    Attributes:
        engine_dtype: The type.
    """

    engine_dtype: FloatName

    @property
    def _dtype(self) -> np.dtype[np.floating]:
        return np.dtype(self.engine_dtype).newbyteorder("<")

    def encoded_bytes(self, rows: int, width: int) -> int:
        return rows * width * self._dtype.itemsize

    def rows_within(self, size: int, width: int) -> int:
        return size // (width * self._dtype.itemsize)

    def encode(self, rows: Float32) -> bytes:
        return rows.astype(self._dtype, copy=False).tobytes()

    def decode(self, encoded: maxsim.Bytes, into: Float32) -> None:
        into[:] = np.frombuffer(encoded, self._dtype).reshape(into.shape)

    def round(self, rows: Float32) -> Float32:
        return rows.astype(self._dtype, copy=False).astype(np.float32, copy=False)

    def round_documents(self, documents: MultiVectors) -> MultiVectors:
        return MultiVectors(self.round(documents.rows), documents.offsets)

    def round_query(self, rows: Float32) -> Float32:
        # Measured with Qdrant 1.18: the engine rounds the query too, so both sides of a score are rounded.
        return self.round(rows)

    def scores(self, query: Float32, encoded: Sequence[maxsim.Bytes]) -> Float32:
        scores: Float32 = maxsim.float_maxima(self.round(query), encoded, self._dtype).mean(axis=1)
        return scores


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CompactPrecision(Precision):
    """Rows as their difference from the mean of the document's rows, in whole numbers of a few bits and a scale.

    The rows ``x`` of a document are stored in blocks of ``rows_together``, the last one shorter. ``R`` is a fixed
    rotation, or the identity. A block begins with its centre, the mean of ``R x``, as whole numbers of 8 bits and a
    scale, which mean ``c``. Each row is then ``levels.quantise(R x - c) = (v, s)``, and is read as
    ``R^T (c + s * v)``. A row ``q`` of a query is rounded to 8 bits, ``R q = t * w``, and their product is
    ``t * (<w, c> + s * <w, v>)``, so that the largest one of a block is found among products of whole numbers.

    Attributes:
        levels: The numbers and their bytes.
        is_rotated: Whether R is ``rotation.rotate``.
    """

    levels: Levels
    is_rotated: bool
    largest: float = 2.0**100  # far from where a sum of a row's values overflows
    digits: None = None
    engine_dtype: None = None
    rows_together: ClassVar[int] = 512

    def encoded_bytes(self, rows: int, width: int) -> int:
        return -(-rows // self.rows_together) * _FINE.row_bytes(width) + rows * self.levels.row_bytes(width)

    def rows_within(self, size: int, width: int) -> int:
        blocks, rest = divmod(size, self.encoded_bytes(self.rows_together, width))
        of_last = max(0, rest - _FINE.row_bytes(width)) // self.levels.row_bytes(width)
        return blocks * self.rows_together + of_last

    def encode(self, rows: Float32) -> bytes:
        encoded = []
        for block in self._blocks(rows):
            centre, coded = self._quantise(block)
            encoded += [_FINE.pack(*centre), self.levels.pack(*coded)]
        return b"".join(encoded)

    def decode(self, encoded: maxsim.Bytes, into: Float32) -> None:
        width = into.shape[1]
        for block, (centre, rows) in zip(self._blocks(into), self._split(encoded, width), strict=False):
            block[:] = self._read(_FINE.unpack(centre, width), self.levels.unpack(rows, width))

    def round(self, rows: Float32) -> Float32:
        read = [self._read(*self._quantise(block)) for block in self._blocks(rows)]
        return np.concatenate(read) if read else np.empty_like(rows)

    def round_query(self, rows: Float32) -> Float32:
        return self._turned_back(_values(*_FINE.quantise(self._turned(rows))))

    def scores(self, query: Float32, encoded: Sequence[maxsim.Bytes]) -> Float32:
        levels, scales = _FINE.quantise(self._turned(query))
        blocks = [list(self._split(document, query.shape[1])) for document in encoded]
        best = maxsim.code_maxima(levels, [rows for some in blocks for _, rows in some], self.levels.bits)
        if not blocks:
            return np.empty(0, dtype=np.float32)
        best += maxsim.code_maxima(levels, [centre for some in blocks for centre, _ in some], _FINE.bits)
        firsts = np.cumsum([0, *map(len, blocks[:-1])])
        scores: Float32 = (np.maximum.reduceat(best, firsts, axis=0) * scales).mean(axis=1)
        return scores

    def _split(self, encoded: maxsim.Bytes, width: int) -> Iterator[tuple[memoryview, memoryview]]:
        """Yield for each block the bytes of its centre and of its rows; a document without rows has an empty block."""
        view, centre = memoryview(encoded), _FINE.row_bytes(width)
        size = self.encoded_bytes(self.rows_together, width)
        for start in range(0, max(1, len(view)), size):
            yield view[start : start + centre], view[start + centre : start + size]

    def _quantise(self, block: Float32) -> tuple[tuple[Int8, Float32], tuple[Int8, Float32]]:
        turned = self._turned(block)
        centre = _FINE.quantise(turned.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32))
        return centre, self.levels.quantise(turned - _values(*centre))

    def _read(self, centre: tuple[Int8, Float32], rows: tuple[Int8, Float32]) -> Float32:
        return self._turned_back(_values(*rows) + _values(*centre))

    def _turned(self, rows: Float32) -> Float32:
        # In one order in memory, because sums depend on it.
        return rotate(rows) if self.is_rotated else np.ascontiguousarray(rows)

    def _turned_back(self, rows: Float32) -> Float32:
        return rotate_back(rows) if self.is_rotated else rows

    def _blocks(self, rows: Float32) -> list[Float32]:
        size = self.rows_together
        return [rows[start : start + size] for start in range(0, len(rows), size)]


_FINE = Levels(8)
"""The numbers of a query's rows and of centres, whatever those of the documents' rows are."""


def _values(levels: Int8, scales: Float32) -> Float32:
    return levels * scales[:, None]


FLOAT16 = FloatPrecision(
    name="float16",
    code=2,
    largest=65_504.0,
    tolerance=2.0**-12,
    digits=5,
    engine_dtype="float16",
)
FLOAT32 = FloatPrecision(
    name="float32",
    code=4,
    largest=float(np.finfo(np.float32).max),
    tolerance=0.0,
    digits=None,
    engine_dtype="float32",
)

INT8 = CompactPrecision(name="int8", code=8, tolerance=2.0, levels=Levels(8), is_rotated=False)
INT4 = CompactPrecision(name="int4", code=9, tolerance=2.0, levels=Levels(4, 2.5), is_rotated=True)
INT2 = CompactPrecision(name="int2", code=10, tolerance=2.0, levels=Levels(2, 1.49), is_rotated=True)
INT1 = CompactPrecision(name="int1", code=11, tolerance=2.0, levels=Levels(1), is_rotated=True)

PRECISIONS: dict[PrecisionName, Precision] = {
    precision.name: precision for precision in (FLOAT16, FLOAT32, INT8, INT4, INT2, INT1)
}
"""All precisions by name; the first is the default of ``Storage``."""


def precision_of(name: str, what: str = "multivector_dtype") -> Precision:
    """Return the precision of this name.

    Raises:
        InvalidInput: There is none; the message lists the names.
    """
    for precision in PRECISIONS.values():
        if precision.name == name:
            return precision
    raise InvalidInput(f"{what} is {name!r}.\n  Use {', '.join(map(repr, PRECISIONS))}.")
