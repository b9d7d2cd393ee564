"""Timeouts and retries of network calls.

All writes of this package are idempotent (an upsert by id, a delete by id), so ``BackendError.retryable``
alone decides whether a call is retried. The pause doubles after each try, with jitter; a ``Retry-After`` of
the server takes precedence. If a pause would exceed the total time limit, the error is raised immediately.
This module's logger logs each retry at level INFO.
"""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from m3_connectors.errors import BackendError, InvalidInput, Throttled

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 15.0
_JITTER_SECONDS = 0.25

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """The timeouts and the number of tries of a call.

    Attributes:
        timeout_seconds: The time limit of one try.
        attempts: The total number of tries; 1 means that the call is not retried.
        total_seconds: The time limit of all tries and the pauses between them; no try starts after it.
    """

    timeout_seconds: float = 60.0
    attempts: int = 5
    total_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("timeout_seconds", "total_seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InvalidInput(f"{name} is {value!r}.\n  Pass a number of seconds > 0.")
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise InvalidInput(f"attempts is {self.attempts!r}.\n  Pass a whole number >= 1.")


def asked_seconds(retry_after: str | None) -> float | None:
    """Return the pause in seconds that a ``Retry-After`` header requests, given in seconds or as a date.

    None if it is neither, and for a date in the past: the clocks may differ, so it is not a request to retry
    at once.
    """
    if retry_after is None:
        return None
    try:
        return float(retry_after)
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    now = datetime.datetime.now(datetime.UTC)
    # An HTTP date is always in GMT.
    seconds = (date.replace(tzinfo=date.tzinfo or datetime.UTC) - now).total_seconds()
    return seconds if seconds > 0 else None


async def retrying(patience: RetryPolicy, call: Callable[[], Awaitable[T]]) -> T:
    """Await ``call()`` until it succeeds, fails with an error that is not retryable, or reaches a limit.

    Raises:
        BackendError: The last error. Its message is extended by the number of tries and their duration, and
            by the pause that the server requested if it was too long.
    """
    started = time.monotonic()
    tries = 0
    while True:
        tries += 1
        try:
            return await call()
        except BackendError as error:
            asked = error.retry_after_seconds if isinstance(error, Throttled) else None
            pause = _pause_seconds(tries) if asked is None else max(asked, 0.0)
            # The comparison is False for NaN, too.
            in_time = time.monotonic() - started + pause <= patience.total_seconds
            if not (error.retryable and in_time and tries < patience.attempts):
                what, _, advice = str(error.args[0]).partition("\n")
                added = ""
                if tries > 1:
                    added = f" after {tries} tries in {time.monotonic() - started:.0f} s"
                if error.retryable and asked is not None and not in_time:
                    limit = f"more than total_seconds={patience.total_seconds:g} allows"
                    added += f"; it asks to wait {asked:g} s, {limit}"
                    advice = advice or "  Call again after that time, or raise total_seconds."
                if added:
                    error.args = (f"{what.rstrip('.')}{added}." + (advice and f"\n{advice}"),)
                raise
            why = str(error).splitlines()[0]
        await anyio.sleep(pause)
        _log.info("retry: try %d of %d, because of: %s", tries + 1, patience.attempts, why)


def _pause_seconds(tries: int) -> float:
    """Return the pause after this number of tries."""
    doubled = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(tries - 1, 9), _LONGEST_PAUSE_SECONDS)
    return doubled + random.uniform(0, _JITTER_SECONDS)
