"""What makes a measured number void: an answer that is none is fast, and so is one that is wrong."""

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
"""Of so few requests nothing can be said."""

_TOLERATED = 0.05
"""Share of the requests that may be unanswered beyond what is under way: they count as kept up with."""

_BY_CHANCE = 3.0
"""Standard deviations."""

_BURST = 0.05
"""Share of all requests that a burst before the last one may consist of."""


def void_of_load(load: Columns, *, allow_errors: bool) -> list[str]:
    """Why the numbers of a load must not be used; empty if they may.

    Args:
        load: All ``RequestRow`` of one load, its warm-up too: a queue may have begun there.
        allow_errors: Requests that failed are listed elsewhere and make nothing void.
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
        reasons.append("saturated: requests came faster than they were answered")
    if failed and not allow_errors:
        first = next(error for error in errors if not error.startswith("NotSent"))
        reasons.append(f"{_requests(failed)} failed ({_short(first)})")
    reasons += _wrong_answers(rows)
    start, end = rows["start_seconds"], rows["end_seconds"]
    if (end < start).any() or (start < rows["intended_seconds"]).any():
        reasons.append("the clock went backwards")
    return reasons


def errors_of(rows: Columns) -> dict[str, int]:
    """How many requests failed, by error, the most frequent first."""
    return dict(Counter(error for error in rows["error"].tolist() if error is not None).most_common())


def void_of_fill(expected: int, count: int) -> list[str]:
    """Why nothing that was measured on a collection may be used."""
    if count == expected:
        return []
    return [f"the collection holds {count:,} documents, the scenario's corpus has {expected:,}"]


def saturated(load: Columns) -> bool:
    """Whether an open loop asked for more than was answered, all of its time or at its end.

    In a queue that grows the latency grows with it, wherever the queue is: here, where requests wait to be sent, or in
    the store. Two signs, each beyond what Poisson arrivals do by chance (a burst of n requests varies by √n):

    - when the last request was to be sent, more were unanswered than the first quarter's latencies explain (Little's
      law: rate times latency are under way) and than a twentieth of all requests;
    - the last third took longer than the first by the time of so many requests.

    Args:
        load: All ``RequestRow`` of the load.
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
    """Why a recall must not be used: ``errors`` are of its questions, by error."""
    if not errors or allow_errors:
        return []
    return [f"{sum(errors.values()):,} of its questions failed ({_short(next(iter(errors)))})"]


def _wrong_answers(rows: Columns) -> list[str]:
    hits, expected = rows["hits"], rows["expected_hits"]
    found = (
        ("had no hits", (hits == 0) & (expected > 0)),
        ("had fewer hits than there are", (hits > 0) & (hits < expected)),
        ("had more hits than asked for", hits > rows["k"]),
        ("had the same document twice", rows["distinct_hits"] < hits),
    )
    return [f"{_requests(int(bad.sum()))} {what}" for what, bad in found if bad.any()]


def _short(error: str) -> str:
    return error if len(error) <= _MOST_SHOWN else f"{error[:_MOST_SHOWN]}…"


def _requests(count: int) -> str:
    return f"{count:,} request{'' if count == 1 else 's'}"
