"""How long a call goes on trying, and what is no deadline."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from m3_connectors.backends.retry import RetryPolicy, retrying
from m3_connectors.errors import InvalidInput, Rejected, Throttled, Unavailable
from m3_connectors.testing.conformance import runs

WHERE = {"backend": "store", "operation": "search"}


@pytest.mark.parametrize("asked", [3600.0, math.inf, math.nan])
@runs
async def test_a_wait_beyond_the_patience_is_not_begun_and_is_named(asked: float) -> None:
    tries = 0

    async def call() -> None:
        nonlocal tries
        tries += 1
        raise Throttled("too much.", **WHERE, retry_after_seconds=asked)

    started = time.monotonic()
    with pytest.raises(
        Throttled, match=rf"asks to wait {asked:g} s, more than total_seconds=60 allows\.\n  Call"
    ):
        await retrying(RetryPolicy(total_seconds=60), call)
    assert tries == 1
    assert time.monotonic() - started < 30


@runs
async def test_a_wait_is_named_also_where_no_try_is_left() -> None:
    async def call() -> None:
        raise Throttled("too much.", **WHERE, retry_after_seconds=3600)

    with pytest.raises(
        Throttled, match=r"too much; it asks to wait 3600 s, more than total_seconds=60 allows"
    ):
        await retrying(RetryPolicy(attempts=1, total_seconds=60), call)


@runs
async def test_only_errors_of_a_store_that_may_pass_are_tried_again() -> None:
    for error in (Rejected("no such field.", **WHERE), ValueError("ours")):
        tries = 0

        async def call(raised: Exception = error) -> None:
            nonlocal tries
            tries += 1
            raise raised

        with pytest.raises(type(error), match=r"^(store search: no such field\.|ours)$"):
            await retrying(RetryPolicy(), call)
        assert tries == 1


@runs
async def test_a_wait_below_zero_is_none() -> None:
    tries = 0

    async def call() -> int:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Throttled("too much.", **WHERE, retry_after_seconds=-5.0)
        return tries

    assert await retrying(RetryPolicy(total_seconds=1), call) == 2


@runs
async def test_no_try_begins_after_the_total() -> None:
    begun: list[float] = []

    async def call() -> None:
        begun.append(time.monotonic() - started)
        raise Unavailable("nobody there.", **WHERE)

    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"nobody there after \d+ tries in \d+ s\.$"):
        await retrying(RetryPolicy(total_seconds=3, attempts=6), call)
    # Pauses of 0.25, 0.5, 1 and 2 s, each up to 0.25 s longer: a fourth would outlast the total on any machine.
    assert 2 <= len(begun) <= 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timeout_seconds": "5"}, "timeout_seconds is '5'"),
        ({"timeout_seconds": math.nan}, "timeout_seconds is nan"),
        ({"total_seconds": math.inf}, "total_seconds is inf"),
        ({"total_seconds": 0}, "total_seconds is 0"),
        ({"timeout_seconds": True}, "timeout_seconds is True"),
        ({"attempts": 2.5}, "attempts is 2.5"),
        ({"attempts": 0}, "attempts is 0"),
        ({"attempts": None}, "attempts is None"),
    ],
)
def test_what_is_no_deadline_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        RetryPolicy(**options)
