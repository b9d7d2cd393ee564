"""Vectors as bytes, for stores that do not search them: self-describing, little-endian, no pickle.

A blob is a header (magic, version, kind, code, rows, width) and the raw values. Multi-vectors are encoded by
their ``Precision``, whose code is in the header; sparse weights are ``uint32`` token ids followed by
``float32`` weights, so that the exact weights survive in stores that round their own (Elasticsearch keeps 9 bits).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from m3_connectors.backends.precision import PRECISIONS, Precision
from m3_connectors.embeddings import Float32, MultiVectors

_HEADER = struct.Struct("<2sBBBxxxII")
"""magic, version, kind, code, padding, rows, width: 16 bytes, so that the values stay aligned."""

HEADER_BYTES = _HEADER.size

_MAGIC = b"m3"
_VERSION = 1
_MULTIVECTOR, _SPARSE = 1, 2
_SPARSE_CODE = 4
_PRECISIONS = {precision.code: precision for precision in PRECISIONS.values()}


def pack_multivector(rows: Float32, precision: Precision) -> bytes:
    """Encode float32 rows ``[tokens, d]`` as a blob."""
    return _packed(precision, len(rows), rows.shape[1], precision.encode(rows))


def pack_multivectors(documents: MultiVectors, precision: Precision) -> list[bytes]:
    """Encode the rows of each document as a blob; the bytes that rows were read from are kept."""
    encoded = precision.encode_documents(documents)
    return [
        _packed(precision, count, documents.dimension, rows)
        for count, rows in zip(documents.counts.tolist(), encoded, strict=True)
    ]


def pack_in_parts(document: MultiVectors, precision: Precision, rows_per_part: int) -> Iterator[bytes]:
    """Yield blobs of one document's rows; ``rows_per_part`` is a multiple of ``precision.rows_together``."""
    (encoded,) = precision.encode_documents(document)
    width, rows = document.dimension, len(document.rows)
    step = precision.encoded_bytes(rows_per_part, width)
    for i, start in enumerate(range(0, len(encoded), step)):
        count = min(rows_per_part, rows - i * rows_per_part)
        yield _packed(precision, count, width, encoded[start : start + step])


def _packed(precision: Precision, rows: int, width: int, encoded: bytes) -> bytes:
    return _HEADER.pack(_MAGIC, _VERSION, _MULTIVECTOR, precision.code, rows, width) + encoded


def multivector_bytes(
    packed: Sequence[bytes | memoryview], precision: Precision, dimension: int
) -> list[memoryview]:
    """Return the encoded rows of blobs without copying them, as ``Precision.scores`` takes them.

    Raises:
        ValueError: An item is not a multi-vector blob of this precision, or its rows are not ``dimension`` wide.
    """
    for blob in packed:
        code, _, width = _read_header(blob, _MULTIVECTOR)
        if width != dimension:
            raise ValueError(f"a vector blob has rows whose width is not {dimension}")
        if code != precision.code:
            raise ValueError(f"a vector blob holds {_PRECISIONS[code].name} rows, not {precision.name}")
    return [memoryview(blob)[_HEADER.size :] for blob in packed]


def unpack_multivectors(packed: Sequence[bytes], precision: Precision, dimension: int) -> MultiVectors:
    """Decode the rows of many blobs into one array.

    Raises:
        ValueError: An item is not a multi-vector blob of this precision, or its rows are not ``dimension`` wide.
    """
    return precision.decode_documents(multivector_bytes(packed, precision, dimension), dimension)


def pack_sparse(token_ids: npt.NDArray[np.integer], weights: Float32) -> bytes:
    """Encode token ids and weights, both ``[tokens]``, as a blob."""
    header = _HEADER.pack(_MAGIC, _VERSION, _SPARSE, _SPARSE_CODE, len(token_ids), 1)
    return header + token_ids.astype("<u4").tobytes() + weights.astype("<f4").tobytes()


def unpack_sparse(blob: bytes) -> tuple[npt.NDArray[np.int64], Float32]:
    """Decode token ids (int64) and weights (float32), both ``[tokens]``.

    Raises:
        ValueError: The bytes are not a sparse blob.
    """
    _, count, _ = _read_header(blob, _SPARSE)
    token_ids = np.frombuffer(blob, dtype="<u4", count=count, offset=_HEADER.size).astype(np.int64)
    weights = np.frombuffer(blob, dtype="<f4", count=count, offset=_HEADER.size + 4 * count)
    return token_ids, weights.astype(np.float32)


def _read_header(blob: bytes | memoryview, kind: int) -> tuple[int, int, int]:
    if len(blob) < _HEADER.size:
        raise ValueError(f"a vector blob of {len(blob)} bytes is shorter than its header")
    magic, version, found, code, rows, width = _HEADER.unpack_from(blob)
    if magic != _MAGIC or version != _VERSION or found != kind or code not in _PRECISIONS:
        raise ValueError(f"the bytes are not a vector blob of kind {kind}: {bytes(blob[: _HEADER.size])!r}")
    size = 8 * rows if kind == _SPARSE else _PRECISIONS[code].encoded_bytes(rows, width)
    if len(blob) != _HEADER.size + size:
        raise ValueError(f"a vector blob of {rows} rows has {len(blob)} bytes, which is not its full length")
    return code, rows, width
