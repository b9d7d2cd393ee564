"""The largest product of each query row with the rows of each document, from encoded rows and by blocks.

Products of whole numbers are exact, so it makes no difference to a score which kernel computed them. torch has the
fastest one, and is used in a process that has imported torch anyway, as every process with an encoder has. It is never
imported for this: that takes seconds and hundreds of megabytes, which a process without an encoder does not pay.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from m3_connectors.embeddings import Float32
from m3_connectors.errors import InvalidInput

Bytes = bytes | bytearray | memoryview
UInt8 = npt.NDArray[np.uint8]

SCALE_BYTES = 4
"""The size of the scale behind the codes of a row."""

_BLOCK_BYTES = 8 * 2**20
"""Unpacked rows in memory at a time: they are multiplied before they leave the cache that all cores share."""


def float_maxima(query: Float32, documents: Sequence[Bytes], dtype: np.dtype[np.floating]) -> Float32:
    """Return the largest products of rows of floating-point numbers.

    Args:
        query: float32 ``[N, d]``.
        documents: For each document its rows, ``[t, d]`` numbers of ``dtype``.
        dtype: float16 or float32, little-endian.

    Returns:
        float32 ``[n, N]``.

    Raises:
        InvalidInput: The query or a document has no rows.
    """
    width, torch = query.shape[1], _loaded_torch()

    def products(joined: UInt8) -> Float32:
        rows = joined.view(dtype)
        product: Float32
        if torch is None:
            product = rows.astype(np.float32, copy=False) @ query.T
        else:  # it converts float16 on all cores, and numpy on one
            product = (torch.from_numpy(rows).float() @ torch.from_numpy(query).t()).numpy()
        return product

    return _maxima(documents, len(query), width * dtype.itemsize, 4 * width, products)


def code_maxima(query: npt.NDArray[np.int8], documents: Sequence[Bytes], bits: int) -> Float32:
    """Return the largest products of coded rows, whose bytes ``backends.compact`` describes.

    Args:
        query: Whole numbers, int8 ``[N, d]``.
        documents: For each document its rows: codes of ``bits`` bits, and a scale.
        bits: 8, 4, 2 or 1.

    Returns:
        float32 ``[n, N]``: products of the query's numbers and the rows' values.

    Raises:
        InvalidInput: The query or a document has no rows.
    """
    torch = _loaded_torch()
    kernel = _torch_products(torch) if torch is not None and _multiplies(torch) else _numpy_products
    size = -(-query.shape[1] * bits // 8)
    products = functools.partial(kernel, _padded(query, size * 8 // bits), bits)
    return _maxima(documents, len(query), size + SCALE_BYTES, size * 8 // bits, products)


def _padded(query: npt.NDArray[np.int8], width: int) -> npt.NDArray[np.int8]:
    """Return the query with zeros for the values that the last byte of codes has room for."""
    padded = np.zeros((len(query), width), dtype=np.int8)
    padded[:, : query.shape[1]] = query
    return padded


def _maxima(
    documents: Sequence[Bytes],
    query_rows: int,
    row_bytes: int,
    unpacked_bytes: int,
    products: Callable[[UInt8], Float32],
) -> Float32:
    counts = [memoryview(document).nbytes // row_bytes for document in documents]
    if query_rows == 0 or 0 in counts:
        raise InvalidInput(
            "the query or a document has no multi-vector rows, so its score is undefined.\n"
            "  Leave out texts without tokens."
        )
    result = np.full((len(documents), query_rows), -np.inf, dtype=np.float32)
    rows_at_once = max(1, min(sum(counts), _BLOCK_BYTES // unpacked_bytes))
    space = np.empty((rows_at_once, row_bytes), dtype=np.uint8)
    for owners, parts in _blocks(documents, counts, row_bytes, rows_at_once):
        starts = np.cumsum([0, *(len(part) // row_bytes for part in parts)])
        joined, starts = space[: starts[-1]], starts[:-1]
        np.concatenate(parts, out=joined.reshape(-1))
        best = np.maximum.reduceat(products(joined), starts, axis=0)
        # A block never has two parts of one document.
        result[owners] = np.maximum(result[owners], best)
    return result


def _blocks(
    documents: Sequence[Bytes], counts: Sequence[int], row_bytes: int, rows_at_once: int
) -> Iterator[tuple[list[int], list[UInt8]]]:
    """Yield positions of documents with their bytes, or parts of them, of so many rows together."""
    owners, parts, left = list[int](), list[UInt8](), rows_at_once
    for at, document in enumerate(documents):
        rows, start = np.frombuffer(document, dtype=np.uint8), 0
        while start < counts[at]:
            stop = min(counts[at], start + left)
            owners.append(at)
            parts.append(rows[start * row_bytes : stop * row_bytes])
            left -= stop - start
            start = stop
            if not left:
                yield owners, parts
                owners, parts, left = [], [], rows_at_once
    if parts:
        yield owners, parts


def _numpy_products(query: npt.NDArray[np.int8], bits: int, joined: UInt8) -> Float32:
    """Return the products ``[t, N]`` of rows of bytes; numpy multiplies whole numbers fastest as float32."""
    codes, weights = joined[:, :-SCALE_BYTES], query.astype(np.float32)
    size, sums = codes.shape[1], weights.sum(axis=1)
    if bits == 8:
        return _scaled(codes.view(np.int8).astype(np.float32) @ weights.T, bits, sums, joined)
    mask, unpacked = 2**bits - 1, np.empty((len(codes), weights.shape[1]), dtype=np.float32)
    for plane in range(8 // bits):
        unpacked[:, plane * size : (plane + 1) * size] = codes >> (plane * bits) & mask
    return _scaled(unpacked @ weights.T, bits, sums, joined)


def _scaled(products: Float32, bits: int, sums: Float32, joined: UInt8) -> Float32:
    """Return products with values, in place, given products ``[t, N]`` with codes and the sums ``[N]`` of the query."""
    scales = joined[:, -SCALE_BYTES:].copy().view("<f4").astype(np.float32, copy=False)
    if bits == 8:
        products *= scales
    else:  # the code u means the level 2u - mask
        products -= (2**bits - 1) / np.float32(2) * sums
        products *= 2 * scales
    return products


def _torch_products(torch: Any) -> Callable[[npt.NDArray[np.int8], int, UInt8], Float32]:
    """Return the same products by torch's product of int8 numbers, which uses all cores."""

    def products(query: npt.NDArray[np.int8], bits: int, joined: UInt8) -> Float32:
        codes, weights = torch.from_numpy(joined)[:, :-SCALE_BYTES], torch.from_numpy(query).t()
        if bits == 8:
            unpacked = codes
        else:
            # All planes in one operation: on a busy machine, the start of one on all cores is what takes time.
            unpacked = codes[:, None, :] >> torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
            unpacked = unpacked.bitwise_and_(2**bits - 1).view(len(codes), -1)
        whole = torch._int_mm(unpacked.view(torch.int8), weights).numpy()
        return _scaled(whole.astype(np.float32), bits, query.sum(axis=1, dtype=np.float32), joined)

    return products


