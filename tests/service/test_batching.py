"""Requests share the batches of the encoder: fairly, within its budget, bounded, and each gets its own answer."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from serving import client, filled, serving
from stub_encoder import StubEncoder

from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings
from m3_connectors.errors import InvalidInput
from m3_connectors.service.batching import Batcher
from m3_connectors.service.problems import Refused


class Held(StubEncoder):
    """An encoder whose batches begin when the test says so."""

    token_budget = 100

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []
        self.components: list[tuple[Component, ...]] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def encode(self, texts: Sequence[str], *, components: Sequence[Component] = COMPONENTS) -> M3Embeddings:
        self.batches.append(list(texts))
        self.components.append(tuple(components))
        self.begun.release()
        assert self.go.acquire(timeout=30)
        if "bad" in texts:
            raise InvalidInput("a text is bad.\n  Send another.")
        return super().encode(texts, components=components)


def _run(encoder: Held, use: Callable[[Batcher, Any], Awaitable[None]], **options: Any) -> None:
    """Run ``use`` beside a batcher, which ends in order afterwards."""

    async def main() -> None:
        batcher = Batcher(encoder, **options)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(batcher.run)
                await use(batcher, tasks)
                batcher.close()

    anyio.run(main)


async def _wait(semaphore: threading.Semaphore) -> None:
    assert await anyio.to_thread.run_sync(partial(semaphore.acquire, timeout=30))


def _same(found: M3Embeddings, texts: list[str], components: tuple[Component, ...] = COMPONENTS) -> None:
    direct = StubEncoder().encode(texts, components=components)
    assert found.components == components
    if "dense" in components:
        np.testing.assert_array_equal(found.dense, direct.dense)
    if "sparse" in components:
        assert (found.sparse != direct.sparse).nnz == 0
    if "multivector" in components:
        np.testing.assert_array_equal(found.multivectors.rows, direct.multivectors.rows)


def test_requests_that_wait_are_encoded_together_and_get_their_own_rows() -> None:
    encoder, found = Held(), dict[str, M3Embeddings]()

    async def use(batcher: Batcher, tasks: Any) -> None:
        async def ask(name: str, components: tuple[Component, ...]) -> None:
            found[name] = await batcher.encode([f"{name} 0", f"{name} 1"], components)

        async with anyio.create_task_group() as asking:
            asking.start_soon(ask, "first", ("dense",))
            await _wait(encoder.begun)
            asking.start_soon(ask, "second", ("dense",))
            asking.start_soon(ask, "third", ("sparse",))
            asking.start_soon(ask, "fourth", ("multivector", "dense"))
            await anyio.sleep(0)
            encoder.go.release()
            encoder.go.release()

    _run(encoder, use)
    assert [len(batch) for batch in encoder.batches] == [2, 6]
    assert encoder.components[0] == ("dense",)
    assert encoder.components[1] == ("dense", "sparse", "multivector")
    _same(found["first"], ["first 0", "first 1"], ("dense",))
    _same(found["second"], ["second 0", "second 1"], ("dense",))
    _same(found["third"], ["third 0", "third 1"], ("sparse",))
    _same(found["fourth"], ["fourth 0", "fourth 1"], ("dense", "multivector"))


def test_a_large_request_does_not_hold_up_a_small_one() -> None:
    encoder, done = Held(), list[str]()
    large = [f"{i:090}" for i in range(12)]  # about 24 tokens each: four in a batch

    async def use(batcher: Batcher, tasks: Any) -> None:
        async def ask(name: str, texts: list[str]) -> None:
            _same(await batcher.encode(texts), texts)
            done.append(name)

        async with anyio.create_task_group() as asking:
            asking.start_soon(ask, "large", large)
            await _wait(encoder.begun)
            asking.start_soon(ask, "small", ["small"])
            await anyio.sleep(0)
            for _ in range(10):
                encoder.go.release()

    _run(encoder, use)
    assert done == ["small", "large"]
    assert encoder.batches[0] == large[:4]
    assert "small" in encoder.batches[1] or "small" in encoder.batches[2]
    assert all(len(batch) <= 5 for batch in encoder.batches)


def test_a_text_beyond_the_budget_is_encoded_alone() -> None:
    encoder, long = Held(), "x" * 4000

    async def use(batcher: Batcher, tasks: Any) -> None:
        for _ in range(5):
            encoder.go.release()
        _same(await batcher.encode(["a", long, "b"]), ["a", long, "b"])

    _run(encoder, use)
    assert encoder.batches == [["a"], [long], ["b"]]


def test_the_queue_is_bounded_and_says_when_to_come_again() -> None:
    encoder = Held()

    async def use(batcher: Batcher, tasks: Any) -> None:
        async with anyio.create_task_group() as asking:
            asking.start_soon(batcher.encode, ["running"])
            await _wait(encoder.begun)
            asking.start_soon(batcher.encode, ["y" * 320])  # about 82 tokens
            await anyio.sleep(0)
            with pytest.raises(Refused, match="tokens wait for the encoder") as refused:
                await batcher.encode(["z" * 320])
            assert refused.value.status == 429
            assert refused.value.retry_after_seconds is not None
            for _ in range(3):
                encoder.go.release()

    _run(encoder, use, max_waiting_tokens=100)
    assert encoder.batches == [["running"], ["y" * 320]]


def test_a_cancelled_request_drops_out() -> None:
    encoder = Held()

    async def use(batcher: Batcher, tasks: Any) -> None:
        async with anyio.create_task_group() as asking:
            asking.start_soon(batcher.encode, ["running"])
            await _wait(encoder.begun)
            with anyio.move_on_after(0) as given_up:
                await batcher.encode(["never"])
            assert given_up.cancelled_caught
            assert batcher.waiting_tokens == 0
            asking.start_soon(batcher.encode, ["after"])
            await anyio.sleep(0)
            for _ in range(3):
                encoder.go.release()

    _run(encoder, use)
    assert encoder.batches == [["running"], ["after"]]


def test_a_bad_text_fails_its_own_request_only() -> None:
    encoder, found = Held(), dict[str, Any]()

    async def use(batcher: Batcher, tasks: Any) -> None:
        async def ask(text: str) -> None:
            try:
                found[text] = await batcher.encode([text])
            except InvalidInput as error:
                found[text] = error

        async with anyio.create_task_group() as asking:
            asking.start_soon(ask, "running")
            await _wait(encoder.begun)
            for text in ("good", "bad", "fine"):
                asking.start_soon(ask, text)
            await anyio.sleep(0)
            for _ in range(9):
                encoder.go.release()

    _run(encoder, use)
    _same(found["good"], ["good"])
    _same(found["fine"], ["fine"])
    assert isinstance(found["bad"], InvalidInput)


def test_after_close_what_was_taken_is_finished_and_new_texts_are_refused() -> None:
    encoder, found = Held(), list[M3Embeddings]()

    async def use(batcher: Batcher, tasks: Any) -> None:
        async def ask(text: str) -> None:
            found.append(await batcher.encode([text]))

        async with anyio.create_task_group() as asking:
            asking.start_soon(ask, "running")
            await _wait(encoder.begun)
            asking.start_soon(ask, "waiting")
            await anyio.sleep(0)
            batcher.close()
            with pytest.raises(Refused, match="shutting down"):
                await batcher.encode(["new"])
            for _ in range(3):
                encoder.go.release()

    _run(encoder, use)
    assert len(found) == 2


def test_a_client_that_goes_away_drops_out_of_the_queue() -> None:
    encoder = Held()
    with serving(encoder) as running, ThreadPoolExecutor(2) as pool, client(running) as web:
        first = pool.submit(web.post, "/v1/encode", json={"texts": ["running"]})
        assert encoder.begun.acquire(timeout=30)
        with pytest.raises(httpx.ReadTimeout), client(running) as impatient:
            impatient.post("/v1/encode", json={"texts": ["never"]}, timeout=0.3)
        gone = _metric_reaches(web, "m3_requests_abandoned_total 1.0")
        assert gone
        encoder.go.release()
        assert first.result().status_code == 200
        encoder.go.release()
        assert web.post("/v1/encode", json={"texts": ["after"]}).status_code == 200
    assert encoder.batches == [["running"], ["after"]]


def _metric_reaches(web: httpx.Client, line: str) -> bool:
    # Each question is a round trip through the server's loop, which handles the closed connection meanwhile.
    return any(line in web.get("/metrics").text for _ in range(1000))


def test_a_deadline_ends_a_request_that_waits() -> None:
    encoder = Held()
    with serving(encoder) as running, ThreadPoolExecutor(2) as pool, client(running) as web:
        first = pool.submit(web.post, "/v1/encode", json={"texts": ["running"]})
        assert encoder.begun.acquire(timeout=30)
        late = web.post("/v1/encode", json={"texts": ["never"]}, headers={"X-Timeout-Seconds": "0.05"})
        assert late.status_code == 504
        assert "not answered within 0.05 s" in late.json()["detail"]
        encoder.go.release()
        assert first.result().status_code == 200
    assert encoder.batches == [["running"]]


def test_too_many_requests_get_429_with_retry_after() -> None:
    encoder = Held()
    with (
        serving(encoder, max_waiting_tokens=100) as running,
        ThreadPoolExecutor(2) as pool,
        client(running) as web,
    ):
        first = pool.submit(web.post, "/v1/encode", json={"texts": ["running"]})
        assert encoder.begun.acquire(timeout=30)
        second = pool.submit(web.post, "/v1/encode", json={"texts": ["y" * 320]})
        waits = any("m3_waiting_tokens 82.0" in web.get("/metrics").text for _ in range(1000))
        assert waits
        refused = web.post("/v1/encode", json={"texts": ["z" * 320]})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        encoder.go.release()
        encoder.go.release()
        assert first.result().status_code == second.result().status_code == 200


def test_shutdown_finishes_what_it_took() -> None:
    encoder = Held()
    with serving(encoder) as running, ThreadPoolExecutor(1) as pool, client(running) as web:
        taken = pool.submit(web.post, "/v1/encode", json={"texts": ["running"]})
        assert encoder.begun.acquire(timeout=30)
        running.begin_stop()
        encoder.go.release()
        running.stop()
        answer = taken.result()
    assert answer.status_code == 200
    direct = StubEncoder().encode(["running"])
    np.testing.assert_array_equal(np.array(answer.json()["dense"], np.float32), direct.dense)


def test_32_clients_at_once_get_their_own_answers() -> None:
    with serving(StubEncoder()) as running, filled(running) as web, ThreadPoolExecutor(32) as pool:

        def ask(i: int) -> None:
            texts = [f"text {i} {j}" for j in range(i % 5)]
            answer = web.post("/v1/encode", json={"texts": texts, "components": ["dense"]})
            assert answer.status_code == 200, answer.text
            found = np.array(answer.json()["dense"], np.float32).reshape(-1, 8)
            np.testing.assert_array_equal(found, StubEncoder().encode(texts or ["x"]).dense[: len(texts)])
            hits = web.post(
                "/v1/collections/fruit/search", json={"query": f"q {i}", "method": "dense"}
            ).json()["hits"]
            direct = StubEncoder().encode([f"q {i}"]).dense[0]
            for hit in hits:
                score = float(StubEncoder().encode([hit["text"]]).dense[0] @ direct)
                assert hit["score"] == pytest.approx(score, abs=1e-6)

        list(pool.map(ask, range(200)))
