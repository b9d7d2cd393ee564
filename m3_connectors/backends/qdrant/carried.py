"""Bytes as float32 vectors, for a server that keeps vectors but has no type for bytes.

Three bytes are one whole number below 2**24, which float32 holds exactly, so neither JSON nor a check for NaN can
change it. Scores of these vectors mean nothing; nobody asks for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from m3_connectors.embeddings import Float32

CARRIER = "float32"
"""The type of the vectors."""

WIDTH = 64
"""The number of floats of a vector."""

_BYTES = 3
"""The number of bytes that one float carries."""


def vectors_for(size: int) -> int:
    """Return the number of vectors that carry this number of bytes; there is always room for the mark of the end."""
    return size // (WIDTH * _BYTES) + 1


def most_bytes(vectors: int) -> int:
    """Return the largest number of bytes that this number of vectors carries."""
    return vectors * WIDTH * _BYTES - 1


def carry(encoded: bytes) -> Float32:
    """Return bytes as vectors, float32 ``[vectors_for(len(encoded)), WIDTH]``."""
    vectors = vectors_for(len(encoded))
    # The end is marked by a byte of 1, and only zeros follow.
    padded = np.frombuffer((encoded + b"\1").ljust(vectors * WIDTH * _BYTES, b"\0"), dtype=np.uint8)
    words = np.zeros((vectors, WIDTH, 4), dtype=np.uint8)
    words[..., :_BYTES] = padded.reshape(vectors, WIDTH, _BYTES)
    return words.view("<u4")[..., 0].astype(np.float32)


def carried(vectors: Any) -> bytes:
    """Return the bytes that vectors carry, ``[n, WIDTH]``.

    Raises:
        ValueError: They do not carry bytes.
    """
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2:
        raise ValueError("they are not rows")
    if vectors.shape[1] != WIDTH:
        raise ValueError(f"a row has {vectors.shape[1]} numbers, not {WIDTH}")
    whole = (vectors >= 0) & (vectors < 2**24) & (vectors == np.floor(vectors))
    if not whole.all():
        raise ValueError(f"a row has the number {vectors[~whole][0]}, which is not three bytes")
    words = vectors.astype("<u4").view(np.uint8).reshape(*vectors.shape, 4)
    encoded = words[..., :_BYTES].tobytes().rstrip(b"\0")
    if not encoded.endswith(b"\1"):
        raise ValueError("their end is missing")
    return encoded[:-1]
