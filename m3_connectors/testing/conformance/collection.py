"""B1 to B5: the collection itself, persistence after close, and concurrent calls."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import anyio
import pytest

from m3_connectors.backends.base import Backend, Storage
from m3_connectors.backends.capabilities import Capability
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import AlreadyExists, Busy, CollectionNotFound
from m3_connectors.methods import ALL, METHODS
from m3_connectors.opening import open_or_create
from m3_connectors.testing.agreement import compare_search, oracle_of, same_answer
from m3_connectors.testing.conformance.suite import POOLED, Suite, runs
from m3_connectors.testing.worlds import make_world


class CollectionClauses(Suite):
    """B1 to B5: the collection itself, persistence after close, and concurrent calls."""

    @runs
    async def test_b01_create_records_the_schema_and_refuses_a_second(self, tmp_path: Path) -> None:
        world = make_world(1, documents=3)
        async with self.stored(tmp_path, world) as backend:
            assert backend.schema == world.schema
            with pytest.raises(AlreadyExists):
                await backend.create(world.schema)
            assert await backend.count() == 3

    @runs
    async def test_b01_of_several_that_start_together_one_creates_and_all_open(self, tmp_path: Path) -> None:
        schema = make_world(11, documents=1).schema
        several = [self.make_backend(tmp_path, "together") for _ in range(4)]
        if Capability.PERSISTENT not in several[0].capabilities:
            return  # each backend has its own collection
        opened: list[Backend] = []

        async def start(backend: Backend) -> None:
            with contextlib.suppress(Busy):  # a store that only one process can open
                assert await open_or_create(backend, schema) == schema
                opened.append(backend)

        try:
            async with anyio.create_task_group() as tasks:
                for backend in several:
                    tasks.start_soon(start, backend)
            assert opened
            for backend in opened:
                assert await backend.count() == 0
        finally:
            await (opened or several)[0].drop()
            for backend in several:
                await backend.close()

    @runs
    async def test_b02_open_reads_the_schema_or_says_there_is_none(self, tmp_path: Path) -> None:
        nowhere = self.make_backend(tmp_path, "nowhere")
        with pytest.raises(CollectionNotFound):
            await nowhere.open()
        await nowhere.close()
        schemas = [
            make_world(2, storage=Storage("float32")).schema,
            make_world(2, components=("dense", "sparse")).schema,
            make_world(2, components=("dense",), storage=Storage(long_documents="error")).schema,
            make_world(2, storage=POOLED).schema,
        ]
        for i, schema in enumerate(schemas):
            backend = self.make_backend(tmp_path, f"schema-{i}")
            await backend.create(schema)
            try:
                if Capability.PERSISTENT in backend.capabilities:
                    await backend.close()
                    backend = self.make_backend(tmp_path, f"schema-{i}")
                assert await backend.open() == schema == backend.schema
            finally:
                await backend.drop()
                await backend.close()

    @runs
    async def test_b03_drop_removes_everything(self, tmp_path: Path) -> None:
        world = make_world(3, documents=5)
        async with self.stored(tmp_path, world) as backend:
            await backend.drop()
            with pytest.raises(CollectionNotFound):
                await backend.open()
            await backend.drop()
            await backend.create(world.schema)
            assert await backend.count() == 0
            assert await backend.fetch([world.documents[0].id]) == [None]

    @runs
    async def test_b04_what_was_acknowledged_outlives_close(self, tmp_path: Path) -> None:
        world = make_world(4)
        async with self.stored(tmp_path, world) as backend:
            before = [await backend.search(query, ALL, 10) for query in world.queries]
            await backend.close()
            await backend.close()
            again = self.make_backend(tmp_path, "conformance")
            if Capability.PERSISTENT not in backend.capabilities:
                with pytest.raises(CollectionNotFound):
                    await again.open()
                return
            await again.open()
            assert await again.count() == len(world.documents)
            for query, answer in zip(world.queries, before, strict=True):
                same_answer(await again.search(query, ALL, 10), answer)
            await again.close()

    @runs
    async def test_b05_concurrent_calls_answer_as_if_alone(self, tmp_path: Path) -> None:
        world = make_world(5, queries=6)
        half = len(world.documents) // 2
        first = dataclasses.replace(
            world, documents=world.documents[:half], embeddings=world.embeddings[:half]
        )
        async with self.stored(tmp_path, first) as backend:
            alone = [await backend.search(query, ALL, 5) for query in world.queries]
            together: dict[int, Any] = {}

            async def ask(i: int) -> None:
                together[i] = await backend.search(world.queries[i % len(alone)], ALL, 5)

            async with anyio.create_task_group() as tasks:
                for i in range(3 * len(alone)):
                    tasks.start_soon(ask, i)
            assert len(together) == 3 * len(alone)
            for i, answer in together.items():
                same_answer(answer, alone[i % len(alone)])

            async with anyio.create_task_group() as tasks:
                for i in range(half, len(world.documents), 4):
                    tasks.start_soon(backend.upsert, world.documents[i : i + 4], world.embeddings[i : i + 4])
                    tasks.start_soon(ask, i)
            assert await backend.count() == len(world.documents)

    @runs
    async def test_b05_concurrent_writes_of_one_document_leave_one_of_them_whole(
        self, tmp_path: Path
    ) -> None:
        world = make_world(51, documents=24)
        kept, gone = world.documents[:12], world.documents[12:]
        versions = [Document("one", f"version {i}") for i in range(8)]
        async with self.stored(tmp_path, world) as backend:
            deleted: list[int] = []

            async def delete(ids: list[str]) -> None:
                deleted.append(await backend.delete(ids))

            async with anyio.create_task_group() as tasks:
                for i, version in enumerate(versions):
                    tasks.start_soon(backend.upsert, [version], world.embeddings[i])
                    tasks.start_soon(backend.search, world.queries[0], ALL, 5)
                for i in range(0, len(gone), 3):
                    tasks.start_soon(delete, [*(document.id for document in gone[i : i + 3]), "unknown"])
            assert deleted == [3, 3, 3, 3]
            (one,) = await backend.fetch(["one"])
            assert one in versions
            oracle = await oracle_of(
                dataclasses.replace(
                    world,
                    documents=[*kept, one],
                    embeddings=M3Embeddings.concatenate(
                        [world.embeddings[:12], world.embeddings[versions.index(one)]]
                    ),
                )
            )
            for query in world.queries:
                await compare_search(backend, oracle, query, METHODS["dense_sparse"], 50)
                await compare_search(backend, oracle, query, ALL, 50)

    @runs
    async def test_b05_cancelled_calls_leave_a_working_store(self, tmp_path: Path) -> None:
        # Every call leaves the collection unchanged, so it does not matter which calls completed. asyncio's
        # own cancellation passes through the shields of anyio.
        world = make_world(52)
        everything = M3Embeddings.concatenate([world.embeddings] * 4)
        again = [
            dataclasses.replace(document, id=f"{i} {document.id}")
            for i in range(4)
            for document in world.documents
        ]
        unknown = [f"unknown {i}" for i in range(50)]
        async with self.stored(
            tmp_path, dataclasses.replace(world, documents=again, embeddings=everything)
        ) as backend:
            before = await backend.search(world.queries[0], ALL, 20)
            for delay_seconds in (0.0, 0.0005, 0.001, 0.002, 0.004, 0.008):
                calls = [
                    asyncio.ensure_future(call)
                    for _ in range(2)
                    for call in (
                        backend.upsert(again, everything),
                        backend.search(world.queries[1], ALL, 20),
                        backend.delete(unknown),
                    )
                ]
                for i, call in enumerate(calls):
                    asyncio.get_running_loop().call_later(i * delay_seconds, call.cancel)
                for outcome in await asyncio.gather(*calls, return_exceptions=True):
                    assert not isinstance(outcome, Exception), outcome
                with anyio.fail_after(30):
                    same_answer(await backend.search(world.queries[0], ALL, 20), before)
                    assert await backend.count() == len(again)
            assert await backend.fetch([document.id for document in again]) == again
