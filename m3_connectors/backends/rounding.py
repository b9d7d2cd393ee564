"""Lists of servers that round the weights of sparse vectors: how long they must be, and when they are proven."""

from __future__ import annotations

import dataclasses

import numpy as np

from m3_connectors.embeddings import Float32, M3Embeddings

_MORE = 16


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How far the true s_lex can exceed the score of a server that rounds weights.

    Attributes:
        factor: The largest ratio of the two.
        per_weight: The largest difference beyond that, for a unit of the query's weights.
    """

    factor: float
    per_weight: float = 0.0

    @staticmethod
    def length(limit: int, most: float) -> int:
        """Return how many documents to request for a list of ``limit``: some more, as long as ``most`` allows."""
        return int(min(limit + max(limit // 10, _MORE), most))

    def proves(self, query: M3Embeddings, last: float, scores: Float32, limit: int) -> bool:
        """Whether no document after the last one can be among the best ``limit``.

        Args:
            query: One text.
            last: The server's score of the last document.
            scores: The true scores of all documents up to the last, ``[n]``.
            limit: The length of the list.
        """
        if len(scores) < limit:
            return False
        at_the_cut = np.partition(scores, len(scores) - limit)[len(scores) - limit]
        return bool(last * self.factor + self.per_weight * float(query.sparse.data.sum()) < at_the_cut)
