"""What networks do to each store: typed errors in time, nothing acknowledged lost, the same call works afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from fault_stores import HASTE, STORES, Case, Target, target_of

from m3_connectors.errors import BackendError, TimedOut, Unauthorised, Unavailable
from m3_connectors.methods import ALL
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.faults import Cut, Delay, DropRequest, Fault, FaultProxy, Hang, Refuse, Reset
from m3_connectors.testing.worlds import World, make_world

pytestmark = pytest.mark.live

bare = pytest.fixture(params=STORES)(target_of)


@pytest.fixture
def target(bare: Target) -> Iterator[Target]:
    with bare.proxied():
        yield bare


def half_of(world: World) -> Any:
    return world.documents[: len(world.documents) // 2]


@runs
async def test_a_wrong_port_is_unavailable(bare: Target) -> None:
    case = Case(bare.name, "wrong port")
    with FaultProxy(1) as nobody:
        nobody.fault = Refuse()
        bare.proxies = [nobody] * len(bare.ports)
        backend = bare.backend(attempts=2)
        with case.call("open", Unavailable, match=str(nobody.port)):
            await backend.open()
        nobody.fault = None
        await backend.close()
    case.record()


@runs
async def test_a_host_that_hangs_is_timed_out(target: Target) -> None:
    world = make_world(1)
    case = Case(target.name, "host that hangs")
    async with target.stored(world, **HASTE) as backend:
        target.set(Hang())
        with case.call("search", TimedOut, patience=HASTE):
            await backend.search(world.queries[0], ALL, 5)
        with case.call("upsert", TimedOut, patience=HASTE):
            await backend.upsert(world.documents, world.embeddings)
        assert case.error is not None
        assert case.error.retryable
        with case.call("scan", TimedOut, patience=HASTE):
            await anext(backend.scan_ids())
        other = target.backend(**HASTE)
        with case.call("open", TimedOut, patience=HASTE):
            await other.open()
        target.set(None)
        with case.call("open, mended"):
            await other.open()
        await other.close()
        await case.account(backend, world, half_of(world))


@runs
async def test_a_host_that_hangs_keeps_no_queue_waiting(target: Target) -> None:
    """Far more calls at once than any store has connections are over when one of them is."""
    world = make_world(1)
    case = Case(target.name, "host that hangs, 200 calls at once")
    once = {"timeout_seconds": 1.0, "attempts": 1, "total_seconds": 1.0}
    errors: list[Exception] = []

    async def ask(call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except TimedOut as error:
            errors.append(error)

    async with target.stored(world, **once) as backend:
        target.set(Hang())
        other = target.backend(**once)
        for name, call in (
            ("search x 200", lambda: backend.search(world.queries[0], ALL, 5)),
            ("open x 200", other.open),
        ):
            errors.clear()
            with case.call(name, TimedOut, patience=once):
                async with anyio.create_task_group() as tasks:
                    for _ in range(200):
                        tasks.start_soon(ask, call)
                assert len(errors) == 200
                raise errors[0]
        target.set(None)
        await other.close()
        await case.account(backend, world, half_of(world))


PASSING = {
    "no answer": Cut(0, times=1),
    "half an answer": Cut(60, times=1),
    "reset": Reset(0, times=1),
    "reset in mid-answer": Reset(60, times=1),
    "half a request": DropRequest(100, times=1),
    "slow": Delay(0.1),
}


@pytest.mark.parametrize("name", PASSING)
@runs
async def test_a_fault_that_passes_is_not_seen(target: Target, name: str) -> None:
    world, fault = make_world(2), PASSING[name]
    half = len(world.documents) // 2
    case = Case(target.name, f"{name}, once" if fault.times else name)
    async with target.stored(world) as backend:
        wanted = await backend.search(world.queries[0], ALL, 10)
        target.set(fault)
        with case.call("search"):
            assert await backend.search(world.queries[0], ALL, 10) == wanted
        assert target.faults >= 1
        target.set(fault)
        with case.call("upsert"):
            await backend.upsert(world.documents[half:], world.embeddings[half:])
        assert target.faults >= 2
        target.set(fault)
        with case.call("scan"):
            assert len([id async for id in backend.scan_ids()]) == len(world.documents)
        target.set(None)
        await case.account(backend, world, world.documents)


STAYING: dict[str, Fault] = {"cut": Cut(0), "reset in mid-answer": Reset(40), "down": Refuse()}


@pytest.mark.parametrize("name", STAYING)
@runs
async def test_a_fault_that_stays_is_a_typed_error_until_it_is_over(target: Target, name: str) -> None:
    world = make_world(3)
    case = Case(target.name, f"{name}, until mended")
    async with target.stored(world, attempts=2) as backend:
        target.set(STAYING[name])
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "search": lambda: backend.search(world.queries[0], ALL, 5),
            "upsert": lambda: backend.upsert(world.documents, world.embeddings),
            "fetch": lambda: backend.fetch([world.documents[0].id]),
        }
        for call, made in calls.items():
            with case.call(call, Unavailable, TimedOut):
                await made()
            assert case.error is not None
            assert case.error.retryable
        target.set(None)
        await case.account(backend, world, half_of(world))


@runs
async def test_nothing_acknowledged_is_lost_in_a_storm(target: Target) -> None:
    world = make_world(4, documents=60)
    case = Case(target.name, "reset by chance, 15 writes")
    acknowledged = list(world.documents[:1])
    async with target.stored(dataclasses.replace(world, documents=world.documents[:2])) as backend:
        target.set(Reset(0, probability=0.15))
        for start in range(0, 60, 4):
            batch = slice(start, start + 4)
            with contextlib.suppress(BackendError), case.call("upsert"):
                await backend.upsert(world.documents[batch], world.embeddings[batch])
                acknowledged += world.documents[batch]
        assert target.faults > 0
        case.rows[:] = [max(case.rows, key=lambda row: row["seconds"])]
        target.set(None)
        await case.account(backend, world, acknowledged)


@runs
async def test_a_certificate_that_is_not_trusted_is_named(bare: Target, tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    files = {name: str(tmp_path / f"{name}.pem") for name in ("authority", "stranger")}
    authority.cert_pem.write_to_path(files["authority"])
    stranger.cert_pem.write_to_path(files["stranger"])

    def context(grpc: bool) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued.configure_cert(made)
        made.set_alpn_protocols(["h2"] if grpc else ["http/1.1"])
        return made

    world = make_world(7, documents=12)
    case = Case(bare.name, "wrong CA")
    with bare.proxied(context):
        trusting = bare.backend(ca_certs=files["authority"])
        await trusting.create(world.schema)
        await trusting.upsert(world.documents, world.embeddings)
        for options in ({"ca_certs": files["stranger"]}, {}):
            doubting = bare.backend(**options)
            with case.call("open", Unauthorised, match="certificate"):
                await doubting.open()
            assert case.error is not None
            assert not case.error.retryable
            await doubting.close()
        await case.account(trusting, world, world.documents)
        await trusting.drop()
        await trusting.close()
