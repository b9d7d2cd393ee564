"""The Milvus adapter when the network or the server fails, and when many ask at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import grpc
import pytest
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from m3_connectors.backends.milvus.backend import MilvusBackend
from m3_connectors.backends.milvus.errors import TooLarge, translated
from m3_connectors.errors import (
    AlreadyExists,
    BackendError,
    NotFound,
    PartialWrite,
    Rejected,
    StorageFull,
    Throttled,
    TimedOut,
    Unauthorised,
    Unavailable,
)
from m3_connectors.methods import ALL
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.faults import Cut, Delay, DropRequest, Fault, FaultProxy, Hang, Refuse, Reset
from m3_connectors.testing.servers import CannotStart
from m3_connectors.testing.servers.milvus import MilvusServer
from m3_connectors.testing.worlds import make_world

WORLD = make_world(61, documents=40)
HURRIED = {"timeout_seconds": 1.0, "attempts": 2, "total_seconds": 3.0}
PATIENT = {"timeout_seconds": 2.0, "attempts": 12, "total_seconds": 30.0}


@pytest.fixture
def server() -> Iterator[MilvusServer]:
    """A server of this test's own, to be hurt."""
    try:
        started = MilvusServer()
    except CannotStart as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(reason))
    started.start()
    yield started
    started.remove()


def backend_at(port: int, **options: Any) -> MilvusBackend:
    return MilvusBackend.from_url(f"milvus+http://127.0.0.1:{port}", "notes", options)


async def stored(port: int, documents: int = 40, **options: Any) -> MilvusBackend:
    backend = backend_at(port, **options)
    await backend.create(WORLD.schema)
    await backend.upsert(WORLD.documents[:documents], WORLD.embeddings[:documents])
    return backend


@runs
async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        backend = backend_at(taken.getsockname()[1], **HURRIED)
        started = time.monotonic()
        with pytest.raises(Unavailable, match=r"no connection at http://127.*after 2 tries(.|\n)*server up"):
            await backend.open()
        assert time.monotonic() - started < 6
    await backend.close()


@runs
async def test_somebody_listens_and_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        backend = backend_at(silent.getsockname()[1], **HURRIED)
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await backend.open()
        assert time.monotonic() - started < 6
    await backend.close()


@pytest.mark.parametrize(
    "fault",
    [
        Cut(times=1),
        Cut(after_bytes=200, times=1),
        Reset(times=1),
        DropRequest(after_bytes=500, times=1),
        Delay(0.05, times=20),
    ],
    ids=repr,
)
@runs
async def test_a_broken_call_is_made_again(server: MilvusServer, fault: Fault) -> None:
    with FaultProxy(server.port) as proxy:
        backend = await stored(proxy.port, 20, **PATIENT)
        before = await backend.search(WORLD.queries[0], ALL, 5)
        proxy.fault = fault
        assert await backend.search(WORLD.queries[0], ALL, 5) == before
        assert proxy.faults >= 1
        proxy.fault = fault
        await backend.upsert(WORLD.documents, WORLD.embeddings)
        proxy.fault = None
        assert await backend.count() == len(WORLD.documents)
        await backend.close()


@runs
async def test_an_outage_is_told_in_time_and_over_when_it_is_over(server: MilvusServer) -> None:
    with FaultProxy(server.port) as proxy:
        backend = await stored(proxy.port, 20, **HURRIED)
        for fault, kind in ((Refuse(), Unavailable), (Hang(), (TimedOut, Unavailable))):
            proxy.fault = fault
            started = time.monotonic()
            with pytest.raises(kind):
                await backend.upsert(WORLD.documents, WORLD.embeddings)
            assert time.monotonic() - started < 8
            proxy.fault = None
            # gRPC tries the address again after a second at most, so that this may need another call.
            for _ in range(5):
                with contextlib.suppress(Unavailable, TimedOut):
                    assert await backend.count() in (20, 40)
                    break
            else:
                pytest.fail("the outage is over and the connection is not")
        await backend.upsert(WORLD.documents, WORLD.embeddings)
        assert await backend.count() == 40
        assert {id async for id in backend.scan_ids()} == {document.id for document in WORLD.documents}
        await backend.close()


@pytest.mark.parametrize("kill", [False, True])
@runs
async def test_a_server_that_restarts_between_two_calls_lost_nothing(
    server: MilvusServer, kill: bool
) -> None:
    backend = await stored(server.port, 20, **PATIENT)
    before = await backend.search(WORLD.queries[0], ALL, 20)
    server.stop(kill=kill)
    server.start()
    assert [hit.id for hit in await backend.search(WORLD.queries[0], ALL, 20)] == [hit.id for hit in before]
    await backend.upsert(WORLD.documents[20:], WORLD.embeddings[20:])
    assert await backend.count() == 40
    await backend.close()


