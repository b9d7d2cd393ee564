"""Encoded rows as float32 vectors, for a server that keeps vectors but has no type for bytes.

Three bytes are one whole number below 2**24, which float32 holds exactly, so neither JSON nor a check for NaN can
change it. A row of n bytes takes ``ceil(n / 3)`` floats. Scores of these vectors mean nothing; nobody asks for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from m3_connectors.embeddings import Float32

CARRIER = "float32"
"""The type of the vectors."""

_BYTES = 3
"""The number of bytes that one float carries."""


def carried_width(row_bytes: int) -> int:
    """Return the number of floats that carry a row of this number of bytes."""
    return -(-row_bytes // _BYTES)


def carry(encoded: bytes, row_bytes: int) -> Float32:
    """Return encoded rows as vectors, float32 ``[rows, carried_width(row_bytes)]``."""
    rows = np.frombuffer(encoded, dtype=np.uint8).reshape(-1, row_bytes)
    padded = np.zeros((len(rows), carried_width(row_bytes) * _BYTES), dtype=np.uint8)
    padded[:, :row_bytes] = rows
    words = np.zeros((len(rows), carried_width(row_bytes), 4), dtype=np.uint8)
    words[..., :_BYTES] = padded.reshape(len(rows), carried_width(row_bytes), _BYTES)
    return words.view("<u4")[..., 0].astype(np.float32)


def carried(vectors: Any, row_bytes: int) -> bytes:
    """Return the encoded rows that the vectors of a point carry.

    Raises:
        ValueError: The vectors carry no rows of this size.
    """
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2:
        raise ValueError("they are not rows")
    if vectors.shape[1] != carried_width(row_bytes):
        raise ValueError(f"a row has {vectors.shape[1]} numbers, not {carried_width(row_bytes)}")
    whole = (vectors >= 0) & (vectors < 2**24) & (vectors == np.floor(vectors))
    if not whole.all():
        raise ValueError(f"a row has the number {vectors[~whole][0]}, which is not three bytes")
    words = vectors.astype("<u4").view(np.uint8).reshape(*vectors.shape, 4)
    return words[..., :_BYTES].reshape(len(vectors), vectors.shape[1] * _BYTES)[:, :row_bytes].tobytes()
