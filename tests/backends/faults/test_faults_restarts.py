"""Servers that are killed (SIGKILL) and started again, between two batches and in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest
from fault_stores import FOR_A_RESTART, STORES, Case, Target, target_of

from m3_connectors.testing.conformance import runs
from m3_connectors.testing.faults import Delay
from m3_connectors.testing.worlds import make_world

pytestmark = pytest.mark.live

bare = pytest.fixture(params=STORES)(target_of)


@pytest.fixture
def target(bare: Target) -> Iterator[Target]:
    if bare.restart is None:
        pytest.skip("this server is not ours to restart")
    with bare.proxied():
        yield bare


@runs
async def test_a_restart_between_two_batches_is_not_seen(target: Target) -> None:
    world = make_world(5)
    half = len(world.documents) // 2
    case = Case(target.name, "killed and started between two batches")
    async with target.stored(world, **FOR_A_RESTART) as backend:
        assert target.restart is not None
        await anyio.to_thread.run_sync(target.restart)
        with case.call("upsert", patience=FOR_A_RESTART):
            await backend.upsert(world.documents[half:], world.embeddings[half:])
        await case.account(backend, world, world.documents)


@runs
async def test_a_restart_in_mid_batch_loses_nothing_acknowledged(target: Target) -> None:
    world = make_world(6, documents=400)
    case = Case(target.name, "killed and started in mid-batch")
    acknowledged = list(world.documents[:200])
    async with target.stored(world, **FOR_A_RESTART) as backend:

        async def write() -> None:
            for start in range(200, 400, 20):
                batch = slice(start, start + 20)
                with case.call("upsert", patience=FOR_A_RESTART):
                    await backend.upsert(world.documents[batch], world.embeddings[batch])
                acknowledged.extend(world.documents[batch])

        target.set(Delay(0.05))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            while len(acknowledged) < 240:
                await anyio.sleep(0.001)
            # The third of ten batches is on its way.
            assert target.restart is not None
            await anyio.to_thread.run_sync(target.restart)
        assert len(acknowledged) == 400
        case.rows[:] = [max(case.rows, key=lambda row: row["seconds"])]
        target.set(None)
        await case.account(backend, world, acknowledged)
