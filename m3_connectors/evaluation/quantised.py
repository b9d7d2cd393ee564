"""Sparse weights as the reference's scripts hand them to Lucene, to reproduce the paper's table.

They round every weight of queries and documents up to a whole hundredth, ``ceil(100 w)`` (FlagEmbedding,
``C_MTEB/MKQA/sparse_retrieval/step0-encode_query-and-corpus.py``), rank by the product of these integers, and
divide it by 10,000 before they add it to a dense score (``hybrid_retrieval/step0-hybrid_search_results.py``).
Only the sparse list and Dense+Sparse see these scores; All re-ranks by the model's own
(``multi_vector_rerank``).
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import scipy.sparse as sp

from m3_connectors.embeddings import M3Embeddings, ModelInfo

SCALE = 10_000
"""A product of quantised weights is so many times that of the weights."""


def quantised(embeddings: M3Embeddings) -> M3Embeddings:
    """The dense and sparse components of the same texts, sparse weights as whole numbers of hundredths.

    The model is marked, so that a collection of such weights refuses plain ones.
    """
    weights = embeddings.sparse
    hundredths = np.ceil(weights.data * np.float32(100))
    return embeddings.replace(
        sparse=sp.csr_array((hundredths, weights.indices, weights.indptr), shape=weights.shape),
        multivectors=None,
        model=embeddings.model and quantised_model(embeddings.model),
    )


def quantised_model(model: ModelInfo) -> ModelInfo:
    """Who the quantised weights are of."""
    fingerprint = hashlib.sha256(f"{model.weights_fingerprint} ceil(100 w)".encode()).hexdigest()
    return dataclasses.replace(
        model, name=f"{model.name}, sparse weights in hundredths", weights_fingerprint=fingerprint
    )
