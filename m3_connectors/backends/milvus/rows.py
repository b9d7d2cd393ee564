"""Convert documents and their embeddings to Milvus entities, and back."""

from __future__ import annotations

import dataclasses
import itertools
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pybase64
import scipy.sparse as sp

from m3_connectors.backends.blobs import pack_multivectors
from m3_connectors.backends.milvus.filters import answers
from m3_connectors.backends.milvus.layout import (
    MAX_DYNAMIC_BYTES,
    MAX_ELEMENTS,
    MAX_TEXT_BYTES,
    TERM_BYTES,
    Layout,
)
from m3_connectors.backends.milvus.naming import id_of, key_of
from m3_connectors.documents import Document, metadata_json
from m3_connectors.embeddings import Component, M3Embeddings
from m3_connectors.errors import InvalidInput

NO_TOKEN = 2**32 - 2
"""The token id in a sparse vector without tokens: milvus-lite refuses an empty one, and no vocabulary has
this id."""

_PIECE_BYTES = MAX_TEXT_BYTES // 4 * 3
"""The number of bytes whose base64 fills one element; a multiple of 3, so only the end of a document has
padding."""


@dataclasses.dataclass(frozen=True)
class Entity:
    """One document in the form in which it is sent.

    Attributes:
        row: The entity of the documents' collection.
        parts: Entities of the parts' collection, which are written before it; usually none.
        size_bytes: The approximate size of ``row`` in a request.
    """

    row: dict[str, Any]
    parts: tuple[dict[str, Any], ...]
    size_bytes: int


def entities(
    layout: Layout, documents: Sequence[Document], embeddings: M3Embeddings, max_row_bytes: int
) -> list[Entity]:
    """Return an entity for each document with its embeddings, row i for document i.

    Raises:
        InvalidInput: A document does not fit into one row, or has more filterable values than a row can hold.
    """
    return [_entity(layout, document, embeddings, i, max_row_bytes) for i, document in enumerate(documents)]


def document_of(row: Mapping[str, Any]) -> Document:
    """Return the document of an entity with ``key``, ``text`` and ``metadata``."""
    return Document(id_of(row["key"]), "".join(row["text"]), json.loads("".join(row["metadata"])))


def part_keys(row: Mapping[str, Any]) -> list[str]:
    """Return the keys of the parts that an entity with ``version`` and ``parts`` refers to."""
    return [f"{row['version']}.{i}" for i in range(row.get("parts", 0))]


def packed(row: Mapping[str, Any]) -> list[bytes]:
    """Return the blob of an entity's multi-vector. Raises ValueError if it is not base64."""
    # Only the last element has padding, so all elements together are one base64 text.
    return [pybase64.b64decode("".join(row["multivector"]), validate=True)]


def embeddings_of(
    layout: Layout,
    rows: Sequence[Mapping[str, Any]],
    components: Sequence[Component],
) -> M3Embeddings:
    """Return the dense and sparse vectors of entities as columns."""
    model = layout.schema.model
    return M3Embeddings(
        dense=np.array([row["dense"] for row in rows], dtype=np.float32).reshape(-1, model.dimension)
        if "dense" in components
        else None,
        sparse=_sparse_matrix([row["sparse"] for row in rows], model.vocabulary_size)
        if "sparse" in components
        else None,
        model=model,
    )


def sparse_of(matrix: sp.csr_array, i: int) -> dict[int, float]:
    """Return row i of a CSR matrix in the form that pymilvus accepts."""
    start, stop = matrix.indptr[i], matrix.indptr[i + 1]
    return dict(zip(matrix.indices[start:stop].tolist(), matrix.data[start:stop].tolist(), strict=True))


def stamp(seconds: float) -> str:
    """Return the prefix of versions (and of their parts' keys) of this time: 12 digits that sort by time."""
    return f"{int(1e3 * seconds):012x}"


