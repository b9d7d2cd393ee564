"""Selects the pairs of a step's batch: a function of (seed, step) only, so that resuming needs no state.

Pairs are grouped into buckets: one source, one passage language, one length group (paper section 3.4). A step
draws a bucket, whose passages are used in shuffled epochs. A passage comes with some of its queries (it is
encoded once for all of them) and occurs once in a batch. Two passages that share a query are never in the
same batch, because each would be a wrong negative for the other's query. The hard negatives of the queries are
further passages of the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pydantic.dataclasses
from numpy.typing import NDArray
from pydantic import Field

from m3_connectors.errors import InvalidInput
from m3_connectors.training.data import PairStore
from m3_connectors.training.draws import Draws, language_shares, source_weights_by_name
from m3_connectors.training.negatives import Drawn, NegativeChoice, answers_by_tokens
from m3_connectors.training.ranges import STRICT
from m3_connectors.training.tokenizer import END_ID, START_ID

SHORTEST = 3
"""The number of tokens of the shortest text: ``<s>``, one token, ``</s>``."""


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class LengthGroup:
    """The passages in a range of lengths.

    Attributes:
        longest: The maximum number of tokens of a passage in this group, including special tokens; in the
            last group, longer passages are truncated.
        batch: The number of passages in a batch; the hard negatives of their queries come on top.
    """

    longest: Annotated[int, Field(ge=SHORTEST)]
    batch: int

    def __post_init__(self) -> None:
        if self.batch < 2:
            raise InvalidInput(
                f"batch is {self.batch!r}.\n  It must be at least 2: a single passage has no negatives, so "
                "the loss would always be 0."
            )


@dataclass(frozen=True)
class Batch:
    """One mini-batch; texts include ``<s>`` and ``</s>``.

    Attributes:
        source: The name of the source.
        queries: The int64 token ids of each query.
        passages: The int64 token ids of each passage: first the relevant ones, then the hard negatives.
        text_numbers: int64 ``[queries + passages]``, the number of each text in the store.
        targets: int64 ``[queries]``, the position of the passage that is relevant to each query.
        cross_lingual: bool ``[queries]``, whether the two languages differ.
        longest: The length limit of the passages' group, in tokens.
        ignored: bool ``[queries, passages]``: the passage answers the query, or may do so, but is not its target.
        teacher: float32 ``[queries, passages]``, the teacher's scores of the target and of the query's own
            negatives, NaN elsewhere; None if no query has scores.
    """

    source: str
    queries: list[NDArray[np.int64]]
    passages: list[NDArray[np.int64]]
    text_numbers: NDArray[np.int64]
    targets: NDArray[np.int64]
    cross_lingual: NDArray[np.bool_]
    longest: int
    ignored: NDArray[np.bool_]
    teacher: NDArray[np.float32] | None

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.queries)

    @property
    def tokens(self) -> int:
        """The number of tokens of all queries and passages."""
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
    """Selects the batch of any step.

    Args:
        store: The pairs; held-out pairs are not used.
        source_weights: The share of the steps by source name. A key may be a prefix; the longest match is
            used. Sources without a weight are not used.
        groups: The length groups, shortest first.
        query_longest: Longer queries are truncated to this many tokens, including special tokens.
        queries_per_passage: The maximum number of queries of a passage in a batch.
        query_tokens_per_passage: If queries are long, a passage has fewer of them, with about this many
            tokens but at least one query: late interaction costs query tokens times passage tokens.
        language_exponent: The share of a language within a source is proportional to its count to this power.
        negatives_per_query: The maximum number of hard negatives of a query.
        seed: The seed of all random choices.

    Attributes:
        negatives: Chooses the hard negatives.
        left_out: Why some pairs of the sources are not used, by source, language and length.

    Raises:
        InvalidInput: No pair can be used.
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
        negatives_per_query: int = 7,
        seed: int = 0,
    ) -> None:
        self._store = store
        self.negatives = NegativeChoice(store, per_query=negatives_per_query, seed=seed)
        self._query_longest = query_longest
        self._queries_per_passage = queries_per_passage
        self._query_tokens_per_passage = query_tokens_per_passage
        self._seed = seed
        by_name, self.left_out = source_weights_by_name(store.sources, source_weights)
        self._buckets, weights = self._make_buckets(by_name, groups, language_exponent)
        if not self._buckets:
            reasons = "; ".join(f"{part}: {reason}" for part, reason in self.left_out.items())
            raise InvalidInput(
                f"no batch can be made from the pairs: {reasons}.\n"
                "  Add pairs: a batch needs two passages of one source, language and length that share no "
                "query, because each is the other's negative. Without negatives, the loss would always be 0."
            )
        self._draws = Draws(weights, self._shuffled_batches, seed)

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
            weight = source_weights.get(name, 0.0)
            of_source = (store.source == source) & ~np.asarray(store.alone)
            rows = np.flatnonzero(of_source & ~np.asarray(store.held_out))
            if weight and not len(rows):
                self.left_out[name] = (
                    "all its pairs are held out" if of_source.any() else "it has only texts without queries"
                )
            if not weight or not len(rows):
                continue
            language_of = store.passage_language[rows]
            counts = np.bincount(language_of, minlength=len(store.languages))
            shares = language_shares(counts, exponent)
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
                        "there is only one passage"
                        if len(passages) == 1
                        else "all its passages share queries"
                    )
                    continue
                buckets.append(bucket)
                weights.append(weight * shares[language] * len(part) / counts[language])
        return buckets, weights

    @property
    def steps_per_epoch(self) -> float:
        """The mean number of steps that contain as many passages as there are."""
        per_step = sum(
            share * bucket.batch for share, bucket in zip(self._draws.shares, self._buckets, strict=True)
        )
        return float(sum(len(bucket.passages) for bucket in self._buckets) / per_step)

    def _shuffled_batches(self, number: int, epoch: int) -> list[list[NDArray[np.int64]]]:
        return list(self._batches(self._buckets[number], number, epoch))

    def _batches(self, bucket: _Bucket, number: int, epoch: int) -> Iterator[list[NDArray[np.int64]]]:
        """Yield the passages of an epoch in batches of two or more, each passage as the rows of its pairs."""
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
            # A small rest of an epoch would be a batch with few negatives.
            if not is_first and len(taken) < max(2, bucket.batch // 2):
                break
            # A passage that shares a query with every other passage has no negatives.
            if len(taken) > 1:
                yield taken
                is_first = False
            waiting = left

    def rows(self, step: int) -> tuple[str, list[NDArray[np.int64]], int]:
        """Return the source, the pair numbers by passage, and the length limit of a step's batch."""
        number, by_passage = self._draws(step)
        bucket = self._buckets[number]
        return bucket.source, by_passage, bucket.longest

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, which depends on the seed only."""
        source, by_passage, longest = self.rows(step)
        store, rows = self._store, np.concatenate(by_passage)
        relevant = np.array([store.passage[part[0]] for part in by_passage], np.int64)
        targets = np.repeat(np.arange(len(by_passage)), [len(part) for part in by_passage])
        drawn = self.negatives.draw(rows, step, longest)
        numbers = np.concatenate([relevant, np.setdiff1d(drawn.text, relevant)])
        passages = [wrap(store.text(n), longest) for n in numbers]
        queries = store.query[rows].astype(np.int64)
        wrapped = [wrap(store.text(n), self._query_longest) for n in queries]
        ignored = self.negatives.never_negatives(queries, numbers, passages)
        ignored |= answers_by_tokens(wrapped, passages, targets)
        ignored[np.arange(len(rows)), targets] = False
        return Batch(
            source=source,
            queries=wrapped,
            passages=passages,
            text_numbers=np.concatenate([queries, numbers]),
            targets=targets,
            cross_lingual=np.asarray(store.cross_lingual[rows]),
            longest=longest,
            ignored=ignored,
            teacher=self._teacher(rows, targets, numbers, drawn, ignored),
        )

    def _teacher(
        self,
        rows: NDArray[np.int64],
        targets: NDArray[np.int64],
        passages: NDArray[np.int64],
        drawn: Drawn,
        ignored: NDArray[np.bool_],
    ) -> NDArray[np.float32] | None:
        """Return ``Batch.teacher``: of the queries whose target and at least one negative have a score."""
        order = np.argsort(passages)
        columns = order[np.searchsorted(passages, drawn.text, sorter=order)]
        scored = np.isfinite(drawn.score) & ~ignored[drawn.query, columns]
        positive = self.negatives.hard.positive_scores[rows]
        has_both = np.isfinite(positive) & (np.bincount(drawn.query[scored], minlength=len(rows)) > 0)
        if not has_both.any():
            return None
        teacher = np.full(ignored.shape, np.nan, np.float32)
        teacher[drawn.query[scored], columns[scored]] = drawn.score[scored]
        teacher[np.arange(len(rows)), targets] = positive
        teacher[~has_both] = np.nan
        return teacher


def _rows_by_passage(
    rows: NDArray[np.int64], passages: NDArray[np.int32]
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Return the distinct passages, and the rows of each."""
    order = np.argsort(passages, kind="stable")
    distinct, starts = np.unique(passages[order], return_index=True)
    return distinct.astype(np.int64), np.split(rows[order], starts[1:])


def wrap(text: NDArray[Any], longest: int) -> NDArray[np.int64]:
    """Return ``<s> text </s>`` as int64, truncated to ``longest`` tokens."""
    ids = np.empty(min(len(text), longest - 2) + 2, np.int64)
    ids[0], ids[1:-1], ids[-1] = START_ID, text[: longest - 2], END_ID
    return ids
