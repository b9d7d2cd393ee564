"""Which pairs make the batch of a step: a function of (seed, step) alone, so that resume needs no state.

Pairs fall into buckets: one source, one passage language, one length group (paper section 3.4). A step
draws a bucket; a bucket's passages are walked through in shuffled epochs. A passage comes with some of its
queries (it is encoded once for all of them) and stands in a batch once; two passages that share a query
never meet: each would be a wrong negative for the other's query.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_connectors.errors import InvalidInput
from m3_connectors.training.data import PairStore
from m3_connectors.training.ranges import at_least, require
from m3_connectors.training.tokenizer import END_ID, START_ID

SHORTEST = 3
"""Tokens of the shortest text: ``<s>``, one token, ``</s>``."""

_EXAMPLE = {"example": "groups = [{ longest = 64, batch = 256 }, { longest = 512, batch = 112 }]"}


@dataclass(frozen=True)
class LengthGroup:
    """Passages of one range of lengths.

    Attributes:
        longest: Most tokens of a passage of this group, special tokens included; longer ones of the last
            group are cut.
        batch: Passages of a batch.
    """

    longest: int = field(metadata=_EXAMPLE)
    batch: int = field(metadata=_EXAMPLE)

    def __post_init__(self) -> None:
        require(self, longest=at_least(SHORTEST))
        if self.batch < 2:
            raise InvalidInput(
                f"batch is {self.batch!r}.\n  It must be at least 2: one passage alone has no negatives, so that "
                "the loss is 0 from the first step to the last."
            )


@dataclass(frozen=True)
class Batch:
    """One mini-batch; texts carry ``<s>`` and ``</s>``.

    Attributes:
        source: Name of the source.
        queries: int64 token ids of each query.
        passages: int64 token ids of each passage.
        targets: int64 ``[queries]``, position of the passage that answers each query.
        cross_lingual: bool ``[queries]``, the two languages differ.
    """

    source: str
    queries: list[NDArray[np.int64]]
    passages: list[NDArray[np.int64]]
    targets: NDArray[np.int64]
    cross_lingual: NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.queries)

    @property
    def tokens(self) -> int:
        """Tokens of all queries and passages."""
        return sum(map(len, self.queries)) + sum(map(len, self.passages))


@dataclass(frozen=True)
class _Bucket:
    source: str
    passages: NDArray[np.int64]
    rows: list[NDArray[np.int64]]
    batch: int
    longest: int
    queries: int


class Sampler:
    """Draws the batch of any step.

    Args:
        store: The pairs; held-out ones are left out.
        source_weights: Share of the steps by source name; a key may be a prefix, the longest match counts.
            Sources without a weight are not used.
        groups: Length groups, shortest first.
        query_longest: Longer queries are cut to this many tokens, special tokens included.
        queries_per_passage: Most queries that a passage brings into a batch.
        query_tokens_per_passage: Where queries are long a passage brings fewer, about this many tokens but
            at least one query: late interaction costs query tokens times passage tokens.
        language_exponent: A language's share inside a source is its count to this power.
        seed: Of everything drawn.

    Attributes:
        left_out: Why pairs of a source with a weight are not drawn, by source, language and length.

    Raises:
        InvalidInput: No pair is left to draw from.
    """

    def __init__(
        self,
        store: PairStore,
        *,
        source_weights: Mapping[str, float],
        groups: Sequence[LengthGroup],
        query_longest: int,
        queries_per_passage: int = 1,
        query_tokens_per_passage: int = 48,
        language_exponent: float = 0.7,
        seed: int = 0,
    ) -> None:
        self._store = store
        self._query_longest = query_longest
        self._queries_per_passage = queries_per_passage
        self._query_tokens_per_passage = query_tokens_per_passage
        self._seed = seed
        if not any(name.startswith(tuple(source_weights)) for name in store.sources):
            raise InvalidInput(
                f"source_weights {dict(source_weights)} match none of the sources {list(store.sources)}.\n"
                "  Name at least one of them, or a prefix."
            )
        self.left_out = {
            f"source_weights: {key!r}": "there is no source of that name"
            for key in source_weights
            if not any(name.startswith(key) for name in store.sources)
        }
        self._buckets, weights = self._make_buckets(source_weights, groups, language_exponent)
        if not self._buckets:
            reasons = "; ".join(f"{part}: {reason}" for part, reason in self.left_out.items())
            raise InvalidInput(
                f"no batch can be made of the pairs: {reasons}.\n"
                "  A batch needs two passages of one source, language and length that share no query: each is the "
                "other's negative. Without one the loss is 0 from the first step to the last."
            )
        self._shares = np.array(weights) / sum(weights)
        self._choices = np.zeros(0, np.int64)
        self._epoch = lru_cache(maxsize=256)(self._shuffled_batches)

    def _make_buckets(
        self, source_weights: Mapping[str, float], groups: Sequence[LengthGroup], exponent: float
    ) -> tuple[list[_Bucket], list[float]]:
        store = self._store
        lengths = store.lengths[store.passage] + 2
        edges = np.array([group.longest for group in groups[:-1]])
        group_of = np.searchsorted(edges, lengths)
        buckets: list[_Bucket] = []
        weights: list[float] = []
        for source, name in enumerate(store.sources):
            matching = [key for key in source_weights if name.startswith(key)]
            weight = source_weights[max(matching, key=len)] if matching else 0.0
            rows = np.flatnonzero((store.source == source) & ~np.asarray(store.held_out))
            if not matching:
                self.left_out[name] = "source_weights do not name it"
            elif weight and not len(rows):
                self.left_out[name] = "all its pairs are held out"
            if not weight or not len(rows):
                continue
            language_of = store.passage_language[rows]
            counts = np.bincount(language_of, minlength=len(store.languages)).astype(float)
            shares = counts**exponent / (counts**exponent * (counts > 0)).sum()
            for language, number in itertools.product(range(len(counts)), range(len(groups))):
                part = rows[(language_of == language) & (group_of[rows] == number)]
                if not len(part):
                    continue
                passages, row_lists = _rows_by_passage(part, store.passage[part])
                batch, longest = min(groups[number].batch, len(passages)), groups[number].longest
                mean = float(np.minimum(store.lengths[store.query[part]] + 2, self._query_longest).mean())
                queries = min(self._queries_per_passage, max(1, int(self._query_tokens_per_passage / mean)))
                bucket = _Bucket(name, passages, row_lists, batch, longest, queries)
                if next(self._batches(bucket, len(buckets), 0), None) is None:
                    where = f"{name}, passages in {store.languages[language]!r} of up to {longest} tokens"
                    self.left_out[where] = (
                        "there is one passage" if len(passages) == 1 else "all its passages share queries"
                    )
                    continue
                buckets.append(bucket)
                weights.append(weight * shares[language] * len(part) / counts[language])
        return buckets, weights

    def _choice(self, step: int) -> tuple[int, int]:
        """Bucket of a step, and how often that bucket was drawn before."""
        while step >= len(self._choices):
            block = len(self._choices) // 1024
            drawn = np.random.default_rng([self._seed, 1, block]).choice(
                len(self._buckets), 1024, p=self._shares
            )
            self._choices = np.concatenate([self._choices, drawn])
        bucket = int(self._choices[step])
        return bucket, int((self._choices[:step] == bucket).sum())

    def _shuffled_batches(self, number: int, epoch: int) -> list[list[NDArray[np.int64]]]:
        return list(self._batches(self._buckets[number], number, epoch))

    def _batches(self, bucket: _Bucket, number: int, epoch: int) -> Iterator[list[NDArray[np.int64]]]:
        """The bucket's passages of one epoch in batches of two or more, each passage as the rows that it brings."""
        most = bucket.queries
        rng = np.random.default_rng([self._seed, 2, number, epoch])
        waiting = [int(position) for position in rng.permutation(len(bucket.passages))]
        is_first = True
        while waiting:
            taken: list[NDArray[np.int64]] = []
            seen: set[int] = set()
            left: list[int] = []
            for place, position in enumerate(waiting):
                rows = bucket.rows[position]
                texts = {int(bucket.passages[position]), *self._store.query[rows].tolist()}
                if seen & texts:
                    left.append(position)
                    continue
                seen |= texts
                taken.append(rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False)))
                if len(taken) == bucket.batch:
                    left.extend(waiting[place + 1 :])
                    break
            # The poor rest of an epoch would be a batch with few negatives.
            if not is_first and len(taken) < max(2, bucket.batch // 2):
                break
            # A passage that shares a query with every other one has no negatives at all.
            if len(taken) > 1:
                yield taken
                is_first = False
            waiting = left

    def rows(self, step: int) -> tuple[str, list[NDArray[np.int64]], int]:
        """Source, pair numbers by passage, and length limit of a step's batch."""
        number, drawn_before = self._choice(step)
        epoch = 0
        while drawn_before >= len(self._epoch(number, epoch)):
            drawn_before -= len(self._epoch(number, epoch))
            epoch += 1
        bucket = self._buckets[number]
        return bucket.source, self._epoch(number, epoch)[drawn_before], bucket.longest

    def batch(self, step: int) -> Batch:
        """The batch of a step: always the same for one seed."""
        source, by_passage, longest = self.rows(step)
        store, rows = self._store, np.concatenate(by_passage)
        return Batch(
            source=source,
            queries=[wrap(store.text(n), self._query_longest) for n in store.query[rows]],
            passages=[wrap(store.text(store.passage[part[0]]), longest) for part in by_passage],
            targets=np.repeat(np.arange(len(by_passage)), [len(part) for part in by_passage]),
            cross_lingual=np.asarray(store.cross_lingual[rows]),
        )


def _rows_by_passage(
    rows: NDArray[np.int64], passages: NDArray[np.int32]
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Distinct passages, and the rows of each."""
    order = np.argsort(passages, kind="stable")
    distinct, starts = np.unique(passages[order], return_index=True)
    return distinct.astype(np.int64), np.split(rows[order], starts[1:])


def wrap(text: NDArray[Any], longest: int) -> NDArray[np.int64]:
    """``<s> text </s>`` as int64, the text cut so that ``longest`` tokens remain."""
    ids = np.empty(min(len(text), longest - 2) + 2, np.int64)
    ids[0], ids[1:-1], ids[-1] = START_ID, text[: longest - 2], END_ID
    return ids
