"""Computes the three representations from hidden states (paper section 3.2), without padding."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3_connectors.embeddings import Float32, Int64


def dense_vectors(hidden: Tensor, cls_rows: Tensor, cls_texts: Tensor, texts: int) -> Tensor:
    """Return unit vectors from the CLS states; if a text has several CLS tokens, from their mean.

    Args:
        hidden: ``[tokens, d]``.
        cls_rows: int64 ``[cls]``, the rows of ``hidden`` that are CLS tokens.
        cls_texts: int64 ``[cls]``, the index of the text of each CLS token.
        texts: The number of texts.

    Returns:
        float32 ``[texts, d]``. The sum replaces the mean, because normalising removes the difference.
    """
    sums = torch.zeros(texts, hidden.shape[1], device=hidden.device)
    return F.normalize(sums.index_add_(0, cls_texts, hidden[cls_rows].float()), dim=-1)


def token_weights(hidden: Tensor, head: nn.Linear) -> Tensor:
    """Return ``ReLU(W_lex h)`` of each token: float32 ``[tokens]``."""
    assert head.bias is not None
    return F.relu(hidden.float() @ head.weight[0].float() + head.bias.float())


def sparse_matrix(
    weights: Float32, token_ids: Int64, text_of_token: Int64, *, shape: tuple[int, int], without: Int64
) -> sp.csr_array:
    """Return the largest weight of each token id in each text, without allocating the size of the vocabulary.

    Args:
        weights: ``[tokens]``, at least 0.
        token_ids: ``[tokens]``.
        text_of_token: ``[tokens]``, the row of the result.
        shape: ``(texts, vocabulary)``.
        without: The token ids that get no weight.

    Returns:
        float32 CSR of that shape with sorted indices and weights > 0.
    """
    kept = (weights > 0) & ~np.isin(token_ids, without)
    weights, cells = weights[kept], text_of_token[kept] * shape[1] + token_ids[kept]
    order = np.argsort(cells, kind="stable")
    cells, first = np.unique(cells[order], return_index=True)
    largest = np.maximum.reduceat(weights[order], first) if len(cells) else weights
    rows, columns = np.divmod(cells, shape[1])
    indptr = np.searchsorted(rows, np.arange(shape[0] + 1))
    return sp.csr_array((largest.astype(np.float32), columns, indptr), shape=shape)


def multivector_rows(hidden: Tensor, head: nn.Module) -> Tensor:
    """Return ``norm(W_mul h)`` of the given rows: float32 ``[rows, d]``."""
    return F.normalize(head(hidden).float(), dim=-1)
