"""How multi-vector rows are stored: each precision encodes, decodes and rounds rows, and knows their size.

Everything that depends on the precision is here. A new one is a class (or an instance of one) with a name in
``PrecisionName`` and an entry in ``PRECISIONS``; a collection records the name only.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Literal

import numpy as np

from m3_connectors.embeddings import Float32, M3Embeddings, MultiVectors
from m3_connectors.errors import InvalidInput

FloatName = Literal["float16", "float32"]
PrecisionName = Literal["float16", "float32"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision(abc.ABC):
    """How one collection stores its multi-vector rows.

    Attributes:
        name: The name in ``Storage`` and in what a collection records.
        code: The number in the header of a blob (``backends.blobs``), different for each precision.
        largest: The largest size of a value that a row can have.
        tolerance: The largest difference between a value of a row of length 1 and what is stored of it.
        digits: The number of significant decimal digits that determine a stored value, or None if that is not
            fewer than float32 has.
        engine_dtype: The type of number in which a store that scores rows itself holds them without a
            further error.
    """

    name: PrecisionName
    code: int
    largest: float
    tolerance: float
    digits: int | None
    engine_dtype: FloatName

    @abc.abstractmethod
    def row_bytes(self, width: int) -> int:
        """Return the size of an encoded row of this width."""

    @abc.abstractmethod
    def encode(self, rows: Float32) -> bytes:
        """Return rows ``[t, d]`` as ``t * row_bytes(d)`` bytes, the same on every machine."""

    @abc.abstractmethod
    def decode(self, encoded: bytes | memoryview, into: Float32) -> None:
        """Write the rows that were encoded into the float32 array ``into``, ``[t, d]``."""

    @abc.abstractmethod
    def round(self, rows: Float32) -> Float32:
        """Return rows ``[t, d]`` as they are stored, float32: exactly what ``decode`` gives back."""

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
        # Measured with Qdrant 1.18: the engine rounds the query too, so both sides of a score are rounded.
        return self.rounded(query)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FloatPrecision(Precision):
    """Rows as numbers of one floating-point type, little-endian and row-major."""

    @property
    def _dtype(self) -> np.dtype[np.floating]:
        return np.dtype(self.engine_dtype).newbyteorder("<")

    def row_bytes(self, width: int) -> int:
        return width * self._dtype.itemsize

    def encode(self, rows: Float32) -> bytes:
        return rows.astype(self._dtype, copy=False).tobytes()

    def decode(self, encoded: bytes | memoryview, into: Float32) -> None:
        into[:] = np.frombuffer(encoded, self._dtype).reshape(into.shape)

    def round(self, rows: Float32) -> Float32:
        return rows.astype(self._dtype, copy=False).astype(np.float32, copy=False)


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

PRECISIONS: dict[PrecisionName, Precision] = {precision.name: precision for precision in (FLOAT16, FLOAT32)}
"""All precisions by name; the first is the default of ``Storage``."""


def precision_of(name: str, what: str = "multivector_dtype") -> Precision:
    """Return the precision of this name.

    Raises:
        InvalidInput: There is none; the message lists the names.
    """
    for precision in PRECISIONS.values():
        if precision.name == name:
            return precision
    raise InvalidInput(f"{what} is {name!r}.\n  Use {' or '.join(map(repr, PRECISIONS))}.")
