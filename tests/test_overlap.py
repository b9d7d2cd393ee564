"""``add`` encodes a batch while the one before it is written, and nothing is lost when a part of it fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest
from scipy.sparse import csr_array
from stub_encoder import STORAGE, StubEncoder

from m3_connectors import Document, aconnect, connect, writing
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.embeddings import M3Embeddings, ModelInfo, MultiVectors
from m3_connectors.errors import InvalidInput

BATCH = 512


def documents(count: int) -> Iterator[Document]:
    return (Document(str(i), f"text {i}") for i in range(count))


class Failing(StubEncoder):
    """Fails in one of its calls, counted from 1."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self._call, self._calls = call, 0

    def encode(self, texts: Sequence[str], **options: Any) -> M3Embeddings:
        self._calls += 1
        if self._calls == self._call:
            raise InvalidInput("the encoder failed")
        return super().encode(texts, **options)


@pytest.mark.parametrize("blocking", [True, False])
def test_the_second_batch_is_encoded_while_the_first_is_written(
    blocking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = threading.Event()
    writing = threading.Event()
    met: list[bool] = []

    class Second(StubEncoder):
        def encode(self, texts: Sequence[str], **options: Any) -> M3Embeddings:
            if self.texts:
                encoding.set()
                met.append(writing.wait(60))
            return super().encode(texts, **options)

    upsert = MemoryBackend._upsert

    async def first(self: MemoryBackend, *given: Any) -> None:
        writing.set()
        met.append(await anyio.to_thread.run_sync(encoding.wait, 60))
        await upsert(self, *given)

    monkeypatch.setattr(MemoryBackend, "_upsert", first)
    if blocking:
        with connect("memory:", encoder=Second(), storage=STORAGE) as index:
            assert index.add(documents(2 * BATCH)).written == index.count() == 2 * BATCH
    else:

        async def main() -> None:
            async with await aconnect("memory:", encoder=Second(), storage=STORAGE) as index:
                assert (await index.add(documents(2 * BATCH))).written == await index.count() == 2 * BATCH

        anyio.run(main)
    assert met == [True, True, True]


def test_the_next_batch_is_read_while_one_is_encoded() -> None:
    reading = threading.Event()
    met: list[bool] = []

    class First(StubEncoder):
        def encode(self, texts: Sequence[str], **options: Any) -> M3Embeddings:
            met.append(reading.wait(60))
            return super().encode(texts, **options)

    def read() -> Iterator[Document]:
        for i, document in enumerate(documents(2 * BATCH)):
            if i > BATCH:  # the first document after a batch is read to see that it is full
                reading.set()
            yield document

    with connect("memory:", encoder=First(), storage=STORAGE) as index:
        index.add(read())
    assert met == [True, True]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_what_was_encoded_before_the_encoder_fails_is_stored_and_reported(call: int) -> None:
    progress: list[int] = []
    with connect("memory:", encoder=Failing(call), storage=STORAGE) as index:
        with pytest.raises(InvalidInput, match="the encoder failed"):
            index.add(documents(4 * BATCH), progress=progress.append)
        assert index.count() == (call - 1) * BATCH
    assert progress == [BATCH * i for i in range(1, call)]


def test_what_was_read_in_batches_before_the_source_fails_is_stored_and_reported() -> None:
    def read() -> Iterator[Document]:
        yield from documents(2 * BATCH + 1)
        raise OSError("the source failed")

    progress: list[int] = []
    with connect("memory:", encoder=StubEncoder(), storage=STORAGE) as index:
        with pytest.raises(OSError, match="the source failed"):
            index.add(read(), progress=progress.append)
        assert index.count() == 2 * BATCH
    assert progress == [BATCH, 2 * BATCH]


def test_after_a_refused_write_nothing_more_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    upsert, calls = MemoryBackend._upsert, 0

    async def second_fails(self: MemoryBackend, *given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("the store failed")
        await upsert(self, *given)

    monkeypatch.setattr(MemoryBackend, "_upsert", second_fails)
    with connect("memory:", encoder=StubEncoder(), storage=STORAGE) as index:
        with pytest.raises(OSError, match="the store failed"):
            index.add(documents(5 * BATCH))
        assert index.count() == BATCH
    assert calls == 2


def test_the_report_says_for_how_long_texts_were_encoded() -> None:
    with connect("memory:", encoder=StubEncoder(), storage=STORAGE) as index:
        assert index.add(documents(3)).encoding_seconds > 0


@pytest.mark.parametrize("blocking", [True, False])
def test_vectors_that_wait_for_the_store_are_bounded_in_bytes(
    blocking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of 8,192 tokens at 1,024 dimensions: each is a batch of its own, and 34 MB of vectors."""
    bound, document = 2**26, 8192 * 1024 * 4
    monkeypatch.setattr(writing, "WAITING_BYTES", bound)
    waiting, most = 0, 0
    all_encoded = threading.Event()

    class Long(StubEncoder):
        info = ModelInfo("tests/long", None, 1024, 100, "100 words", "f" * 64)

        def encode(self, texts: Sequence[str], **options: Any) -> M3Embeddings:
            nonlocal waiting, most
            rows = np.full((8192, 1024), 1 / 32, dtype=np.float32)
            waiting += rows.nbytes
            most = max(most, waiting)
            if most >= bound:
                all_encoded.set()
            return M3Embeddings(
                dense=rows[:1],
                sparse=csr_array(([1.0], ([0], [1])), shape=(1, 100), dtype=np.float32),
                multivectors=MultiVectors.from_list([rows], 1024),
                model=self.info,
            )

    async def held(self: MemoryBackend, documents: Any, embeddings: M3Embeddings) -> None:
        nonlocal waiting
        # Nothing is written before the encoder has done all that it may.
        assert await anyio.to_thread.run_sync(all_encoded.wait, 60)
        waiting -= embeddings.multivectors.rows.nbytes

    monkeypatch.setattr(MemoryBackend, "_upsert", held)
    texts = [Document(str(i), "x" * 70_000) for i in range(12)]
    if blocking:
        with connect("memory:", encoder=Long()) as index:
            index.add(iter(texts))
    else:

        async def main() -> None:
            async with await aconnect("memory:", encoder=Long()) as index:
                await index.add(iter(texts))

        anyio.run(main)
    assert bound <= most < bound + document
