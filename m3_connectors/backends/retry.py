"""Calls over a network: a deadline for each try, and tries again only where they can help.

Every write of this package may be repeated (an upsert by id, a delete by id), so what is retryable is decided by the
error alone: ``BackendError.retryable``. The pause doubles with jitter; a server's own ``Retry-After`` is obeyed.
Each new try is logged, by this module's logger, at level INFO.
"""

from __future__ import annotations

import contextvars
import dataclasses
import datetime
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina

from m3_connectors.errors import BackendError, InvalidInput, Throttled

T = TypeVar("T")

_log = logging.getLogger(__name__)
_ours = contextvars.ContextVar("m3_retrying", default=False)

# stamina warns of each new try, without saying of what; where no logging is set up Python prints that on stderr.
logging.getLogger("stamina").addFilter(lambda record: not _ours.get())


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
    why = ""
    token = _ours.set(True)

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
                if tries > 1:
                    _log.info("try %d of %d, since: %s", tries, patience.attempts, why)
                try:
                    return await call()
                except BackendError as error:
                    why = str(error).splitlines()[0]
                    raise
    except BackendError as error:
        if tries > 1:
            seconds = time.monotonic() - started
            what, newline, advice = str(error.args[0]).partition("\n")
            error.args = (f"{what.rstrip('.')} after {tries} tries in {seconds:.0f} s.{newline}{advice}",)
        raise
    finally:
        _ours.reset(token)
    raise AssertionError("unreachable: the last try returns or raises")
