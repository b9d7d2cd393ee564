"""The hard negatives of a step's queries, and which passages are never a negative of a query.

Hard negatives are found by a search, and a batch brings passages of other queries. Both may answer a query:
then they are neither its positive nor its negatives, and the losses leave them out of the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_connectors.training.data import HardNegatives, PairStore


@dataclass(frozen=True)
class Drawn:
    """The hard negatives of some queries.

    Attributes:
        query: int64 ``[drawn]``, the position of the query among the rows; not decreasing.
        text: int64 ``[drawn]``, the text number of the negative.
        score: float32 ``[drawn]``, the teacher's score of the negative; NaN without one.
    """

    query: NDArray[np.int64]
    text: NDArray[np.int64]
    score: NDArray[np.float32]


class NegativeChoice:
    """Chooses among the hard negatives of queries.

    Args:
        store: The pairs. A passage that is held out is never a negative.
        per_query: The maximum number of negatives of a query in a batch.
        seed: The seed of the random choices.

    Attributes:
        hard: The negatives; can be replaced between two steps by those of another search.
    """

    def __init__(self, store: PairStore, *, per_query: int, seed: int) -> None:
        self.hard: HardNegatives = store.hard
        self._store = store
        self._per_query = per_query
        self._seed = seed
        self._lengths = store.lengths + 2
        self._held_out = np.unique(store.passage[np.asarray(store.held_out)])
        # Each query with its passages, as sorted keys, from all lines.
        self._pairs = np.unique(np.asarray(store.query, np.int64) << 32 | np.asarray(store.passage, np.int64))

    def draw(self, rows: NDArray[np.int64], step: int, longest: int) -> Drawn:
        """Return negatives for the queries of some pairs, by (seed, step).

        Negatives that fit into ``longest`` tokens come first: a longer one is truncated, and truncation alone
        would tell it from a positive.

        Args:
            rows: The numbers of the pairs.
            step: The number of the step.
            longest: The number of tokens of the longest passage, with special tokens.
        """
        rng = np.random.default_rng([self._seed, 4, step])
        chosen: list[NDArray[np.int64]] = []
        for row in rows.tolist():
            start, end = int(self.hard.starts[row]), int(self.hard.ends[row])
            if start == end or not self._per_query:
                chosen.append(np.empty(0, np.int64))
                continue
            texts = self.hard.texts[start:end].astype(np.int64)
            query = int(self._store.query[row])
            unfit = self._answers(query, texts) | np.isin(texts, self._held_out) | (texts == query)
            places = start + rng.permutation(np.flatnonzero(~unfit))
            too_long = self._lengths[self.hard.texts[places]] > longest
            chosen.append(places[np.argsort(too_long, kind="stable")][: self._per_query])
        places = np.concatenate(chosen)
        return Drawn(
            query=np.repeat(np.arange(len(rows)), [len(part) for part in chosen]),
            text=self.hard.texts[places].astype(np.int64),
            score=self.hard.scores[places],
        )

    def _answers(self, query: int, texts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which texts are a positive of the query in any line."""
        keys = query << 32 | texts
        place = np.minimum(np.searchsorted(self._pairs, keys), len(self._pairs) - 1)
        return np.asarray(self._pairs[place] == keys)

    def never_negatives(
        self, queries: NDArray[np.int64], passages: NDArray[np.int64], tokens: Sequence[NDArray[Any]]
    ) -> NDArray[np.bool_]:
        """Return which passages must not be negatives of which queries, bool ``[queries, passages]``.

        These are the positives of a query in any line, the text of the query itself, and passages that have the
        same tokens as one of them (in a batch, texts are truncated).

        Args:
            queries: The text numbers of the queries.
            passages: The text numbers of the passages, each once.
            tokens: The tokens of the passages in the batch.
        """
        by_tokens: dict[bytes, int] = {}
        same = np.array([by_tokens.setdefault(text.tobytes(), number) for number, text in enumerate(tokens)])
        left, right = np.searchsorted(self._pairs, [queries << 32, (queries + 1) << 32])
        counts = right - left
        places = np.arange(counts.sum()) + np.repeat(left - np.cumsum(counts) + counts, counts)
        answers = np.concatenate([self._pairs[places] & 0xFFFFFFFF, queries])
        owners = np.concatenate([np.repeat(np.arange(len(queries)), counts), np.arange(len(queries))])
        order = np.argsort(passages)
        place = np.minimum(np.searchsorted(passages, answers, sorter=order), len(passages) - 1)
        columns = order[place]
        here = passages[columns] == answers
        never = np.zeros((len(queries), len(passages)), np.bool_)
        never[owners[here], same[columns[here]]] = True
        return never[:, same]


def answers_by_tokens(
    queries: Sequence[NDArray[Any]], passages: Sequence[NDArray[Any]], targets: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which passages answer a query as far as the model can tell, bool ``[queries, passages]``.

    Different texts may have equal tokens, because of capital letters, spaces or truncation: a passage with the
    tokens of the query, and the passage of another query with the same tokens, are no negatives.

    Args:
        queries: The tokens of the queries in the batch.
        passages: The tokens of the passages in the batch.
        targets: The column of each query's passage.
    """
    number: dict[bytes, int] = {}
    of_query, of_passage = (
        np.array([number.setdefault(text.tobytes(), len(number)) for text in texts])
        for texts in (queries, passages)
    )
    answers: NDArray[np.bool_] = of_query[:, None] == of_passage[None, :]
    for same in np.flatnonzero(np.bincount(of_query) > 1):
        rows = np.flatnonzero(of_query == same)
        answers[np.ix_(rows, np.flatnonzero(np.isin(of_passage, of_passage[targets[rows]])))] = True
    return answers
