"""What networks and dying servers do to each store: typed errors in time, nothing acknowledged lost, and afterwards
the same call works. Driven by the proxy of ``testing.faults`` in front of real servers, and of the fake Qdrant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
import trustme
from qdrant_fake import FakeQdrant

from m3_connectors.backends.base import Backend
from m3_connectors.backends.registry import backend_for
from m3_connectors.errors import BackendError, PartialWrite, TimedOut, Unauthorised, Unavailable
from m3_connectors.methods import ALL
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.faults import Cut, Delay, DropRequest, Fault, FaultProxy, Hang, Refuse, Reset
from m3_connectors.testing.worlds import World, make_world

PATIENCE = {"timeout_seconds": 4.0, "attempts": 3, "total_seconds": 6.0}
DEADLINE_SECONDS = 20.0
"""No call may take longer: the time of all tries, one try more, and what a busy machine adds."""


@dataclasses.dataclass
class Target:
    """A store behind proxies, one for each of its ports."""

    scheme: str
    host: str
    ports: list[int]
    options: dict[str, Any]
    restart: Callable[[], None] | None
    proxies: list[FaultProxy] = dataclasses.field(default_factory=list)
    tls: bool = False
    collection: str = dataclasses.field(default_factory=lambda: f"faults-{uuid.uuid4().hex[:12]}")

    def backend(self, **options: Any) -> Backend:
        first, *others = self.proxies
        more = {"grpc_port": others[0].port} if others else {}
        url = f"{self.scheme}+http{'s' if self.tls else ''}://127.0.0.1:{first.port}"
        return backend_for(url, self.collection, {**PATIENCE, **self.options, **more, **options})

    def direct(self) -> Backend:
        """The same collection without a proxy in between."""
        more = {"grpc_port": self.ports[1]} if self.ports[1:] else {}
        return backend_for(
            f"{self.scheme}+http://{self.host}:{self.ports[0]}", self.collection, {**self.options, **more}
        )

    def set(self, fault: Fault | None) -> None:
        for proxy in self.proxies:
            proxy.fault = fault

    @property
    def faults(self) -> int:
        return sum(proxy.faults for proxy in self.proxies)


@pytest.fixture(scope="module")
def fake_qdrant() -> Iterator[FakeQdrant]:
    with FakeQdrant() as fake:
        yield fake


def restarted(fake: FakeQdrant) -> None:
    fake.stop()
    fake.start()


@pytest.fixture(params=["qdrant-grpc", "qdrant-rest", "milvus", "elasticsearch"])
def bare(request: pytest.FixtureRequest) -> Target:
    """A store without its proxies."""
    name = request.param
    if name.startswith("qdrant"):
        fake = request.getfixturevalue("fake_qdrant")
        transport = name.partition("-")[2]
        ports = [fake.port, fake.grpc_port] if transport == "grpc" else [fake.port]
        return Target(
            "qdrant", "127.0.0.1", ports, {"transport": transport}, functools.partial(restarted, fake)
        )
    running = request.getfixturevalue(f"{name}_store")
    parts = urlsplit(running.url)
    assert parts.hostname is not None
    assert parts.port is not None
    restart = None
    if running.server is not None:

        def restart() -> None:
            running.server.stop(kill=True)
            running.server.start()

    options = {"replicas": 0} if name == "elasticsearch" else {}
    return Target(name, parts.hostname, [parts.port], options, restart)


@pytest.fixture
def target(bare: Target) -> Iterator[Target]:
    with contextlib.ExitStack() as proxies:
        bare.proxies = [proxies.enter_context(FaultProxy(port, bare.host, seed=7)) for port in bare.ports]
        yield bare


@contextlib.asynccontextmanager
async def stored(target: Target, world: World, **options: Any) -> AsyncIterator[Backend]:
    """The collection with the first half of a world in it; made and dropped patiently and without a proxy."""
    patient, backend = target.direct(), target.backend(**options)
    half = len(world.documents) // 2
    try:
        await patient.create(world.schema)
        await patient.upsert(world.documents[:half], world.embeddings[:half])
        await backend.open()
        yield backend
    finally:
        with anyio.CancelScope(shield=True):
            await backend.close()
            await patient.drop()
            await patient.close()


async def everything_is_there_once(backend: Backend, world: World) -> None:
    """Write the whole world again, as a user does after an error, and look."""
    await backend.upsert(world.documents, world.embeddings)
    assert await backend.count() == len(world.documents)
    assert sorted([id async for id in backend.scan_ids()]) == sorted(d.id for d in world.documents)
    assert await backend.fetch([d.id for d in world.documents]) == world.documents
    assert len(await backend.search(world.queries[0], ALL, 10)) == 10


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < DEADLINE_SECONDS


@runs
async def test_a_wrong_port_is_unavailable(bare: Target) -> None:
    with FaultProxy(1) as nobody:
        nobody.fault = Refuse()
        bare.proxies = [nobody] * len(bare.ports)
        backend = bare.backend()
        with in_time(), pytest.raises(Unavailable, match=str(nobody.port)):
            await backend.open()
        await backend.close()


@runs
async def test_a_host_that_hangs_is_timed_out(target: Target) -> None:
    world = make_world(1)
    async with stored(target, world) as backend:
        target.set(Hang())
        with in_time(), pytest.raises(TimedOut):
            await backend.search(world.queries[0], ALL, 5)
        with in_time(), pytest.raises(BackendError) as caught:
            await backend.upsert(world.documents, world.embeddings)
        assert caught.value.retryable
        target.set(None)
        await everything_is_there_once(backend, world)


@pytest.mark.parametrize(
    "fault",
    [
        Cut(0, times=1),
        Cut(60, times=1),
        Reset(0, times=1),
        Reset(60, times=1),
        DropRequest(100, times=1),
        Delay(0.3),
    ],
    ids=["no answer", "half an answer", "reset", "reset in mid-answer", "half a request", "slow"],
)
@runs
async def test_a_fault_that_passes_is_not_seen(target: Target, fault: Fault) -> None:
    world = make_world(2)
    half = len(world.documents) // 2
    async with stored(target, world) as backend:
        wanted = await backend.search(world.queries[0], ALL, 10)
        target.set(fault)
        with in_time():
            assert await backend.search(world.queries[0], ALL, 10) == wanted
        assert target.faults >= 1
        target.set(fault)
        with in_time():
            await backend.upsert(world.documents[half:], world.embeddings[half:])
        assert target.faults >= 2
        target.set(fault)
        with in_time():
            assert await backend.count() == len(world.documents)
        target.set(None)
        await everything_is_there_once(backend, world)


@pytest.mark.parametrize("fault", [Cut(0), Reset(40), Refuse()], ids=["cut", "reset", "down"])
@runs
async def test_a_fault_that_stays_is_a_typed_error_until_it_is_over(target: Target, fault: Fault) -> None:
    world = make_world(3)
    async with stored(target, world) as backend:
        target.set(fault)
        calls: list[Callable[[], Any]] = [
            lambda: backend.search(world.queries[0], ALL, 5),
            lambda: backend.upsert(world.documents, world.embeddings),
            lambda: backend.fetch([world.documents[0].id]),
        ]
        for call in calls:
            with in_time(), pytest.raises(BackendError) as caught:
                await call()
            assert caught.value.retryable, caught.value
            assert not isinstance(caught.value, PartialWrite)
        target.set(None)
        await everything_is_there_once(backend, world)


@runs
async def test_nothing_acknowledged_is_lost_in_a_storm(target: Target) -> None:
    world = make_world(4, documents=60)
    acknowledged = []
    async with stored(target, dataclasses.replace(world, documents=world.documents[:2])) as backend:
        target.set(Reset(0, probability=0.15))
        for start in range(0, 60, 4):
            batch = slice(start, start + 4)
            with contextlib.suppress(BackendError):
                await backend.upsert(world.documents[batch], world.embeddings[batch])
                acknowledged += world.documents[batch]
        assert target.faults > 0
        target.set(None)
        assert await backend.fetch([d.id for d in acknowledged]) == acknowledged
        await everything_is_there_once(backend, world)


@runs
async def test_a_restart_between_two_batches_is_survived(target: Target) -> None:
    if target.restart is None:
        pytest.skip("the server was there before; it is not ours to restart")
    world = make_world(5)
    half = len(world.documents) // 2
    async with stored(target, world) as backend:
        await anyio.to_thread.run_sync(target.restart)
        await backend.upsert(world.documents[half:], world.embeddings[half:])
        assert await backend.count() == len(world.documents)
        await everything_is_there_once(backend, world)


@runs
async def test_a_restart_in_mid_batch_loses_nothing_acknowledged(target: Target) -> None:
    if target.restart is None:
        pytest.skip("the server was there before; it is not ours to restart")
    world = make_world(6, documents=400)
    acknowledged = []
    async with stored(target, world, timeout_seconds=60.0, attempts=40, total_seconds=300.0) as backend:

        async def write() -> None:
            for start in range(200, 400, 20):
                batch = slice(start, start + 20)
                await backend.upsert(world.documents[batch], world.embeddings[batch])
                acknowledged.extend(world.documents[batch])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await anyio.sleep(0.1)
            assert len(acknowledged) < 200, "the restart came too late to hit a batch"
            await anyio.to_thread.run_sync(target.restart)
        assert await backend.fetch([d.id for d in acknowledged]) == acknowledged
        assert await backend.count() == len(world.documents)


@runs
async def test_certificates_are_checked(bare: Target, tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(server)
    server.set_alpn_protocols(["h2", "http/1.1"] if bare.scheme == "milvus" else ["http/1.1"])
    files = {name: str(tmp_path / f"{name}.pem") for name in ("authority", "stranger")}
    authority.cert_pem.write_to_path(files["authority"])
    stranger.cert_pem.write_to_path(files["stranger"])
    if bare.options.get("transport") == "grpc":
        pytest.skip("covered with gRPC's own TLS in test_qdrant_server.py: ALPN differs by port there")
    world = make_world(7, documents=4)
    with FaultProxy(bare.ports[0], bare.host, tls=server) as proxy:
        bare.proxies, bare.tls = [proxy], True
        trusting = bare.backend(ca_certs=files["authority"])
        await trusting.create(world.schema)
        await trusting.upsert(world.documents, world.embeddings)
        assert await trusting.count() == 4
        for options in ({"ca_certs": files["stranger"]}, {}):
            doubting = bare.backend(**options)
            with in_time(), pytest.raises((Unauthorised, Unavailable)) as caught:
                await doubting.open()
            # pymilvus keeps gRPC's reason to itself.
            assert bare.scheme == "milvus" or "certificate" in str(caught.value).lower()
            await doubting.close()
        await trusting.drop()
        await trusting.close()
