"""Concurrent calls: collect the results of several, share one result, limit how many run at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


async def together(calls: Sequence[Callable[[], Awaitable[T]]], at_once: int | None = None) -> list[T]:
    """Await all calls, at most ``at_once`` at a time, and return their results in order.

    Raises:
        Exception: The first exception of a call, not wrapped in a group; the other calls are cancelled.
    """
    if len(calls) == 1:
        return [await calls[0]()]  # the overhead of a task would be a fifth of a short search
    results: dict[int, T] = {}
    limiter = anyio.CapacityLimiter(at_once or max(1, len(calls)))

    async def run(i: int, call: Callable[[], Awaitable[T]]) -> None:
        async with limiter:
            results[i] = await call()

    try:
        async with anyio.create_task_group() as tasks:
            for i, call in enumerate(calls):
                tasks.start_soon(run, i, call)
    except ExceptionGroup as group:
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__
    return [results[i] for i in range(len(calls))]


class SingleFlight(Generic[T]):
    """A call whose result is shared: a caller that arrives while it runs gets the same result or error."""

    def __init__(self) -> None:
        self._under_way: _Attempt[T] | None = None

    async def of(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the result of the running call, or run this one; a cancelled running call is repeated.

        Raises:
            Exception: Any exception of the call.
        """
        while (attempt := self._under_way) is not None:
            await attempt.over.wait()
            if attempt.error is not None:
                raise attempt.error
            if attempt.results:
                return attempt.results[0]
        attempt = self._under_way = _Attempt()
        try:
            attempt.results.append(await call())
        except Exception as error:
            attempt.error = error
            raise
        finally:
            self._under_way = None
            attempt.over.set()
        return attempt.results[0]


@dataclasses.dataclass
class _Attempt(Generic[T]):
    over: anyio.Event = dataclasses.field(default_factory=anyio.Event)
    results: list[T] = dataclasses.field(default_factory=list)
    error: Exception | None = None


class Turn:
    """Hold one slot of a semaphore or limiter; raises ``late()`` if none is free within ``seconds``."""

    # This is not a generator: Python would warn about one that starts while the loop closes, to finish a
    # scan.
    def __init__(
        self, turns: anyio.Semaphore | anyio.CapacityLimiter, seconds: float, late: Callable[[], Exception]
    ) -> None:
        self._turns, self._seconds, self._late = turns, seconds, late

    async def __aenter__(self) -> None:
        with anyio.move_on_after(self._seconds) as waiting:
            await self._turns.acquire()
        if waiting.cancelled_caught:
            raise self._late()

    async def __aexit__(self, *_: object) -> None:
        self._turns.release()
