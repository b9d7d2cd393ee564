"""Is a difference real? Paired tests on per-query values, by scipy."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from scipy import stats

from m3_connectors.errors import InvalidInput

RESAMPLES = 10_000
"""Random sign flips, and bootstrap samples: a p-value of 0.05 is then known to about 0.002."""

CONFIDENCE = 0.95

SIGNIFICANT = 0.05
"""A difference with a smaller p-value is called real."""

_CELLS = 2_000_000
"""Numbers that scipy holds at a time, of each of a few arrays, however many queries there are."""


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """Two rankings of the same queries.

    Attributes:
        queries: How many.
        before, after: Mean values.
        low, high: Bounds of the 95 % bootstrap interval of the mean difference, after minus before.
        p_value: Two-sided, of the randomisation test: how often a difference at least as large comes about
            where the two rankings of each query are interchangeable.
        wins, ties, losses: Queries for which ``after`` is larger, equal, smaller.
    """

    queries: int
    before: float
    after: float
    low: float
    high: float
    p_value: float
    wins: int
    ties: int
    losses: int

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before


def paired_test(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    units: Mapping[str, Hashable] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedTest:
    """Test the mean difference of two rankings.

    The randomisation test (Fisher; Smucker, Allan and Carterette, CIKM 2007) flips the sign of each unit's
    difference: all sign patterns where there are at most ``resamples`` of them, else that many random ones,
    and then p = (1 + as large) / (1 + flips), so that it is never 0.

    The interval is the percentile bootstrap's. On differences shaped like nDCG's (60 % zeros, skewed) it held
    the true mean in 90.1 / 92.6 / 94.6 % of 1,500 trials with 20 / 50 / 200 queries, BCa in 89.6 / 91.5 /
    94.6 %; BCa would also need a jackknife over all queries and has no answer where all differences are
    equal.

    Args:
        before: Value by query.
        after: The same queries.
        units: By query what is drawn and flipped as one, such as its text where copies of a query occur; each
            query by itself by default.
        resamples: Bootstrap samples, and most sign patterns.
        seed: Of both.

    Raises:
        InvalidInput: No query, or not the same queries, or a value that is not finite.
    """
    queries = list(before)
    _check_same_queries(before, after)
    first = np.array([before[query] for query in queries], dtype=np.float64)
    second = np.array([after[query] for query in queries], dtype=np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InvalidInput("the value of a query is not finite.\n  Measure the runs again.")
    differences = second - first
    labels: dict[Hashable, int] = {}
    unit = [labels.setdefault(units[query] if units else query, len(labels)) for query in queries]
    sums, sizes = np.bincount(unit, differences), np.bincount(unit).astype(np.float64)
    low, high = _interval(sums, sizes, resamples, seed)
    return PairedTest(
        queries=len(queries),
        before=float(first.mean()),
        after=float(second.mean()),
        low=low,
        high=high,
        p_value=_p_value(sums, resamples, seed),
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values (1979), which keep the family-wise error rate.

    Args:
        p_values: Of all comparisons that are looked at together.

    Returns:
        Adjusted, in the same order, at most 1.
    """
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, largest)
    return adjusted


def resamples_for(comparisons: int) -> int:
    """Resamples so many that the smallest p-value there is survives Holm's factor easily."""
    return max(RESAMPLES, 200 * comparisons)


def _check_same_queries(before: Mapping[str, float], after: Mapping[str, float]) -> None:
    if not before:
        raise InvalidInput("there are no queries to compare.\n  Use evaluations with judged queries.")
    if before.keys() != after.keys():
        lone = sorted(before.keys() ^ after.keys())
        raise InvalidInput(
            f"{len(lone)} queries are in only one of the two rankings, such as {lone[0]!r}.\n"
            "  Compare evaluations of the same dataset and split."
        )


def _p_value(sums: np.ndarray, resamples: int, seed: int) -> float:
    flipped = sums[sums != 0]  # the sign of 0 changes nothing, and fewer units may all be enumerated
    if len(flipped) < 2:
        return 1.0  # one unit: either sign is as large
    found = stats.permutation_test(
        (flipped,),  # of one sample, "samples" flips signs
        _absolute_sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=_batch(len(flipped)),
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _interval(sums: np.ndarray, sizes: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    if len(sums) < 2:  # nothing is known of the spread
        return (-np.inf, np.inf)
    found = stats.bootstrap(
        (sums, sizes),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=_batch(len(sums)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _batch(units: int) -> int:
    return max(1, _CELLS // units)


def _absolute_sum(values: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(np.abs(values.sum(axis=axis)))


def _ratio(sums: np.ndarray, sizes: np.ndarray, axis: int) -> np.ndarray:
    """The mean over queries of the units drawn."""
    return np.asarray(sums.sum(axis=axis) / sizes.sum(axis=axis))
