"""Calls over a network: a deadline for each try, and tries again only where they can help.

Every write of this package may be repeated (an upsert by id, a delete by id), so what is retryable is decided by the
error alone: ``BackendError.retryable``. The pause doubles with jitter; a server's own ``Retry-After`` is obeyed. A
pause that would outlast the call's patience is not begun: the failure is raised at once.
Each new try is logged, by this module's logger, at level INFO.
"""

from __future__ import annotations

import contextvars
import dataclasses
import datetime
import email.utils
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina

from m3_connectors.errors import BackendError, InvalidInput, Throttled

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 15.0
_JITTER_SECONDS = 0.25

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
        for name in ("timeout_seconds", "total_seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InvalidInput(f"{name} is {value!r}: give a number of seconds > 0.")
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise InvalidInput(f"attempts is {self.attempts!r}: give a whole number >= 1.")


def asked_seconds(retry_after: str | None) -> float | None:
    """The pause that a ``Retry-After`` asks for, given in seconds or as a date.

    None where it says neither, and for a date that is over: clocks may differ, so it is no request to hurry.
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
    # A date of HTTP is always GMT.
    seconds = (date.replace(tzinfo=date.tzinfo or datetime.UTC) - now).total_seconds()
    return seconds if seconds > 0 else None


async def retrying(patience: Patience, call: Callable[[], Awaitable[T]]) -> T:
    """Await ``call()`` until it answers, fails for good, or patience ends.

    Raises:
        BackendError: The last failure, its message completed by the number of tries and the time they took, and by
            the pause that the server asks for where that is too long.
    """
    started = time.monotonic()
    tries = 0
    why = ""
    refused: float | None = None
    token = _ours.set(True)

    def again(error: Exception) -> bool | float:
        """The pause before the next try in seconds, or False."""
        nonlocal refused
        if not isinstance(error, BackendError) or not error.retryable:
            return False
        asked = error.retry_after_seconds if isinstance(error, Throttled) else None
        if asked is None:
            doubled = min(_FIRST_PAUSE_SECONDS * 2.0 ** (tries - 1), _LONGEST_PAUSE_SECONDS)
            pause = doubled + random.uniform(0, _JITTER_SECONDS)
        else:
            pause = max(asked, 0.0)
        # False for nan, too.
        if time.monotonic() - started + pause <= patience.total_seconds:
            return pause
        refused = asked
        return False

    try:
        async for attempt in stamina.retry_context(
            on=again,
            attempts=patience.attempts,
            timeout=None,
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
        what, _, advice = str(error.args[0]).partition("\n")
        added = ""
        if tries > 1:
            added = f" after {tries} tries in {time.monotonic() - started:.0f} s"
        if refused is not None:
            added += (
                f"; it asks to wait {refused:g} s, more than total_seconds={patience.total_seconds:g} leaves"
            )
            advice = advice or "  Call again after that, or raise total_seconds."
        if added:
            error.args = (f"{what.rstrip('.')}{added}." + (advice and f"\n{advice}"),)
        raise
    finally:
        _ours.reset(token)
    raise AssertionError("unreachable: the last try returns or raises")
