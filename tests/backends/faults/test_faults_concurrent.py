"""Many searches at once, and one that is given up: the event loop runs on, and the connection stays usable."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from fault_stores import STORES, Case, Target, target_of
from loop_time import wall_seconds

from m3_connectors.methods import ALL
from m3_connectors.search import ScoredId
from m3_connectors.testing.agreement import same_answer
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.faults import Delay, Hang
from m3_connectors.testing.worlds import make_world

pytestmark = pytest.mark.live

bare = pytest.fixture(params=STORES)(target_of)


@pytest.fixture
def target(bare: Target) -> Iterator[Target]:
    with contextlib.ExitStack() as stack:
        if bare.fake is not None:
            # In this process its threads would hold up our loop.
            bare.ports = stack.enter_context(_fake_in_a_process())[: len(bare.ports)]
        yield stack.enter_context(bare.proxied())


@contextlib.contextmanager
def _fake_in_a_process() -> Iterator[list[int]]:
    command = [sys.executable, str(Path(__file__).parents[2] / "qdrant_fake.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield [int(port) for port in process.stdout.readline().split()]
        finally:
            process.kill()


@runs
async def test_a_cancelled_search_leaves_the_connection_usable(target: Target) -> None:
    world = make_world(8)
    case = Case(target.name, "search cancelled after 0.3 s on a host that hangs")
    async with target.stored(world) as backend:
        target.set(Hang())
        with case.call("search, cancelled"):
            started = time.monotonic()
            with anyio.move_on_after(0.3) as scope:
                await backend.search(world.queries[0], ALL, 5)
            assert scope.cancelled_caught
            assert time.monotonic() - started < 30
        target.set(None)
        with case.call("search again"):
            assert len(await backend.search(world.queries[0], ALL, 5)) == 5
        await case.account(backend, world, world.documents[: len(world.documents) // 2])


@runs
async def test_a_hundred_searches_at_once_leave_the_loop_free(target: Target) -> None:
    world = make_world(9, documents=120)
    case = Case(target.name, "100 searches at once")
    # Of the loop, between two looks: how long it was away, and for how much of that it was at work itself.
    looks: list[tuple[float, float]] = []
    long = {"timeout_seconds": 60.0, "total_seconds": 600.0}

    async def watch() -> None:
        while True:
            started, worked = wall_seconds(), time.thread_time()
            await anyio.sleep(0.002)
            looks.append((wall_seconds() - started - 0.002, time.thread_time() - worked))

    async with target.stored(world, timeout_seconds=60.0, total_seconds=600.0) as backend:
        await backend.search(world.queries[0], ALL, 5)
        started = time.monotonic()
        alone = await backend.search(world.queries[0], ALL, 5)
        quick = time.monotonic() - started
        # Each answer comes late: only searches that wait at the same time can take less than the sum of their waits.
        target.set(Delay(0.2))
        started = time.monotonic()
        same_answer(await backend.search(world.queries[0], ALL, 5), alone)
        one = time.monotonic() - started
        answers: list[list[ScoredId]] = []

        async def search() -> None:
            answers.append(await backend.search(world.queries[0], ALL, 5))

        # A full collection of all that this test process has loaded would be the longest stall.
        gc.collect()
        gc.freeze()
        started = time.monotonic()
        async with anyio.create_task_group() as watching:
            watching.start_soon(watch)
            with case.call("search x 100", patience=long):
                async with anyio.create_task_group() as tasks:
                    for _ in range(100):
                        tasks.start_soon(search)
            watching.cancel_scope.cancel()
        hundred = time.monotonic() - started
        gc.unfreeze()
        target.set(None)
    assert len(answers) == 100
    for answer in answers:
        same_answer(answer, alone)
    stall, work = max(away for away, _ in looks), max(at_work for _, at_work in looks)
    case.record(stall_ms=round(1e3 * stall), loop_work_ms=round(1e3 * work))
    assert one >= 0.2
    # What the machine itself does may take a hundred times as long, on one core; at most half of the waits may.
    assert hundred < 100 * quick + 50 * max(one - quick, 0.2)
    assert len(looks) > 20
    # Work takes longer on a machine that is slow or busy; to wait on the loop itself is no work.
    assert max(away - 4 * at_work for away, at_work in looks) < 1.0
    assert work < sum(at_work for _, at_work in looks) / 2
