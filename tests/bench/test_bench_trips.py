"""Where time goes: calls to a store belong to the request that made them; CPU time is read from the system."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import anyio
import pytest
from qdrant_fake import FakeQdrant

from m3_connectors.backends.milvus import connection as client
from m3_connectors.backends.milvus.backend import MilvusBackend
from m3_connectors.backends.qdrant.edge import connection as shard
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.backends.qdrant.server import grpc as server_grpc
from m3_connectors.backends.qdrant.server.backend import QdrantBackend
from m3_connectors.backends.registry import backend_for
from m3_connectors.backends.retry import RetryPolicy
from m3_connectors.bench import meter as meters
from m3_connectors.bench.meter import Meter
from m3_connectors.bench.scenario import CorpusSettings, Rows
from m3_connectors.bench.synthetic import Corpus
from m3_connectors.bench.trips import Trips, counting, observed
from m3_connectors.methods import ALL


class Clock:
    """A clock that stands still until a test sets it forward."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def perf_counter(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which calls are timed."""
    clock = Clock()
    monkeypatch.setattr("m3_connectors.bench.trips.time", clock)
    return clock


def test_calls_at_the_same_time_take_their_time_once(clock: Clock) -> None:
    trips = Trips()
    with trips:
        clock.seconds += 1
        with trips:
            clock.seconds += 2
        clock.seconds += 4
    clock.seconds += 8  # between two calls
    with trips:
        clock.seconds += 16
    assert (trips.count, trips.seconds) == (3, 1 + 2 + 4 + 16)


async def reached(event: threading.Event) -> None:
    """Wait for a thread, and leave the loop to others."""
    with anyio.fail_after(30):
        while not event.is_set():
            await anyio.sleep(0.001)


def test_requests_at_the_same_time_count_their_own_calls(tmp_path: Path) -> None:
    corpus = Corpus(CorpusSettings(dimension=16, vocabulary=500, rows=Rows(mean=4)), 60, seed=1)
    queries = corpus.queries(2)
    found: dict[int, Trips] = {}

    async def ask(backend: EdgeBackend, i: int, times: int) -> None:
        with counting() as trips:
            for _ in range(times):
                await backend.search(queries[i], ALL, 3)
        found[i] = trips

    async def run() -> None:
        backend = EdgeBackend(tmp_path)
        with observed(EdgeBackend):
            await backend.create(corpus.schema)
            await backend.upsert(*corpus.batch(0, 60))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, backend, 0, 1)
                tasks.start_soon(ask, backend, 1, 5)
            await backend.close()

    load: Any = shard._load
    anyio.run(run)
    assert found[1].count == 5 * found[0].count > 0
    assert found[1].seconds > 0
    assert shard._load is load  # nothing stays wrapped


class FakeClient:
    """pymilvus', which blocks its thread."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked, self.held = threading.Event(), threading.Event()

    def search(self, *_: Any, timeout: float) -> str:
        self.asked.set()
        assert self.held.wait(30)
        self.clock.seconds += 1
        return "found"


def test_waiting_for_the_event_loop_and_reading_rows_is_not_the_time_of_milvus(clock: Clock) -> None:
    fake, has_read = FakeClient(clock), threading.Event()

    def read(_: Any) -> None:
        clock.seconds += 10
        has_read.set()

    async def run() -> Trips:
        connection = client.Connection(fake, "h", RetryPolicy(5, 1, 5), None)  # type: ignore[arg-type]
        with observed(MilvusBackend), counting() as trips:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: connection.call("search", "search", "c", then=read))
                await reached(fake.asked)
                fake.held.set()
                assert has_read.wait(30)  # others keep the loop
                clock.seconds += 100
        return trips

    trips = anyio.run(run)
    assert (trips.count, trips.seconds) == (1, 1)


class FakeStub:
    """A method of a gRPC stub whose answer comes in a thread of its own."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked, self.held, self.answered = threading.Event(), threading.Event(), threading.Event()

    def future(self, *_: Any, **__: Any) -> Future[str]:
        future: Future[str] = Future()
        threading.Thread(target=self._answer, args=(future,)).start()
        return future

    def _answer(self, future: Future[str]) -> None:
        self.asked.set()
        assert self.held.wait(30)
        self.clock.seconds += 1
        future.set_result("found")
        self.answered.set()


def test_waiting_for_the_event_loop_is_not_the_time_of_qdrant(clock: Clock) -> None:
    stub = FakeStub(clock)

    async def run() -> Trips:
        with observed(QdrantBackend), counting() as trips:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: server_grpc.unary(stub, None, timeout_seconds=30))
                await reached(stub.asked)
                stub.held.set()
                assert stub.answered.wait(30)  # others keep the loop
                clock.seconds += 100
        return trips

    trips = anyio.run(run)
    assert (trips.count, trips.seconds) == (1, 1)


def test_the_calls_of_a_qdrant_server_are_counted_over_both_protocols() -> None:
    corpus = Corpus(CorpusSettings(dimension=16, vocabulary=500, rows=Rows(mean=4)), 20, seed=1)

    async def run(url: str, options: dict[str, Any]) -> int:
        backend = backend_for(url, "bench", options)
        with observed(type(backend)):
            await backend.create(corpus.schema)
            await backend.upsert(*corpus.batch(0, 20))
            with counting() as trips:
                await backend.search(corpus.queries(1), ALL, 3)
            await backend.drop()
            await backend.close()
        assert trips.seconds > 0
        return trips.count

    with FakeQdrant() as server:
        counts = [
            anyio.run(run, server.url, {"transport": transport, "grpc_port": server.grpc_port})
            for transport in ("grpc", "rest")
        ]
    assert counts[0] == counts[1] > 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_the_meter_reads_the_processes_of_a_session() -> None:
    busy = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", busy], stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        try:
            meter = Meter(child.pid)
            before = meter.server_cpu_seconds()
            assert before is not None
            assert child.stdout is not None
            child.stdout.readline()
            after = meter.server_cpu_seconds()
            assert (meter.server_memory_bytes() or 0) > 1_000_000
            assert anyio.run(meter.server_cpu_seconds_sometimes) is not None
            assert anyio.run(meter.server_cpu_seconds_sometimes) is None  # at most five times a second
        finally:
            child.kill()
    assert after is not None
    assert 0.2 < after - before < 5


def test_readings_do_not_hold_up_the_event_loop_nor_look_for_processes_every_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = set()
    listed = []
    monkeypatch.setattr(meters, "_cpu_seconds", lambda _: threads.add(threading.current_thread()) or 1.0)
    monkeypatch.setattr(meters, "_session_of", lambda path: listed.append(path) or 1)
    meter = Meter(1)
    assert anyio.run(meter.server_cpu_seconds_sometimes)
    assert threading.main_thread() not in threads
    before = len(listed)
    assert before
    meter.server_cpu_seconds()
    assert len(listed) == before


def test_a_server_elsewhere_has_no_readings() -> None:
    meter = Meter()
    assert meter.server_cpu_seconds() is None
    assert anyio.run(meter.server_cpu_seconds_sometimes) is None
    assert meter.server_memory_bytes() is None


def test_the_clock_goes_on() -> None:
    meter = Meter()
    first = meter.now()
    assert meter.of(None).now() >= first