@runs
async def test_a_server_killed_in_the_middle_of_writing_holds_all_that_was_acknowledged(
    server: MilvusServer,
) -> None:
    backend = await stored(server.port, 1, **PATIENT)
    acknowledged: list[str] = []

    async def write() -> None:
        for i in range(len(WORLD.documents)):
            await backend.upsert([WORLD.documents[i]], WORLD.embeddings[i])
            acknowledged.append(WORLD.documents[i].id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        for _ in range(2):
            await anyio.sleep(0.3)
            await anyio.to_thread.run_sync(lambda: server.stop(kill=True))
            await anyio.to_thread.run_sync(server.start)
    assert len(acknowledged) == 40
    assert await backend.count() == 40
    assert None not in await backend.fetch(acknowledged)
    await backend.close()


@runs
async def test_a_cancelled_search_leaves_the_connection_usable(server: MilvusServer) -> None:
    backend = await stored(server.port, **PATIENT)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with anyio.move_on_after(0.3) as scope:
            await backend.search(WORLD.queries[0], ALL, 5)
        assert scope.cancelled_caught
        assert time.monotonic() - started < 1.5
    finally:
        os.kill(server.pid, signal.SIGCONT)
    with anyio.fail_after(5):
        assert len(await backend.search(WORLD.queries[0], ALL, 5)) == 5
    await backend.close()


@runs
async def test_a_hundred_searches_at_once_do_not_stall_the_loop(server: MilvusServer) -> None:
    backend = await stored(server.port, **{**PATIENT, "timeout_seconds": 30.0, "total_seconds": 60.0})
    alone = await backend.search(WORLD.queries[0], ALL, 5)
    longest = 0.0
    answers: list[object] = []

    async def search() -> None:
        answers.append(await backend.search(WORLD.queries[0], ALL, 5))

    async def watch() -> None:
        nonlocal longest
        while True:
            started = time.monotonic()
            await anyio.sleep(0.005)
            longest = max(longest, time.monotonic() - started)

    began = time.monotonic()
    async with anyio.create_task_group() as watcher:
        watcher.start_soon(watch)
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(search)
        elapsed = time.monotonic() - began
        watcher.cancel_scope.cancel()
    assert answers == [alone] * 100
    # On the loop itself they would hold it all that time; the share leaves room for a busy machine.
    assert longest < elapsed / 4, f"the event loop stood still for {longest:.2f} of {elapsed:.2f} s"
    await backend.close()


# -- what servers say that milvus-lite never does


class _Call(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MilvusException(100, "can't find collection[notes]"), NotFound),
        (MilvusException(8, "request is rejected by grpc RateLimiter"), Throttled),
        (MilvusException(65535, "auth check failure, please check api key is correct"), Unauthorised),
        (MilvusException(1100, "invalid parameter"), Rejected),
        (MilvusException(1, "collection 'x' already exists"), AlreadyExists),
        (MilvusException(1, "[Errno 28] No space left on device"), StorageFull),
        (MilvusException(2, "Fail connecting to server"), Unavailable),
        (MilvusException(grpc.StatusCode.UNAVAILABLE, "Retry run out of 75"), Unavailable),
        (MilvusException(1, "Unexpected error, message=<Cannot invoke RPC on closed channel!>"), Unavailable),
        (_Call(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), TimedOut),
        (_Call(grpc.StatusCode.RESOURCE_EXHAUSTED, "received message larger than max"), TooLarge),
        (_Call(grpc.StatusCode.UNAUTHENTICATED, "no"), Unauthorised),
        (_Call(grpc.StatusCode.PERMISSION_DENIED, "PrivilegeInsert"), Unauthorised),
        (_Call(grpc.StatusCode.UNIMPLEMENTED, "unknown method"), Rejected),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_failure_is_its_own_kind(error: Exception, kind: type[BackendError]) -> None:
    made = translated(error, "search", "http://h:19530")
    assert type(made) is kind
    assert made.backend == "milvus"
    assert made.operation == "search"
    assert "http://h:19530" in str(made)


def _failing(times: int, error: Exception) -> Callable[..., Any]:
    """``MilvusClient.upsert`` that raises at first."""
    real = MilvusClient.upsert
    left = [times]

    def upsert(self: MilvusClient, *arguments: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return real(self, *arguments, **options)

    return upsert


@runs
async def test_a_server_that_asks_to_slow_down_is_obeyed(
    server: MilvusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = await stored(server.port, 1, **PATIENT)
    monkeypatch.setattr(MilvusClient, "upsert", _failing(2, MilvusException(8, "rate limit exceeded")))
    await backend.upsert(WORLD.documents, WORLD.embeddings)
    assert await backend.count() == 40
    await backend.close()


@runs
async def test_a_message_that_is_too_large_is_halved_and_a_row_that_is_too_large_is_named(
    server: MilvusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = await stored(server.port, 1, **HURRIED)
    real = MilvusClient.upsert

    def narrow(self: MilvusClient, collection: str, data: list[dict[str, Any]], **options: Any) -> Any:
        if len(data) > 3 or any(row["text"] == ["too much"] for row in data):
            raise _Call(grpc.StatusCode.RESOURCE_EXHAUSTED, "received message larger than max")
        return real(self, collection, data=data, **options)

    monkeypatch.setattr(MilvusClient, "upsert", narrow)
    documents = list(WORLD.documents)
    documents[17] = type(documents[17])(documents[17].id, "too much", {})
    with pytest.raises(PartialWrite) as caught:
        await backend.upsert(documents, WORLD.embeddings)
    assert set(caught.value.failed) == {documents[17].id}
    assert await backend.count() == 39
    await backend.close()
