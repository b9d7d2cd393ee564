"""Selects the texts of a step for objectives over single texts: a function of (seed, step) only.

Texts are grouped like pairs: a batch is from one source, one language and one length group (section 3.4), and
every text of a bucket is used once in a shuffled epoch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_connectors.errors import InvalidInput
from m3_connectors.training.batches import LengthGroup, wrap
from m3_connectors.training.data import PairStore
from m3_connectors.training.draws import Draws, language_shares, source_weights_by_name

_READ_AT_ONCE = 1 << 22
"""Tokens that are read from the memory-mapped store at once."""


@dataclass(frozen=True)
class TextBatch:
    """The texts of a step, shortest first.

    Attributes:
        source: The name of the source.
        texts: The int64 token ids of each text, with ``<s>`` and ``</s>``.
        longest: The length limit of the group, in tokens.
    """

    source: str
    texts: list[NDArray[np.int64]]
    longest: int

    @property
    def tokens(self) -> int:
        """The number of tokens of all texts."""
        return sum(map(len, self.texts))


@dataclass(frozen=True)
class _Bucket:
    source: str
    texts: NDArray[np.int64]
    group: LengthGroup


class TextSampler:
    """Selects the texts of any step: the passages and the texts without queries, and the queries if wanted.

    Args:
        store: The texts; held-out ones are not used.
        usable: ``ids -> bool``: which tokens the objective can use; texts without any are left out.
        queries: Whether to use queries too.
        source_weights: The share of the steps by source name; see ``Sampler``.
        groups: The length groups, shortest first.
        language_exponent: The share of a language within a source is proportional to its count to this power.
        seed: The seed of all random choices.

    Attributes:
        left_out: Why some texts of the sources are not used.

    Raises:
        InvalidInput: No text can be used.
    """

    def __init__(
        self,
        store: PairStore,
        *,
        usable: Callable[[NDArray[Any]], NDArray[np.bool_]],
        queries: bool,
        source_weights: Mapping[str, float],
        groups: Sequence[LengthGroup],
        language_exponent: float,
        seed: int,
    ) -> None:
        self._store = store
        self._seed = seed
        by_name, self.left_out = source_weights_by_name(store.sources, source_weights)
        good = _with_usable_tokens(store, usable, groups[-1].longest - 2)
        edges = np.array([group.longest for group in groups[:-1]])
        group_of = np.searchsorted(edges, store.lengths + 2)
        # A text that is held out as a passage is not used as a query or in another source either.
        free = np.ones(len(good), np.bool_)
        free[store.passage[np.asarray(store.held_out)]] = False
        self._buckets: list[_Bucket] = []
        shares: list[float] = []
        for number, name in enumerate(store.sources):
            if not by_name.get(name):
                continue
            texts, language_of = self._texts(number, queries)
            texts, language_of = texts[free[texts]], language_of[free[texts]]
            empty = int((~good[texts]).sum())
            if empty:
                self.left_out[f"{name}: {empty:,} of {len(texts):,} texts"] = "they have no tokens to predict"
            texts, language_of = texts[good[texts]], language_of[good[texts]]
            if not len(texts):
                self.left_out.setdefault(name, "all its texts are held out or left out")
                continue
            counts = np.bincount(language_of, minlength=len(store.languages))
            by_language = language_shares(counts, language_exponent)
            for language, group in itertools.product(range(len(counts)), range(len(groups))):
                part = texts[(language_of == language) & (group_of[texts] == group)]
                if len(part):
                    self._buckets.append(_Bucket(name, part, groups[group]))
                    shares.append(by_name[name] * by_language[language] * len(part) / counts[language])
        if not self._buckets:
            reasons = "; ".join(f"{part}: {reason}" for part, reason in self.left_out.items())
            raise InvalidInput(
                f"no batch can be made from the texts: {reasons}.\n"
                '  Add texts, as passages of pairs or as lines {"text": "…"}.'
            )
        self._draws = Draws(shares, self._epoch, seed)

    def _texts(self, source: int, queries: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the distinct texts of a source and the language of each."""
        rows = np.flatnonzero(self._store.source == source)
        texts, languages = self._store.passage[rows], self._store.passage_language[rows]
        if queries:
            texts = np.concatenate([texts, self._store.query[rows]])
            languages = np.concatenate([languages, self._store.query_language[rows]])
        distinct, first = np.unique(texts, return_index=True)
        return distinct.astype(np.int64), languages[first].astype(np.int64)

    def _epoch(self, number: int, epoch: int) -> list[NDArray[np.int64]]:
        bucket = self._buckets[number]
        rng = np.random.default_rng([self._seed, 2, number, epoch])
        order, size = rng.permutation(bucket.texts), bucket.group.batch
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        # A small rest of an epoch would be a noisy step.
        return batches[:-1] if len(batches) > 1 and len(batches[-1]) < max(2, size // 2) else batches

    def batch(self, step: int) -> TextBatch:
        """Return the texts of a step, which depend on the seed only."""
        number, texts = self._draws(step)
        bucket = self._buckets[number]
        wrapped = [wrap(self._store.text(text), bucket.group.longest) for text in texts]
        return TextBatch(bucket.source, sorted(wrapped, key=len), bucket.group.longest)


def _with_usable_tokens(
    store: PairStore, usable: Callable[[NDArray[Any]], NDArray[np.bool_]], longest: int
) -> NDArray[np.bool_]:
    """Return which texts have a usable token among their first ``longest``."""
    found = np.zeros(len(store.offsets) - 1, np.bool_)
    first = 0
    while first < len(found):
        # At least one text, and about as many tokens as can be read at once.
        last = int(np.searchsorted(store.offsets, store.offsets[first] + _READ_AT_ONCE, "right")) - 1
        last = min(max(last, first + 1), len(found))
        start = int(store.offsets[first])
        places = np.flatnonzero(usable(store.tokens[start : store.offsets[last]])) + start
        owner = np.searchsorted(store.offsets[first : last + 1], places, "right") - 1 + first
        found[owner[places - store.offsets[owner] < longest]] = True
        first = last
    return found
