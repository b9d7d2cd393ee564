"""Calls at a time: one outcome for all who need it, and turns that nobody waits for without end."""

from __future__ import annotations

import anyio
import pytest

from m3_connectors.backends.together import SingleFlight, Turn
from m3_connectors.testing.conformance import runs


class Counted:
    """A call that waits until it is let go, and counts how often it was made."""

    def __init__(self, error: Exception | None = None) -> None:
        self.made = 0
        self.let_go = anyio.Event()
        self._error = error

    async def __call__(self) -> int:
        self.made += 1
        await self.let_go.wait()
        if self._error:
            raise self._error
        return self.made


@runs
async def test_who_asks_meanwhile_gets_the_same_result() -> None:
    call, shared, results = Counted(), SingleFlight[int](), []

    async def ask() -> None:
        results.append(await shared.of(call))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        call.let_go.set()
    assert (results, call.made) == ([1] * 5, 1)
    assert await shared.of(call) == 2


@runs
async def test_who_asks_meanwhile_gets_the_same_error_and_later_ones_try_again() -> None:
    call, shared, errors = Counted(OSError("down")), SingleFlight[int](), []

    async def ask() -> None:
        try:
            await shared.of(call)
        except OSError as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        call.let_go.set()
    assert (len(errors), call.made) == (5, 1)
    with pytest.raises(OSError, match="down"):
        await shared.of(call)
    assert call.made == 2


@runs
async def test_a_cancelled_call_is_made_again_by_one_who_waits() -> None:
    call, shared, results = Counted(), SingleFlight[int](), []
    first = anyio.CancelScope()

    async def given_up() -> None:
        with first:
            await shared.of(call)

    async def ask() -> None:
        results.append(await shared.of(call))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(given_up)
        await anyio.wait_all_tasks_blocked()
        for _ in range(3):
            tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        first.cancel()
        await anyio.wait_all_tasks_blocked()
        call.let_go.set()
    assert (results, call.made) == ([2] * 3, 2)


@runs
async def test_a_turn_is_given_back_and_not_waited_for_without_end() -> None:
    turns = anyio.Semaphore(1)
    with pytest.raises(KeyError):
        async with Turn(turns, 5, TimeoutError):
            raise KeyError
    async with Turn(turns, 5, TimeoutError):
        with pytest.raises(TimeoutError, match="too late"):
            async with Turn(turns, 0.01, lambda: TimeoutError("too late")):
                pytest.fail("there was one turn only")
    async with Turn(turns, 5, TimeoutError):
        pass
