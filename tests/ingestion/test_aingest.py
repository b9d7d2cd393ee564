"""``aingest`` takes synchronous and asynchronous iterables, does what ``ingest`` does, and can be cancelled."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
from stub_encoder import STORAGE, StubEncoder

from m3_connectors import Document, aconnect, connect
from m3_connectors.errors import InvalidInput
from m3_connectors.ingestion import Chunking, IngestReport, Ledger, aingest, ingest

TOKENS = Chunking("tokens", 16)


def corpus(count: int) -> list[Document]:
    return [Document(f"d{i}", f"text {i} " + "word " * (i % 40)) for i in range(count)]


async def asynchronous(count: int) -> AsyncIterator[Document]:
    for document in corpus(count):
        await anyio.lowlevel.checkpoint()
        yield document


@pytest.mark.parametrize("kind", [asynchronous, corpus])
def test_it_stores_what_ingest_stores(tmp_path: Path, kind: object) -> None:
    url, told = f"qdrant:{tmp_path / 'data'}", []
    loop = threading.get_ident()

    async def main() -> None:
        async with await aconnect(url, encoder=StubEncoder(), storage=STORAGE) as index:
            with Ledger(tmp_path / "ledger") as ledger:
                for stored in (700, 0):
                    report = await aingest(
                        kind(700),  # type: ignore[operator]
                        index,
                        ledger=ledger,
                        chunking=TOKENS,
                        progress=lambda now: told.append((now.documents, threading.get_ident())),
                    )
                    assert (report.documents, report.unchanged) == (stored, 700 - stored)

    anyio.run(main)
    assert told[-1][0] == 700
    assert loop not in {thread for _, thread in told}
    with (
        connect(url, encoder=StubEncoder(), storage=STORAGE) as index,
        Ledger(tmp_path / "ledger") as ledger,
    ):
        report = ingest(corpus(700), index, ledger=ledger, chunking=TOKENS)
        assert report.unchanged == 700


def test_as_many_runs_at_once_as_there_are_threads_do_not_wait_for_each_other() -> None:
    reports: list[IngestReport] = []

    async def run() -> None:
        async with await aconnect("memory:", encoder=StubEncoder(), storage=STORAGE) as index:
            with Ledger(None) as ledger:
                reports.append(await aingest(corpus(10), index, ledger=ledger))

    async def main() -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = 2
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(run)

    anyio.run(main)
    assert [report.documents for report in reports] == [10, 10]


def test_the_wrong_kind_is_refused_by_name() -> None:
    async def main() -> None:
        async with await aconnect("memory:", encoder=StubEncoder(), storage=STORAGE) as index:
            with pytest.raises(InvalidInput, match=r"index is AsyncIndex, .*\n.*await aingest"):
                ingest([], index, ledger=Ledger(None))  # type: ignore[arg-type]

    anyio.run(main)
    with connect("memory:", encoder=StubEncoder(), storage=STORAGE) as index:
        with pytest.raises(InvalidInput, match=r"documents is async_generator, .*\n.*await aingest"):
            ingest(asynchronous(1), index, ledger=Ledger(None))  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match=r"index is Index, .*\n.*aconnect"):
            anyio.run(lambda: aingest([], index, ledger=Ledger(None)))  # type: ignore[arg-type]


@pytest.mark.parametrize("is_async", [True, False])
def test_a_cancelled_call_ends_and_the_next_one_goes_on(is_async: bool) -> None:
    async def main() -> None:
        async with await aconnect("memory:", encoder=StubEncoder(), storage=STORAGE) as index:
            with Ledger(None) as ledger:
                with anyio.CancelScope() as scope:

                    def endless() -> Iterator[Document]:
                        for i in range(10**9):
                            if i == 1300:
                                anyio.from_thread.run_sync(scope.cancel)
                            yield Document(f"d{i}", f"text {i}")

                    async def endless_too() -> AsyncIterator[Document]:
                        for i in range(10**9):
                            if i == 1300:
                                scope.cancel()
                            yield Document(f"d{i}", f"text {i}")

                    await aingest(endless_too() if is_async else endless(), index, ledger=ledger)
                assert scope.cancelled_caught
                documents = [Document(f"d{i}", f"text {i}") for i in range(1300)]
                report = await aingest(documents, index, ledger=ledger)
                assert report.documents + report.unchanged == 1300
                assert await index.count() == 1300

    anyio.run(main)


def test_an_error_of_the_source_is_raised_after_what_was_read_before() -> None:
    async def failing() -> AsyncIterator[Document]:
        async for document in asynchronous(700):
            yield document
        raise OSError("the source failed")

    async def main() -> None:
        async with await aconnect("memory:", encoder=StubEncoder(), storage=STORAGE) as index:
            with Ledger(None) as ledger, pytest.raises(OSError, match="the source failed"):
                await aingest(failing(), index, ledger=ledger)
            assert await index.count() == 700

    anyio.run(main)
