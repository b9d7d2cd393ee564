"""Where time goes: calls to a store belong to the request that made them; CPU time is read from the system."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
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


def test_calls_at_the_same_time_take_their_time_once() -> None:
    trips = Trips()

    async def call(seconds: float) -> None:
        with trips:
            await anyio.sleep(seconds)

    async def both() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, 0.1)
            tasks.start_soon(call, 0.2)
        await anyio.sleep(0.1)
        await call(0.1)

    anyio.run(both)
    assert trips.count == 3
    assert trips.seconds == pytest.approx(0.3, abs=0.09)


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

    def search(self, *_: Any, timeout: float) -> str:
        time.sleep(0.05)
        return "found"


def test_waiting_for_the_event_loop_and_reading_rows_is_not_the_time_of_milvus() -> None:
    async def run() -> Trips:
        connection = client.Connection(FakeClient(), "h", RetryPolicy(5, 1, 5), None)  # type: ignore[arg-type]
        with observed(MilvusBackend), counting() as trips:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(
                    lambda: connection.call("search", "search", "c", then=lambda _: time.sleep(0.2))
                )
                await anyio.sleep(0.02)
                time.sleep(0.3)  # others keep the loop
        return trips

    trips = anyio.run(run)
    assert trips.count == 1
    assert trips.seconds == pytest.approx(0.05, abs=0.04)


class FakeStub:
    """A method of a gRPC stub whose answer comes in a thread of its own."""

    def future(self, *_: Any, **__: Any) -> Future[str]:
        future: Future[str] = Future()
        threading.Timer(0.05, future.set_result, ["found"]).start()
        return future


def test_waiting_for_the_event_loop_is_not_the_time_of_qdrant() -> None:
    async def run() -> Trips:
        with observed(QdrantBackend), counting() as trips:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: server_grpc.unary(FakeStub(), None, timeout_seconds=1))
                await anyio.sleep(0.01)
                time.sleep(0.3)
        return trips

    trips = anyio.run(run)
    assert trips.count == 1
    assert trips.seconds == pytest.approx(0.05, abs=0.04)


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
