"""A fixed orthonormal matrix that spreads each value of a row over many: signs and Walsh-Hadamard transforms.

It is made of additions, subtractions and products of single numbers in a fixed order, so its results are the same
bit for bit on every machine, which those of a matrix product or of a random generator need not be.
"""

from __future__ import annotations

import numpy as np

from m3_connectors.embeddings import Float32


def rotate(rows: Float32) -> Float32:
    """Return rows ``[t, d]`` multiplied by the matrix, float32."""
    columns = np.ascontiguousarray(rows.T, dtype=np.float32) * _signs(len(rows.T), 0)
    _transform(columns)
    if _blocks(len(columns))[1:]:
        # Blocks of a width that is no power of two are mixed by a second round over other blocks.
        columns = columns[::-1] * _signs(len(columns), 1)
        _transform(columns)
    return np.ascontiguousarray(columns.T)


def rotate_back(rows: Float32) -> Float32:
    """Return rows ``[t, d]`` multiplied by the transposed matrix, which undoes ``rotate``, float32."""
    columns = rows.T.astype(np.float32, order="C")
    if _blocks(len(columns))[1:]:
        _transform(columns)
        columns = np.ascontiguousarray((columns * _signs(len(columns), 1))[::-1])
    _transform(columns)
    return np.ascontiguousarray((columns * _signs(len(columns), 0)).T)


def _transform(columns: Float32) -> None:
    """Multiply ``[d, t]`` in place by Hadamard matrices along its diagonal, one for each block."""
    start = 0
    for size in _blocks(len(columns)):
        block = columns[start : start + size]
        half = 1
        while half < size:
            pairs = block.reshape(size // (2 * half), 2, half, -1)
            difference = pairs[:, 0] - pairs[:, 1]
            pairs[:, 0] += pairs[:, 1]
            pairs[:, 1] = difference
            half *= 2
        block *= np.float32(size**-0.5)
        start += size


def _blocks(width: int) -> list[int]:
    """Return the powers of two whose sum is the width, the largest first."""
    return [1 << bit for bit in reversed(range(width.bit_length())) if width >> bit & 1]


def _signs(width: int, round: int) -> Float32:
    """Return ``[width, 1]`` numbers 1 and -1: the highest bits of a hash of their positions."""
    mixed = np.arange(width, dtype=np.uint32) + np.uint32(1 + 0x9E3779B9 * round % 2**32)
    for factor in (0x85EBCA6B, 0xC2B2AE35):
        mixed = np.multiply(mixed ^ mixed >> 15, factor, dtype=np.uint32)
    return np.where((mixed ^ mixed >> 16) >> 31, np.float32(-1), np.float32(1))[:, None]