def _entity(
    layout: Layout, document: Document, embeddings: M3Embeddings, i: int, max_row_bytes: int
) -> Entity:
    where = f"document {document.id!r}"
    found = answers(document.metadata)
    if len(found.terms) > MAX_ELEMENTS:
        raise InvalidInput(
            f"{where} has metadata with {len(found.terms)} filterable values; Milvus stores at most "
            f"{MAX_ELEMENTS} for a document.\n"
            "  Move long lists from the metadata to the text, or leave them out."
        )
    bounds_bytes = len(json.dumps(found.bounds))
    if bounds_bytes > MAX_DYNAMIC_BYTES:
        raise InvalidInput(
            f"{where} has numbers or dates in {len(found.bounds) // 2} fields of its metadata; Milvus "
            f"stores about {len(found.bounds) // 2 * MAX_DYNAMIC_BYTES // bounds_bytes} for a document.\n"
            "  Leave wide tables out of the metadata."
        )
    text = document.text.encode()
    metadata = metadata_json(document.metadata).encode()
    row: dict[str, Any] = {
        "key": key_of(document.id),
        "dense": embeddings.dense[i],
        "text": _text_pieces(text),
        "metadata": _text_pieces(metadata),
        "terms": list(found.terms) if layout.terms_as_array else " ".join(found.terms),
        **found.bounds,
    }
    size = 256 + embeddings.dense[i].nbytes + len(text) + len(metadata)
    size += (TERM_BYTES + 4) * len(found.terms) + bounds_bytes
    if "sparse" in embeddings.components:
        row["sparse"] = sparse_of(embeddings.sparse, i) or {NO_TOKEN: 1.0}
        size += 8 * len(row["sparse"])
    parts: tuple[dict[str, Any], ...] = ()
    if "multivector" in embeddings.components:
        (blob,) = pack_multivectors(embeddings.multivectors[i : i + 1], layout.schema.precision)
        pieces = list(_base64_pieces(blob))
        packed = sum(map(len, pieces))
        version = stamp(time.time()) + secrets.token_hex(10)
        row |= {
            "rows": int(embeddings.multivectors.counts[i]),
            "version": version,
            "parts": 0,
            "multivector": pieces,
        }
        if size + packed > max_row_bytes:
            if not layout.has_parts:
                raise InvalidInput(
                    f"{where} takes {size + packed} bytes with its {row['rows']} rows; a row of Milvus holds "
                    f"at most {max_row_bytes} (max_row_bytes).\n"
                    "  Create the collection with Storage(long_documents='split'), which stores it exactly."
                )
            parts = tuple(_parts(version, pieces, max_row_bytes))
            row |= {"multivector": [], "parts": len(parts)}
        else:
            size += packed
    if size > max_row_bytes:
        raise InvalidInput(
            f"{where} takes {size} bytes without its multi-vector; a row of Milvus holds at most "
            f"{max_row_bytes} (max_row_bytes).\n"
            "  Split its text into several documents, or raise max_row_bytes if the server accepts more."
        )
    return Entity(row, parts, size)


def _parts(version: str, pieces: Sequence[str], max_row_bytes: int) -> Iterator[dict[str, Any]]:
    per_part = max(1, (max_row_bytes - 1024) // MAX_TEXT_BYTES)
    for i, start in enumerate(range(0, len(pieces), per_part)):
        yield {"key": f"{version}.{i}", "multivector": pieces[start : start + per_part], "idle": [0.0, 1.0]}


def _base64_pieces(blob: bytes) -> Iterator[str]:
    for start in range(0, len(blob), _PIECE_BYTES):
        yield pybase64.b64encode_as_string(blob[start : start + _PIECE_BYTES])


def _text_pieces(text: bytes) -> list[str]:
    """Return UTF-8 in pieces of at most ``MAX_TEXT_BYTES``, cut between characters."""
    pieces = []
    start = 0
    while start < len(text):
        stop = start + MAX_TEXT_BYTES
        while stop < len(text) and text[stop] & 0xC0 == 0x80:
            stop -= 1
        pieces.append(text[start:stop].decode())
        start = stop
    return pieces


def _sparse_matrix(rows: Sequence[Mapping[int, float]], width: int) -> sp.csr_array:
    ends = np.cumsum([0, *map(len, rows)])
    token_ids = np.fromiter(itertools.chain.from_iterable(rows), np.int64, ends[-1])
    weights = np.fromiter(itertools.chain.from_iterable(row.values() for row in rows), np.float32, ends[-1])
    real = token_ids != NO_TOKEN
    kept = np.concatenate([[0], np.cumsum(real)])
    matrix = sp.csr_array((weights[real], token_ids[real], kept[ends]), shape=(len(rows), width))
    matrix.sort_indices()
    return matrix
