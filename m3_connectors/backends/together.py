"""Several requests at a time, whose first failure is raised as itself and not wrapped in a group."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

T = TypeVar("T")


async def together(calls: Sequence[Callable[[], Awaitable[T]]], at_once: int | None = None) -> list[T]:
    """Await all calls, at most ``at_once`` at a time; their results in order.

    Raises:
        Exception: The first that a call raised; the other calls are cancelled.
    """
    if len(calls) == 1:
        return [await calls[0]()]  # what a task of its own costs is a fifth of a short search
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