def one_core() -> contextlib.AbstractContextManager[object]:
    """Let kernels of this thread use one core, for callers that score several lists in threads of their own.

    On a machine with other work, such as a database that sends the next answer, torch's threads wait for each other
    longer than they compute: 200 documents took 255 ms on two cores, and 24 ms on one.
    """
    return contextlib.nullcontext() if _loaded_torch() is None else _openmp().limit(limits=1)


@functools.cache
def _openmp() -> ThreadpoolController:
    # Other libraries have limits for the whole process.
    return ThreadpoolController().select(user_api="openmp")


def _loaded_torch() -> Any:
    """Return torch if this process has imported it, or None."""
    # Not from ``sys.modules``: another thread may be in the middle of the import, for which this one waits. None
    # is there where an import is forbidden.
    return importlib.import_module("torch") if sys.modules.get("torch") else None


@functools.cache
def _multiplies(torch: Any) -> bool:
    """Return whether this torch has its private product of int8 numbers, with correct results on this machine."""
    rng = np.random.default_rng(0)
    for bits in (8, 4, 2, 1):
        query = rng.integers(-127, 128, (5, 64), dtype=np.int8)
        joined = rng.integers(0, 256, (70, 8 * bits + SCALE_BYTES), dtype=np.uint8)
        joined[:, -SCALE_BYTES:] = rng.uniform(0.5, 2, (70, 1)).astype("<f4").view(np.uint8)
        try:
            found = _torch_products(torch)(query, bits, joined)
        except (AttributeError, RuntimeError, TypeError):
            return False
        if not np.array_equal(found, _numpy_products(query, bits, joined)):
            return False
    return True
