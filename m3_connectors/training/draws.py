"""Draws a bucket of the data and one of its batches for each step: a function of (seed, step) only."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from m3_connectors.errors import InvalidInput

T = TypeVar("T")

_BLOCK = 1024


class Draws(Generic[T]):
    """Selects the batch of any step, so that resuming needs no state.

    Args:
        weights: The share of the steps of each bucket, at least one.
        epoch: ``(bucket, epoch) -> batches``: a shuffled epoch of a bucket, at least one batch.
        seed: The seed of the choice of the buckets.

    Attributes:
        shares: The share of the steps of each bucket.
    """

    def __init__(self, weights: Sequence[float], epoch: Callable[[int, int], list[T]], seed: int) -> None:
        self.shares: NDArray[np.float64] = np.array(weights) / sum(weights)
        self._epoch = lru_cache(maxsize=256)(epoch)
        self._seed = seed
        self._choices = np.zeros(0, np.int64)
        # By bucket, how many batches its first epochs have: 0, those of the first, of the first two, …
        self._batches: list[list[int]] = [[0] for _ in weights]

    def __call__(self, step: int) -> tuple[int, T]:
        """Return the bucket of a step, and its batch."""
        while step >= len(self._choices):
            block = len(self._choices) // _BLOCK
            drawn = np.random.default_rng([self._seed, 1, block]).choice(
                len(self.shares), _BLOCK, p=self.shares
            )
            self._choices = np.concatenate([self._choices, drawn])
        bucket = int(self._choices[step])
        number, reached = int((self._choices[:step] == bucket).sum()), self._batches[bucket]
        while number >= reached[-1]:
            reached.append(reached[-1] + len(self._epoch(bucket, len(reached) - 1)))
        epoch = bisect.bisect_right(reached, number) - 1
        return bucket, self._epoch(bucket, epoch)[number - reached[epoch]]


def source_weights_by_name(
    names: Sequence[str], source_weights: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, str]]:
    """Resolve weights by name or prefix; the longest match is used.

    Returns:
        The weight of every source that has one, and the reasons why keys and sources have no effect.

    Raises:
        InvalidInput: No key matches a source.
    """
    weights = {}
    for name in names:
        matching = [key for key in source_weights if name.startswith(key)]
        if matching:
            weights[name] = source_weights[max(matching, key=len)]
    if not weights:
        raise InvalidInput(
            f"source_weights {dict(source_weights)} match no source; there are {list(names)}.\n"
            "  Use the name or a prefix of at least one source."
        )
    left_out = {
        f"source_weights: {key!r}": "there is no source of this name"
        for key in source_weights
        if not any(name.startswith(key) for name in names)
    }
    left_out |= {name: "source_weights do not include it" for name in names if name not in weights}
    return weights, left_out


def language_shares(counts: NDArray[np.int64], exponent: float) -> NDArray[np.float64]:
    """Return shares that are proportional to counts to a power; a language without texts has none."""
    powers = np.where(counts > 0, counts.astype(np.float64) ** exponent, 0.0)
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares
