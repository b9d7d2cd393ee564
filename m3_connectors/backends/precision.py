"""How multi-vector rows are stored: each precision encodes, decodes and rounds rows, and knows their size.

Everything that depends on the precision is here. A new one is a class (or an instance of one) with a name in
``PrecisionName`` and an entry in ``PRECISIONS``; a collection records the name only.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from m3_connectors import maxsim
from m3_connectors.backends.compact import Int8, Levels
from m3_connectors.backends.rotation import rotate, rotate_back
from m3_connectors.embeddings import Float32, M3Embeddings, MultiVectors
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
    has_centre: ClassVar[bool] = False
    """Whether ``centred`` makes a difference."""

    @abc.abstractmethod
    def row_bytes(self, width: int) -> int:
        """Return the size of an encoded row of this width."""

    @abc.abstractmethod
    def encode(self, rows: Float32) -> bytes:
        """Return rows ``[t, d]`` as ``t * row_bytes(d)`` bytes, the same on every machine."""

    @abc.abstractmethod
    def decode(self, encoded: maxsim.Bytes, into: Float32) -> None:
        """Write the rows that were encoded into the float32 array ``into``, ``[t, d]``."""

    @abc.abstractmethod
    def round(self, rows: Float32) -> Float32:
        """Return rows ``[t, d]`` as they are stored, float32: exactly what ``decode`` gives back."""

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

    def centred(self, centre: Float32 | None) -> Precision:
        """Return this precision for a collection whose rows have this mean, float32 ``[d]`` (None: unknown)."""
        return self

    def rounded(self, embeddings: M3Embeddings) -> M3Embeddings:
        """Return documents as they are stored: the multi-vector rows rounded, everything else unchanged."""
        if "multivector" not in embeddings.components:
            return embeddings
        multivectors = embeddings.multivectors
        rows = self.round(multivectors.rows)
        if rows is multivectors.rows:
            return embeddings
        return embeddings.replace(multivectors=MultiVectors(rows, multivectors.offsets))

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

    def row_bytes(self, width: int) -> int:
        return width * self._dtype.itemsize

    def encode(self, rows: Float32) -> bytes:
        return rows.astype(self._dtype, copy=False).tobytes()

    def decode(self, encoded: maxsim.Bytes, into: Float32) -> None:
        into[:] = np.frombuffer(encoded, self._dtype).reshape(into.shape)

    def round(self, rows: Float32) -> Float32:
        return rows.astype(self._dtype, copy=False).astype(np.float32, copy=False)

    def round_query(self, rows: Float32) -> Float32:
        # Measured with Qdrant 1.18: the engine rounds the query too, so both sides of a score are rounded.
        return self.round(rows)

    def scores(self, query: Float32, encoded: Sequence[maxsim.Bytes]) -> Float32:
        scores: Float32 = maxsim.float_maxima(self.round(query), encoded, self._dtype).mean(axis=1)
        return scores


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CompactPrecision(Precision):
    """Rows as whole numbers of a few bits and a scale.

    A row ``x`` is stored as ``levels.quantise(R (x - c)) = (v, s)`` and read as ``c + R^T (s * v)``: ``c`` is the
    collection's centre, or 0, and ``R`` a fixed rotation, or the identity. A row ``q`` of a query is rounded to 8
    bits, ``R q = t * w``, and their product is ``<q, c> + s * t * <w, v>``, so that the largest one is found among
    products of whole numbers.

    Attributes:
        levels: The numbers and their bytes.
        is_rotated: Whether R is ``rotation.rotate``.
        centre: float32 ``[d]``, or None for 0.
    """

    levels: Levels
    is_rotated: bool
    centre: Float32 | None = None
    largest: float = float(np.finfo(np.float32).max)
    digits: None = None
    engine_dtype: None = None
    has_centre: ClassVar[bool] = True

    def centred(self, centre: Float32 | None) -> CompactPrecision:
        return dataclasses.replace(self, centre=centre)

    def row_bytes(self, width: int) -> int:
        return self.levels.row_bytes(width)

    def encode(self, rows: Float32) -> bytes:
        return b"".join(self.levels.pack(*self._quantise(block)) for block in _blocks(rows))

    def decode(self, encoded: maxsim.Bytes, into: Float32) -> None:
        size, start = self.row_bytes(into.shape[1]), 0
        for block in _blocks(into):
            part = memoryview(encoded)[start * size : (start + len(block)) * size]
            block[:] = self._read(*self.levels.unpack(part, into.shape[1]))
            start += len(block)

    def round(self, rows: Float32) -> Float32:
        read = [self._read(*self._quantise(block)) for block in _blocks(rows)]
        return np.concatenate(read) if read else np.empty_like(rows)

    def round_query(self, rows: Float32) -> Float32:
        levels, scales = _QUERY.quantise(self._turned(rows))
        return self._turned_back(levels * scales[:, None])

    def scores(self, query: Float32, encoded: Sequence[maxsim.Bytes]) -> Float32:
        levels, scales = _QUERY.quantise(self._turned(query))
        best = maxsim.code_maxima(levels, encoded, self.levels.bits) * scales
        if self.centre is not None:
            best += self._turned_back(levels * scales[:, None]) @ self.centre
        scores: Float32 = best.mean(axis=1)
        return scores

    def _quantise(self, rows: Float32) -> tuple[Int8, Float32]:
        return self.levels.quantise(self._turned(rows if self.centre is None else rows - self.centre))

    def _read(self, levels: Int8, scales: Float32) -> Float32:
        rows = self._turned_back(levels * scales[:, None])
        return rows if self.centre is None else rows + self.centre

    def _turned(self, rows: Float32) -> Float32:
        return rotate(rows) if self.is_rotated else rows

    def _turned_back(self, rows: Float32) -> Float32:
        return rotate_back(rows) if self.is_rotated else rows


_QUERY = Levels(8)
"""The numbers of a query's rows, whatever those of the documents are."""

_ROWS_AT_ONCE = 512
"""Rows that are encoded or decoded together, so that they stay in the cache; it changes no result."""


def _blocks(rows: Float32) -> list[Float32]:
    return [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]


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

INT8 = CompactPrecision(name="int8", code=8, tolerance=1.0, levels=Levels(8), is_rotated=False)
INT4 = CompactPrecision(name="int4", code=9, tolerance=1.0, levels=Levels(4, 2.5), is_rotated=True)
INT2 = CompactPrecision(name="int2", code=10, tolerance=1.0, levels=Levels(2, 1.49), is_rotated=True)
INT1 = CompactPrecision(name="int1", code=11, tolerance=1.0, levels=Levels(1), is_rotated=True)

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
