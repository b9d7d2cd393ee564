"""Many calls at once on the Milvus adapter: the loop is free, calls wait in turn, what is given up is not sent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from pymilvus import MilvusClient

from m3_connectors.backends.milvus.backend import MilvusBackend
from m3_connectors.backends.milvus.connection import _THREADS
from m3_connectors.backends.milvus.exclusion import Exclusion
from m3_connectors.documents import Document
from m3_connectors.errors import TimedOut
from m3_connectors.methods import DENSE
from m3_connectors.search import ScoredId
from m3_connectors.testing.agreement import same_answer
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.worlds import make_world

WORLD = make_world(81, documents=20)


@asynccontextmanager
async def stored(directory: Path, **options: Any) -> AsyncIterator[MilvusBackend]:
    backend = MilvusBackend.from_url(f"milvus:{directory}/data.db", "notes", options)
    await backend.create(WORLD.schema)
    await backend.upsert(WORLD.documents, WORLD.embeddings)
    yield backend
    await backend.close()


def exclusion_of(backend: MilvusBackend) -> Exclusion:
    connection = backend._connected
    assert connection is not None
    assert connection._exclusion is not None
    return connection._exclusion


def other_write(backend: MilvusBackend, collection: str = "notes") -> contextlib.AbstractContextManager[None]:
    """Hold the engine's turn, as another connection of this process holds it while it writes."""
    return exclusion_of(backend).turn(collection, True, 0, AssertionError)


async def until_calls(backend: MilvusBackend, count: int) -> None:
    """Wait until this many calls to the engine are running or waiting for their turn."""
    with anyio.fail_after(30):
        while len(exclusion_of(backend)._calls) != count:
            await anyio.sleep(0.001)


@asynccontextmanager
async def longest_stall() -> AsyncIterator[Callable[[], float]]:
    """The longest time for which the loop did nothing else, in seconds of the clock."""
    stalls = [0.0]

    async def watch() -> None:
        while True:
            started = time.monotonic()
            await anyio.sleep(0.005)
            stalls.append(time.monotonic() - started)

    async with anyio.create_task_group() as watching:
        watching.start_soon(watch)
        yield lambda: max(stalls)
        watching.cancel_scope.cancel()


@runs
async def test_no_search_of_a_hundred_holds_the_loop_while_the_server_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seconds = MilvusClient.search, 2.0
    slow_left = [4]

    def slow(self: MilvusClient, *arguments: Any, **options: Any) -> Any:
        if slow_left[0]:
            slow_left[0] -= 1
            time.sleep(seconds)
        return real(self, *arguments, **options)

    async with stored(tmp_path) as backend:
        alone = await backend.search(WORLD.queries[0], DENSE, 5)
        monkeypatch.setattr(MilvusClient, "search", slow)
        answers: list[list[ScoredId]] = []

        async def search() -> None:
            answers.append(await backend.search(WORLD.queries[0], DENSE, 5))

        async with longest_stall() as stall:
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(search)
            # One slow answer on the loop would be a stall of all its seconds; a busy machine alone makes none of half.
            assert stall() < seconds / 2
    assert len(answers) == 100
    for answer in answers:
        same_answer(answer, alone)
    assert slow_left == [0]


@runs
async def test_writes_that_wait_for_one_elsewhere_hold_up_no_read_and_not_the_loop(tmp_path: Path) -> None:
    async with stored(tmp_path) as backend, longest_stall() as stall:

        async def write(i: int) -> None:
            await backend.upsert([Document(f"new {i}", "")], WORLD.embeddings[0])

        async with anyio.create_task_group() as tasks:
            with other_write(backend, "others"):
                for i in range(20):
                    tasks.start_soon(write, i)
                await until_calls(backend, 1 + _THREADS)  # the other writes wait for a thread
                assert stall() < 1
            with anyio.fail_after(10):
                for _ in range(3):
                    assert await backend.fetch([WORLD.documents[0].id]) == [WORLD.documents[0]]
        assert await backend.count() == len(WORLD.documents) + 20


@pytest.mark.parametrize("before_it", [0, 3])
@runs
async def test_a_write_that_is_given_up_while_it_waits_is_not_applied(tmp_path: Path, before_it: int) -> None:
    async with stored(tmp_path) as backend:

        async def write(text: str) -> None:
            await backend.upsert([Document("it", text)], WORLD.embeddings[0])

        async with anyio.create_task_group() as tasks:
            with other_write(backend):
                for _ in range(before_it):
                    tasks.start_soon(write, "before")
                await until_calls(backend, 1 + before_it)
                async with anyio.create_task_group() as given_up:
                    given_up.start_soon(write, "given up")
                    await until_calls(backend, 2 + before_it)
                    given_up.cancel_scope.cancel()
                assert len(exclusion_of(backend)._calls) == 2 + before_it  # its thread still waits
        await until_calls(backend, 0)
        assert await backend.fetch(["it"]) == [Document("it", "before") if before_it else None]


@runs
async def test_a_call_waits_for_others_no_longer_than_its_deadline(tmp_path: Path) -> None:
    async with stored(tmp_path, timeout_seconds=0.5, attempts=2, total_seconds=3.0) as backend:
        started = time.monotonic()

        async def write(i: int) -> None:
            with pytest.raises(TimedOut, match=r"busy with earlier calls of this process for 0\.5 s"):
                await backend.upsert([Document(f"{i}", "")], WORLD.embeddings[0])

        async def read() -> None:
            with pytest.raises(TimedOut, match=r"was busy with earlier calls of this process for 0\.5 s"):
                await backend.fetch([WORLD.documents[0].id])

        with other_write(backend):
            async with anyio.create_task_group() as tasks:
                for i in range(5):
                    tasks.start_soon(write, i)
                tasks.start_soon(read)
        assert time.monotonic() - started < 10
        await until_calls(backend, 0)
        assert await backend.count() == len(WORLD.documents)
