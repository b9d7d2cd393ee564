"""Decide which measured numbers are void, because failed and wrong responses are fast too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Columns = Mapping[str, npt.NDArray[Any]]
"""Rows as columns; nulls are NaN in numbers and None in texts."""

_MOST_SHOWN = 60

_FEWEST = 12
"""The minimum number of requests for a decision."""

_TOLERATED = 0.05
"""The share of requests that may be unanswered, in addition to those in progress, without saturation."""

_BY_CHANCE = 3.0
"""The number of standard deviations that are attributed to chance."""

_BURST = 0.05
"""The share of all requests that may arrive in a burst before the last one."""


def void_of_load(load: Columns, *, allow_errors: bool) -> list[str]:
    """Return the reasons why the numbers of a load must not be used; empty if they are valid.

    Args:
        load: All ``RequestRow`` of one load, including its warm-up, where a queue may have started.
        allow_errors: Whether failed requests are accepted; they are listed elsewhere.
    """
    measured = load["phase"] == "measured"
    rows = {name: column[measured] for name, column in load.items()}
    if not len(rows["number"]):
        return ["no request was measured"]
    reasons = []
    errors = errors_of(rows)
    unsent = sum(count for error, count in errors.items() if error.startswith("NotSent"))
    failed = sum(errors.values()) - unsent
    if unsent or (str(rows["load"][0]).startswith("open") and saturated(load)):
        reasons.append("saturated: requests arrived faster than the store answered them")
    if failed and not allow_errors:
        first = next(error for error in errors if not error.startswith("NotSent"))
        reasons.append(f"{_requests(failed)} failed ({_short(first)})")
    reasons += _wrong_answers(rows)
    start, end = rows["start_seconds"], rows["end_seconds"]
    if (end < start).any() or (start < rows["intended_seconds"]).any():
        reasons.append("the clock went backwards")
    return reasons


def errors_of(rows: Columns) -> dict[str, int]:
    """Return the number of failed requests by error, the most frequent first."""
    return dict(Counter(error for error in rows["error"].tolist() if error is not None).most_common())


def void_of_fill(expected: int, count: int) -> list[str]:
    """Return the reasons why no measurement of a collection may be used; empty if they are valid."""
    if count == expected:
        return []
    return [f"the collection contains {count:,} documents, but the scenario's corpus has {expected:,}"]


def saturated(load: Columns) -> bool:
    """Return whether an open loop sent requests faster than they were answered, throughout or at its end.

    A growing queue increases the latency, whether requests wait here to be sent or in the store. There are
    two criteria, each beyond what Poisson arrivals do by chance (a burst of n requests varies by √n):

    - at the intended start of the last request, more requests were unanswered than the latencies of the first
      quarter explain (Little's law: rate times latency are in progress) plus a twentieth of all requests;
    - the latency of the last third exceeds that of the first by the time of the same number of requests.

    Args:
        load: All ``RequestRow`` of one load.
    """
    order = np.argsort(load["intended_seconds"], kind="stable")
    intended, end = load["intended_seconds"][order], load["end_seconds"][order]
    answered = ~np.isnan(end)
    intended, end = intended[answered], end[answered]
    count = len(intended)
    span = float(intended[-1] - intended[0]) if count else 0.0
    if count < _FEWEST or span <= 0:
        return False
    latency, rate = end - intended, (count - 1) / span
    unanswered = int(np.count_nonzero(end > intended[-1]))
    under_way = rate * float(latency[: count // 4].mean())
    if unanswered > under_way + _BY_CHANCE * np.sqrt(under_way + _BURST * count) + _TOLERATED * count:
        return True
    third = count // 3
    longer = rate * float(np.median(latency[-third:]) - np.median(latency[:third]))
    return bool(longer > _TOLERATED * count + _BY_CHANCE * np.sqrt(count))


def void_of_recall(errors: Mapping[str, int], *, allow_errors: bool) -> list[str]:
    """Return the reasons why a recall must not be used; ``errors`` counts its failed queries by error."""
    if not errors or allow_errors:
        return []
    return [f"{sum(errors.values()):,} of its queries failed ({_short(next(iter(errors)))})"]


def _wrong_answers(rows: Columns) -> list[str]:
    hits, expected = rows["hits"], rows["expected_hits"]
    found = (
        ("had no hits", (hits == 0) & (expected > 0)),
        ("had fewer hits than expected", (hits > 0) & (hits < expected)),
        ("had the same document twice", rows["distinct_hits"] < hits),
    )
    return [f"{_requests(int(bad.sum()))} {what}" for what, bad in found if bad.any()]


def _short(error: str) -> str:
    return error if len(error) <= _MOST_SHOWN else f"{error[:_MOST_SHOWN]}…"


def _requests(count: int) -> str:
    return f"{count:,} request{'' if count == 1 else 's'}"
