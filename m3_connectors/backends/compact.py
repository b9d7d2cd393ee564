"""Rows of numbers as codes of a few bits: uniform levels, one scale for each row, packed in planes of bytes.

A row ``y`` becomes whole numbers ``v`` and a scale ``s`` and is read as ``s * v``. With ``m = 2**bits - 1`` the levels
of 4, 2 and 1 bits are the odd numbers from ``-m`` to ``m``, so that a code ``u`` from 0 to ``m`` means ``v = 2u - m``:
shifts and masks unpack it, and ``<q, v> = 2 <q, u> - m * sum(q)``. The levels of 8 bits are -127 to 127.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from m3_connectors.embeddings import Float32
from m3_connectors.maxsim import SCALE_BYTES

Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Levels:
    """One number of bits for each value.

    Attributes:
        bits: 8, 4, 2 or 1.
        clip: Values beyond this number of standard deviations of their row get the last level; the best number for
            normally distributed values is finite, because their largest values are rare.
    """

    bits: int
    clip: float = math.inf

    @property
    def highest(self) -> int:
        """The highest level; the lowest is its negative."""
        return 127 if self.bits == 8 else 2**self.bits - 1

    def code_bytes(self, width: int) -> int:
        """Return the size of the codes of a row of this width; the last byte may have room for more values."""
        return -(-width * self.bits // 8)

    def row_bytes(self, width: int) -> int:
        """Return the size of a packed row of this width: the codes, and a scale of 4 bytes."""
        return self.code_bytes(width) + SCALE_BYTES

    def quantise(self, rows: Float32) -> tuple[Int8, Float32]:
        """Return levels ``[t, d]`` and scales ``[t]``.

        The scale is ``<y, y> / <v, y>``, so that the inner product of a row with what is read of it is that of the row
        with itself. It is limited to ``2 <v, y> / <v, v>``, so that what is read is never further from the row than
        its length (this matters only to rows of a few large values). A row of zeros has the scale 0.
        """
        largest = np.abs(rows).max(axis=1, initial=0.0, keepdims=True)
        unit = rows / np.where(largest > 0, largest, np.float32(1))
        squares = np.einsum("td,td->t", unit, unit, dtype=np.float64)
        if self.bits == 1:
            levels = np.where(unit < 0, np.int8(-1), np.int8(1))
        else:
            deviation = np.sqrt(squares / max(1, rows.shape[1]))
            end = np.minimum(1.0, self.clip * deviation) if math.isfinite(self.clip) else np.ones(len(rows))
            # Halves of the distance of two levels; rows of zeros are divided by 1.
            by = (self.highest / np.where(end > 0, end, 1.0)).astype(np.float32)[:, None]
            wide = np.rint(unit * by) if self.bits == 8 else np.floor(unit * by / 2) * 2 + 1
            levels = np.clip(wide, -self.highest, self.highest, out=wide).astype(np.int8)
        along = np.einsum("td,td->t", levels, unit, dtype=np.float64)
        lengths = np.einsum("td,td->t", levels, levels, dtype=np.float64)
        safe = np.where(along > 0, along, 1.0)
        scales = np.minimum(squares / safe, 2 * along / np.maximum(lengths, 1.0))
        return levels, (scales * largest[:, 0]).astype(np.float32)

    def pack(self, levels: Int8, scales: Float32) -> bytes:
        """Return ``t * row_bytes(d)`` bytes: for each row its codes, then its scale as a little-endian float32.

        Byte j of the codes holds the values j, j + b, j + 2b, … of a row, b being the size of the codes, the first one
        in the lowest bits.
        """
        count, width = levels.shape
        size, planes = self.code_bytes(width), 8 // self.bits
        packed = np.zeros((count, self.row_bytes(width)), dtype=np.uint8)
        if self.bits == 8:
            packed[:, :size] = levels.view(np.uint8)
        else:
            codes = np.zeros((count, size * planes), dtype=np.uint8)
            codes[:, :width] = (levels + np.int8(self.highest)).view(np.uint8) >> 1
            for plane in range(planes):
                packed[:, :size] |= codes[:, plane * size : (plane + 1) * size] << (plane * self.bits)
        packed[:, size:] = scales.astype("<f4")[:, None].view(np.uint8)
        return packed.tobytes()

    def unpack(self, packed: bytes | memoryview, width: int) -> tuple[Int8, Float32]:
        """Return the levels ``[t, width]`` and scales ``[t]`` that were packed."""
        rows = np.frombuffer(packed, dtype=np.uint8).reshape(-1, self.row_bytes(width))
        size = self.code_bytes(width)
        scales = np.ascontiguousarray(rows[:, size:]).view("<f4")[:, 0].astype(np.float32)
        if self.bits == 8:
            return rows[:, :size].view(np.int8), scales
        planes = 8 // self.bits
        codes = np.concatenate(
            [rows[:, :size] >> (plane * self.bits) & self.highest for plane in range(planes)], axis=1
        )[:, :width]
        return (codes * 2).view(np.int8) - np.int8(self.highest), scales
