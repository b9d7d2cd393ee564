"""The largest product of each query row with the rows of each document, from encoded rows and by blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from m3_connectors.embeddings import Float32
from m3_connectors.errors import InvalidInput

Bytes = bytes | bytearray | memoryview

_ROWS_AT_ONCE = 2048
"""Rows that are unpacked and multiplied together, so that they stay in the cache."""


def float_maxima(query: Float32, documents: Sequence[Bytes], dtype: np.dtype[np.floating]) -> Float32:
    """Return the largest products of float rows.

    Args:
        query: float32 ``[N, d]``.
        documents: For each document its rows, ``[t, d]`` numbers of ``dtype``.
        dtype: float16 or float32, little-endian.

    Returns:
        float32 ``[n, N]``.
    """
    width = query.shape[1]

    def multiplied(block: Sequence[Bytes]) -> Float32:
        rows = np.concatenate([np.frombuffer(part, dtype) for part in block]).reshape(-1, width)
        products: Float32 = rows.astype(np.float32, copy=False) @ query.T
        return products

    return _maxima(documents, len(query), width * dtype.itemsize, multiplied)


def code_maxima(query: npt.NDArray[np.int8], documents: Sequence[Bytes], bits: int) -> Float32:
    """Return the largest products of coded rows (``backends.compact`` describes their bytes).

    Args:
        query: Whole numbers, int8 ``[N, d]``.
        documents: For each document its rows, codes of ``bits`` bits and scales.
        bits: 8, 4, 2 or 1.

    Returns:
        float32 ``[n, N]``, in units of the query's numbers and of values of the rows.
    """
    width, planes = query.shape[1], 8 // bits
    size, mask = -(-width // planes), 2**bits - 1
    padded = np.zeros((len(query), size * planes), dtype=np.float32)
    padded[:, :width] = query
    sums = padded.sum(axis=1) * mask

    def multiplied(block: Sequence[Bytes]) -> Float32:
        joined = np.concatenate([np.frombuffer(part, np.uint8) for part in block]).reshape(-1, size + 4)
        scales = np.ascontiguousarray(joined[:, size:]).view("<f4").astype(np.float32)
        if bits == 8:
            whole: Float32 = joined[:, :size].view(np.int8).astype(np.float32) @ padded.T
            whole *= scales
            return whole
        codes = np.empty((len(joined), size * planes), dtype=np.float32)
        for plane in range(planes):
            codes[:, plane * size : (plane + 1) * size] = joined[:, :size] >> (plane * bits) & mask
        return (2 * (codes @ padded.T) - sums) * scales

    return _maxima(documents, len(query), size + 4, multiplied)


def _maxima(
    documents: Sequence[Bytes],
    query_rows: int,
    row_bytes: int,
    products: Callable[[Sequence[Bytes]], Float32],
) -> Float32:
    counts = np.array([memoryview(document).nbytes // row_bytes for document in documents], dtype=np.int64)
    if query_rows == 0 or (counts == 0).any():
        raise InvalidInput(
            "the query or a document has no multi-vector rows, so its score is undefined.\n"
            "  Leave out texts without tokens."
        )
    result = np.empty((len(documents), query_rows), dtype=np.float32)
    for start, stop in _blocks(counts):
        starts = np.cumsum(counts[start:stop]) - counts[start:stop]
        result[start:stop] = np.maximum.reduceat(products(documents[start:stop]), starts, axis=0)
    return result


def _blocks(counts: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield bounds of whole documents that fit in a block, at least one."""
    ends, start = np.cumsum(counts), 0
    while start < len(counts):
        limit = ends[start] - counts[start] + _ROWS_AT_ONCE
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        yield start, stop
        start = stop
