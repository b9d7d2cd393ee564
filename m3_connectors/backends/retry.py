"""Calls over a network: a deadline for each try, and tries again only where they can help.

Every write of this package may be repeated (an upsert by id, a delete by id), so what is retryable is decided by the
error alone: ``BackendError.retryable``. The pause doubles with jitter; a server's own ``Retry-After`` is obeyed.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina

from m3_connectors.errors import BackendError, InvalidInput, Throttled

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a call may take.

    Attributes:
        timeout_seconds: Of one try.
        attempts: Tries in all; 1 means none again.
        total_seconds: Of all tries and the pauses between them; no new try begins after it.
    """

    timeout_seconds: float = 60.0
    attempts: int = 5
    total_seconds: float = 120.0

    def __post_init__(self) -> None:
        if self.timeout_seconds <= 0 or self.total_seconds <= 0 or self.attempts < 1:
            raise InvalidInput(f"{self}: times must be > 0 and attempts >= 1.")


async def retrying(patience: Patience, call: Callable[[], Awaitable[T]]) -> T:
    """Await ``call()`` until it answers, fails for good, or patience ends.

    Raises:
        BackendError: The last failure, its message completed by the number of tries and the time they took.
    """
    started = time.monotonic()
    tries = 0

    def again(error: Exception) -> bool | datetime.timedelta:
        if not isinstance(error, BackendError) or not error.retryable:
            return False
        if isinstance(error, Throttled) and error.retry_after_seconds is not None:
            return datetime.timedelta(seconds=error.retry_after_seconds)
        return True

    try:
        async for attempt in stamina.retry_context(
            on=again,
            attempts=patience.attempts,
            timeout=patience.total_seconds,
            wait_initial=0.25,
            wait_max=15.0,
            wait_jitter=0.25,
        ):
            with attempt:
                tries += 1
                return await call()
    except BackendError as error:
        if tries > 1:
            seconds = time.monotonic() - started
            what, newline, advice = str(error.args[0]).partition("\n")
            error.args = (f"{what.rstrip('.')} after {tries} tries in {seconds:.0f} s.{newline}{advice}",)
        raise
    raise AssertionError("unreachable: the last try returns or raises")
