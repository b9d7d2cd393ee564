"""Paired tests: exact where they can be, honest under the null, blind to nothing."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.significance import PairedValues, holm, paired_test, paired_tests, resamples_for

LEVELS = (0.0, 0.25, 0.5, 1.0)  # exact in binary, so that sums tie exactly


def by_query(values: list[float] | np.ndarray) -> dict[str, float]:
    return {f"q{i}": float(value) for i, value in enumerate(values)}


@given(st.lists(st.tuples(st.sampled_from(LEVELS), st.sampled_from(LEVELS)), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_few_queries_are_tested_over_all_sign_patterns(pairs: list[tuple[float, float]]) -> None:
    before, after = zip(*pairs, strict=True)
    differences = np.subtract(after, before)
    signs = np.array(list(itertools.product((-1, 1), repeat=len(pairs))))
    expected = np.mean(np.abs(signs @ differences) >= abs(differences.sum()))
    found = paired_test(by_query(list(before)), by_query(list(after)))
    assert found.p_value == pytest.approx(expected)
    assert (found.wins, found.ties, found.losses) == tuple(
        int((np.sign(differences) == sign).sum()) for sign in (1, 0, -1)
    )
    assert found.difference == pytest.approx(differences.mean())
    assert found.low <= found.difference <= found.high


def test_many_queries_are_sampled_and_the_p_value_is_never_zero() -> None:
    before = by_query(np.zeros(200))
    found = paired_test(before, by_query(np.ones(200)), resamples=999)
    assert found.p_value == 1 / 1000
    assert (found.low, found.high) == (1, 1)


def test_sampled_p_values_are_those_of_the_enumeration() -> None:
    rng = np.random.default_rng(3)
    before, after = by_query(rng.random(12)), by_query(rng.random(12) + 0.2)
    exact = paired_test(before, after, resamples=2**12).p_value
    sampled = paired_test(before, after, resamples=2**12 - 1).p_value
    assert 0 < abs(exact - sampled) < 0.03


def test_the_same_seed_gives_the_same_numbers_and_another_one_others() -> None:
    rng = np.random.default_rng(1)
    before, after = by_query(rng.random(40)), by_query(rng.random(40))
    assert paired_test(before, after, seed=5) == paired_test(before, after, seed=5)
    assert paired_test(before, after, seed=5) != paired_test(before, after, seed=6)


def test_under_the_null_five_percent_are_false_and_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(7)
    false = held = 0
    trials = 400
    for trial in range(trials):
        # Differences like nDCG's: mostly 0, else of any size; symmetric, so that the mean difference is 0.
        differences = rng.choice([0, 0, 0, 0.13, 0.37, 1], 60) * rng.choice([-1, 1], 60)
        found = paired_test(by_query(np.zeros(60)), by_query(differences), resamples=400, seed=trial)
        false += found.p_value <= 0.05
        held += found.low <= 0 <= found.high
    assert 0.02 < false / trials < 0.085
    assert 0.91 < held / trials < 0.98


@given(st.integers(0, 1000), st.lists(st.sampled_from([3, 17, 40]), min_size=2, max_size=5))
@settings(max_examples=20, deadline=None)
def test_a_pair_has_the_same_test_alone_and_among_others(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    pairs = [
        PairedValues(by_query(rng.choice(LEVELS, size)), by_query(rng.choice(LEVELS, size))) for size in sizes
    ]
    together = paired_tests(pairs, resamples=500, seed=seed)
    for pair, found in zip(pairs, together, strict=True):
        alone = paired_test(pair.before, pair.after, resamples=500, seed=seed)
        assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(alone), abs=1e-12)
        assert found.p_value == alone.p_value


@pytest.mark.parametrize("shift", [0, 0.03, 0.1])
def test_the_tests_are_those_of_scipy(shift: float) -> None:
    rng = np.random.default_rng(8)
    before = rng.choice([0, 0, 0.3, 0.63, 1], 70)
    after = np.clip(before + rng.choice([0, 0, 0, -0.2, 0.2], 70) + shift * (rng.random(70) < 0.5), 0, 1)
    found = paired_test(by_query(before), by_query(after), resamples=50_000)
    differences = after - before
    other = stats.permutation_test(
        (differences[differences != 0],),
        lambda values, axis: np.abs(values.sum(axis=axis)),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        alternative="greater",
        rng=np.random.default_rng(1),
    )
    assert found.p_value == pytest.approx(other.pvalue, abs=0.015)
    interval = stats.bootstrap(
        (differences,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.003)


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(2)
    before = rng.random(100)
    found = paired_test(by_query(before), by_query(before + rng.normal(0.1, 0.2, 100)))
    assert found.p_value < 0.001
    assert 0 < found.low < 0.1 < found.high
    assert found.after - found.before == found.difference


def test_copies_of_a_query_count_as_one() -> None:
    rng = np.random.default_rng(4)
    before, after = rng.random(30), rng.random(30) + 0.1
    once = paired_test(by_query(before), by_query(after))
    copied = (by_query(np.repeat(before, 4)), by_query(np.repeat(after, 4)))
    units = {f"q{i}": i // 4 for i in range(120)}
    together = paired_test(*copied, units=units)
    assert (together.p_value, together.low, together.high) == pytest.approx(
        (once.p_value, once.low, once.high)
    )
    assert together.queries == 120
    alone = paired_test(*copied)
    assert alone.p_value < once.p_value
    assert alone.high - alone.low < 0.7 * (once.high - once.low)


def test_one_query_proves_nothing() -> None:
    found = paired_test({"q": 0.0}, {"q": 1.0})
    assert (found.p_value, found.low, found.high) == (1, -np.inf, np.inf)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({}, {}, "no queries to compare"),
        ({"a": 1.0, "b": 1.0}, {"a": 1.0}, "1 queries are in only one of the two rankings, such as 'b'"),
        ({"a": 1.0}, {"a": float("nan")}, "not finite"),
    ],
)
def test_what_cannot_be_compared(before: dict[str, float], after: dict[str, float], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        paired_test(before, after)


def test_memory_does_not_grow_with_resamples_times_queries() -> None:
    import tracemalloc

    rng = np.random.default_rng(0)
    before, after = by_query(rng.random(3000)), by_query(rng.random(3000))
    tracemalloc.start()
    try:
        paired_test(before, after, resamples=3000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 150e6  # all at once would be 3,000 × 3,000 × 2 × 8 bytes × several copies


class TestHolm:
    def test_by_hand(self) -> None:
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([]) == []
        assert holm([0.5, 0.9]) == [1, 1]

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
    def test_between_the_p_value_and_bonferroni_in_the_same_order(self, p_values: list[float]) -> None:
        adjusted = holm(p_values)
        for p_value, raised in zip(p_values, adjusted, strict=True):
            assert p_value <= raised <= min(1, len(p_values) * p_value) + 1e-12
        assert sorted(p_values) == [p for _, p in sorted(zip(adjusted, p_values, strict=True))]

    def test_of_twenty_null_comparisons_rarely_one_is_called_real(self) -> None:
        rng = np.random.default_rng(5)
        wrong = sum(min(holm(list(rng.random(20)))) < 0.05 for _ in range(2000))
        assert wrong / 2000 == pytest.approx(0.05, abs=0.015)

    def test_resamples_leave_room_for_the_factor(self) -> None:
        for comparisons in (1, 130, 1000):
            assert comparisons / (1 + resamples_for(comparisons)) < 0.005 * 2.1
