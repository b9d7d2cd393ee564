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


def void_of_load(rows: Columns, *, allow_errors: bool) -> list[str]:
    """Why the numbers of a load must not be used; empty if they may.

    Args:
        rows: The measured ``RequestRow`` of one load.
        allow_errors: Requests that failed are listed elsewhere and make nothing void.
    """
    if not len(rows["number"]):
        return ["no request was measured"]
    reasons = []
    errors = errors_of(rows)
    unsent = sum(count for error, count in errors.items() if error.startswith("NotSent"))
    failed = sum(errors.values()) - unsent
    if unsent or _behind(rows):
        reasons.append("saturated: requests came faster than they were answered")
    if failed and not allow_errors:
        first = next(error for error in errors if not error.startswith("NotSent"))
        shown = first if len(first) <= _MOST_SHOWN else f"{first[:_MOST_SHOWN]}…"
        reasons.append(f"{_requests(failed)} failed ({shown})")
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


def _behind(rows: Columns) -> bool:
    """Whether more requests were waiting than can be under way when the last one was to be sent."""
    start, intended = rows["start_seconds"], rows["intended_seconds"]
    workers = rows["worker"][~np.isnan(rows["worker"])]
    concurrency = workers.max() + 1 if len(workers) else 0
    return bool(np.count_nonzero(start > intended.max()) > concurrency)


def _wrong_answers(rows: Columns) -> list[str]:
    hits, expected = rows["hits"], rows["expected_hits"]
    found = (
        ("had no hits", (hits == 0) & (expected > 0)),
        ("had fewer hits than there are", (hits > 0) & (hits < expected)),
        ("had more hits than asked for", hits > rows["k"]),
        ("had the same document twice", rows["distinct_hits"] < hits),
    )
    return [f"{_requests(int(bad.sum()))} {what}" for what, bad in found if bad.any()]


def _requests(count: int) -> str:
    return f"{count:,} request{'' if count == 1 else 's'}"
