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
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.faults import Hang
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
    command = [sys.executable, str(Path(__file__).parent / "qdrant_fake.py")]
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
            assert time.monotonic() - started < 3
        target.set(None)
        with case.call("search again"):
            assert len(await backend.search(world.queries[0], ALL, 5)) == 5
        await case.account(backend, world, world.documents[: len(world.documents) // 2])


@runs
async def test_a_hundred_searches_at_once_leave_the_loop_free(target: Target) -> None:
    world = make_world(9, documents=120)
    case = Case(target.name, "100 searches at once")
    stalls, work, waits = [0.0], [0.0], [0.0]

    async def watch() -> None:
        while True:
            started, worked, own = time.monotonic(), time.thread_time(), wall_seconds()
            await anyio.sleep(0.002)
            stalls.append(time.monotonic() - started - 0.002)
            work.append(time.thread_time() - worked)
            waits.append(wall_seconds() - own)

    async with target.stored(world) as backend:
        alone = await backend.search(world.queries[0], ALL, 5)
        answers: list[object] = []

        async def search() -> None:
            answers.append(await backend.search(world.queries[0], ALL, 5))

        # A full collection of all that this test process has loaded would be the longest stall.
        gc.collect()
        gc.freeze()
        async with anyio.create_task_group() as watching:
            watching.start_soon(watch)
            with case.call("search x 100", patience={"timeout_seconds": 0.0, "total_seconds": 60.0}):
                async with anyio.create_task_group() as tasks:
                    for _ in range(100):
                        tasks.start_soon(search)
            watching.cancel_scope.cancel()
        gc.unfreeze()
    assert answers == [alone] * 100
    case.record(stall_ms=round(1e3 * max(stalls)), loop_work_ms=round(1e3 * max(work)))
    # The loop's own work: a machine that is busy with other things does not count.
    assert max(work) < 0.25
    if target.name == "elasticsearch":  # nor may a sleep or a lock hold it
        assert max(waits) < 1
    # A search on the loop itself would hold it until the last is answered.
    assert len(stalls) > 20
