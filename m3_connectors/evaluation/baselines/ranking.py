"""Select the best of many scores, and of many vectors that do not have to fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from m3_connectors.embeddings import Float32
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.dataset import Dataset
from m3_connectors.evaluation.folder import Run

PASSAGES_AT_ONCE = 1024
"""The number of documents whose vectors are in memory at the same time."""


def best(ids: Sequence[str], scores: Float32, k: int) -> list[tuple[str, float]]:
    """The k highest scores, ``[n]``, with their ids, best first, equal ones by id."""
    chosen = sorted((-float(scores[i]), ids[i]) for i in candidates(scores, k).tolist())[:k]
    return [(id, -negative) for negative, id in chosen]


def candidates(scores: Float32, k: int) -> npt.NDArray[np.int64]:
    """Positions of the k highest scores, and of those equal to the last: which of them stay is for their ids to say."""
    least = np.partition(scores, -k)[-k] if len(scores) > k else -np.inf
    return np.flatnonzero(scores >= least)


def nearest(
    dataset: Dataset,
    k: int,
    queries: Callable[[Sequence[str]], Float32],
    passages: Callable[[Sequence[str]], Float32],
) -> Run:
    """Return the k documents with the highest inner product for every query in one pass over the corpus.

    Args:
        dataset: Queries and documents.
        k: Documents a query.
        queries: Embeds queries, float32 ``[n, d]``.
        passages: Embeds documents, float32 ``[n, d]``.

    Raises:
        InvalidInput: An embedding is not finite, which would silently drop its document.
    """
    asked = queries(list(dataset.queries.values()))
    found = _Best(len(asked), k)
    for batch in dataset.documents.batches(PASSAGES_AT_ONCE):
        scores = asked @ passages([document.text for document in batch]).T
        ids = [document.id for document in batch]
        if not np.isfinite(scores).all():
            query, document = np.argwhere(~np.isfinite(scores))[0].tolist()
            raise InvalidInput(
                f"the embeddings of query {list(dataset.queries)[query]!r} and document {ids[document]!r} have "
                "no finite product.\n  Use another model, or leave out these texts."
            )
        found.add(ids, scores)
    return dict(zip(dataset.queries, found.answers(), strict=True))


class _Best:
    """The k best documents of each query so far; equal scores are ordered by id.

    Most batches of a large corpus hold none of the best of most queries: such queries cost one comparison.
    """

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self._scores: Float32 = np.empty((queries, 0), dtype=np.float32)
        self._ids: npt.NDArray[np.object_] = np.empty((queries, 0), dtype=object)

    def add(self, ids: Sequence[str], scores: Float32) -> None:
        """More documents, with scores ``[queries, n]``."""
        names = np.array(ids, dtype=object)
        missing = min(self._k - self._scores.shape[1], len(ids))
        if missing > 0:  # wider by columns that anything is better than
            wider = ((0, 0), (0, missing))
            self._scores = np.pad(self._scores, wider, constant_values=-np.inf)
            self._ids = np.pad(self._ids, wider, constant_values="")
        width = self._scores.shape[1]
        # Equal ones too: which of them stay is for their ids to say.
        rows = np.flatnonzero(scores.max(axis=1) >= self._scores.min(axis=1))
        both = np.concatenate([self._scores[rows], scores[rows]], axis=1)
        chosen = np.argpartition(-both, width - 1, axis=1)[:, :width]
        least = np.take_along_axis(both, chosen, axis=1).min(axis=1)
        for i in np.flatnonzero((both >= least[:, None]).sum(axis=1) > width).tolist():
            row = int(rows[i])
            kept = self._ids[row].tolist()
            at = np.flatnonzero(both[i] >= least[i]).tolist()
            at.sort(key=lambda j: (-both[i, j], kept[j] if j < width else ids[j - width]))
            chosen[i] = at[:width]
        old = np.take_along_axis(self._ids[rows], np.minimum(chosen, width - 1), axis=1)
        self._scores[rows] = np.take_along_axis(both, chosen, axis=1)
        self._ids[rows] = np.where(chosen < width, old, names[np.maximum(chosen - width, 0)])

    def answers(self) -> Iterator[list[tuple[str, float]]]:
        """Of each query its documents with their scores, best first."""
        for ids, scores in zip(self._ids.tolist(), self._scores.tolist(), strict=True):
            yield sorted(zip(ids, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))
