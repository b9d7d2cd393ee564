"""Read exact vectors from the blobs of hits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import anyio.to_thread
import numpy as np
import pybase64
import scipy.sparse as sp

from m3_connectors.backends import blobs
from m3_connectors.backends.elasticsearch.layout import BACKEND, MULTIVECTOR_BLOB, SPARSE_BLOB
from m3_connectors.embeddings import Component, Float32, M3Embeddings, MultiVectors
from m3_connectors.errors import Corrupt
from m3_connectors.scoring import multivector_scores, sparse_scores

Hits = Sequence[Mapping[str, Any]]
T = TypeVar("T")


def multivectors(hits: Hits, dimension: int) -> MultiVectors:
    """Return the multi-vectors of hits, in their order; several blobs of a hit are joined in order.

    Raises:
        Corrupt: A hit has no readable blob.
    """

    def read() -> MultiVectors:
        joined = blobs.unpack_multivectors(_blobs(hits, MULTIVECTOR_BLOB), dimension)
        first_blobs = np.cumsum([0, *(len(hit["fields"][MULTIVECTOR_BLOB]) for hit in hits)])
        return MultiVectors(joined.rows, joined.offsets[first_blobs])

    return _read(read)


def sparse_rows(hits: Hits, vocabulary_size: int) -> sp.csr_array:
    """Return the sparse vectors of hits, CSR ``[hits, vocabulary]``.

    Raises:
        Corrupt: A hit has no readable blob.
    """

    def read() -> sp.csr_array:
        found = [blobs.unpack_sparse(blob) for blob in _blobs(hits, SPARSE_BLOB)]
        indptr = np.cumsum([0, *(len(token_ids) for token_ids, _ in found)])
        indices = np.concatenate([np.empty(0, dtype=np.int64), *(token_ids for token_ids, _ in found)])
        data = np.concatenate([np.empty(0, dtype=np.float32), *(weights for _, weights in found)])
        return sp.csr_array((data, indices, indptr), shape=(len(found), vocabulary_size))

    return _read(read)


def scores_in(components: Sequence[Component], query: M3Embeddings, hits: Hits) -> dict[Component, Float32]:
    """Return s_lex and s_mul, if they are among the components, of hits with their blobs; float32 ``[hits]``.

    Raises:
        Corrupt: A hit has no readable vector.
    """
    scores: dict[Component, Float32] = {}
    if "sparse" in components:
        scores["sparse"] = sparse_scores(query.sparse, sparse_rows(hits, query.sparse.shape[1]))
    if "multivector" in components:
        rows = multivectors(hits, query.multivectors.dimension)
        scores["multivector"] = multivector_scores(query.multivectors[0], rows)
    return scores


async def sparse_scores_of(query: M3Embeddings, hits: Hits) -> Float32:
    """Return the exact s_lex of hits, computed in a thread."""
    components: list[Component] = ["sparse"]
    return (await anyio.to_thread.run_sync(scores_in, components, query, hits))["sparse"]


def _blobs(hits: Hits, field: str) -> list[bytes]:
    # With validation, which is also the faster code path: 2 ms instead of 60 ms for 26 MB.
    return [pybase64.b64decode(text, validate=True) for hit in hits for text in hit["fields"][field]]


def _read(read: Callable[[], T]) -> T:
    try:
        return read()
    except (KeyError, ValueError) as error:
        raise Corrupt(
            f"a document's vectors cannot be read: {error}.\n"
            "  Another program may have written it. Index the document again.",
            backend=BACKEND,
            operation="read",
        ) from error
