"""The best of many scores, and of many vectors that are never held together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from m3_connectors.embeddings import Float32
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.dataset import Dataset
from m3_connectors.evaluation.folder import Run

PASSAGES_AT_ONCE = 1024
"""Documents whose vectors are in memory together."""


def best(ids: Sequence[str], scores: Float32, k: int) -> list[tuple[str, float]]:
    """The k highest scores, ``[n]``, with their ids, best first, equal ones by id."""
    # Equal scores at the border: which of them stay is for their ids to say.
    least = np.partition(scores, -k)[-k] if len(scores) > k else -np.inf
    chosen = sorted((-float(scores[i]), ids[i]) for i in np.flatnonzero(scores >= least).tolist())[:k]
    return [(id, -negative) for negative, id in chosen]


def nearest(
    dataset: Dataset,
    k: int,
    queries: Callable[[Sequence[str]], Float32],
    passages: Callable[[Sequence[str]], Float32],
) -> Run:
    """The k documents of the highest inner product for every query, reading the corpus once.

    Args:
        dataset: Queries and documents.
        k: Documents a query.
        queries: Embeds queries, float32 ``[n, d]``.
        passages: Embeds documents, float32 ``[n, d]``.

    Raises:
        InvalidInput: An embedding is not finite, which would silently drop its document.
    """
    asked = queries(list(dataset.queries.values()))
    found: list[list[tuple[str, float]]] = [[] for _ in dataset.queries]
    for batch in dataset.documents.batches(PASSAGES_AT_ONCE):
        scores = asked @ passages([document.text for document in batch]).T
        ids = [document.id for document in batch]
        if not np.isfinite(scores).all():
            query, document = np.argwhere(~np.isfinite(scores))[0].tolist()
            raise InvalidInput(
                f"the embeddings of query {list(dataset.queries)[query]!r} and document {ids[document]!r} have "
                "no finite product: the model is broken for one of these texts."
            )
        for i, (kept, row) in enumerate(zip(found, scores, strict=True)):
            both = kept + best(ids, row, k)
            values = np.array([score for _, score in both], dtype=np.float32)
            found[i] = best([id for id, _ in both], values, k)
    return dict(zip(dataset.queries, found, strict=True))
