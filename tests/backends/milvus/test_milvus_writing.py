"""Writes of the Milvus adapter: refused rows, deletions while others write, what failed calls leave, and optimize."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from m3_connectors.backends.milvus import collection as collections
from m3_connectors.backends.milvus import rows
from m3_connectors.backends.milvus.backend import MilvusBackend
from m3_connectors.backends.milvus.layout import Layout
from m3_connectors.backends.retry import RetryPolicy
from m3_connectors.errors import PartialWrite, Rejected, TimedOut, Unavailable
from m3_connectors.filters import parse_filter
from m3_connectors.methods import ALL
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.worlds import join, make_world, unit_rows

WORLD = make_world(91, documents=100, most_rows=3, dimension=64)
LONG = join(
    [
        (
            unit_rows(np.ones((1, 64)))[0],
            {3: 0.5},
            unit_rows(np.random.default_rng(i).normal(size=(4_000, 64))),
        )
        for i in range(2)
    ],
    WORLD.schema.model,
)


@asynccontextmanager
async def created(directory: Path, **options: Any) -> AsyncIterator[MilvusBackend]:
    options = {"max_row_bytes": 2**18, "attempts": 1, **options}
    backend = MilvusBackend.from_url(f"milvus:{directory}/data.db", "notes", options)
    await backend.create(WORLD.schema)
    yield backend
    await backend.close()


def refusing(monkeypatch: pytest.MonkeyPatch, texts: set[str]) -> list[int]:
    """Have the server refuse these texts, with all that is sent beside them; the sizes of what is sent."""
    real, sent = MilvusClient.upsert, []

    def upsert(self: MilvusClient, collection: str, data: list[dict[str, Any]], **options: Any) -> Any:
        sent.append(len(data))
        if any(row["text"][0] in texts for row in data):
            raise MilvusException(1100, "the length of field x exceeds its max length")
        return real(self, collection, data=data, **options)

    monkeypatch.setattr(MilvusClient, "upsert", upsert)
    return sent


@runs
async def test_refused_rows_are_named_and_all_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [dataclasses.replace(d, text=f"text {i}") for i, d in enumerate(WORLD.documents)]
    async with created(tmp_path) as backend:
        sent = refusing(monkeypatch, {"text 0", "text 41"})
        with pytest.raises(PartialWrite, match="exceeds its max length") as caught:
            await backend.upsert(documents, WORLD.embeddings)
        assert set(caught.value.failed) == {documents[0].id, documents[41].id}
        assert await backend.count() == 98
        assert len(sent) < 40


@runs
async def test_a_server_that_refuses_everything_is_not_asked_for_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [dataclasses.replace(document, text="no") for document in WORLD.documents]
    async with created(tmp_path) as backend:
        sent = refusing(monkeypatch, {"no"})
        with pytest.raises(Rejected, match="exceeds its max length"):
            await backend.upsert(documents, WORLD.embeddings)
        assert sent.count(1) == 64
        assert await backend.count() == 0


@runs
async def test_a_document_that_is_replaced_while_its_old_self_is_deleted_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [dataclasses.replace(d, metadata={"old": True}) for d in WORLD.documents[:2]]
    async with created(tmp_path) as backend:
        await backend.upsert(documents, LONG)
        new = dataclasses.replace(documents[0], metadata={"old": False})
        pages = backend._reads.pages

        async def then_replaced(*arguments: Any) -> AsyncIterator[Any]:
            async for page in pages(*arguments):
                yield page
            await backend.upsert([new], LONG[1])

        monkeypatch.setattr(backend._reads, "pages", then_replaced)
        old = parse_filter({"old": True})
        assert old is not None
        assert await backend.delete_where(old) == 1
        assert await backend.fetch([document.id for document in documents]) == [new, None]
        back = await backend.vectors([new.id])
        assert back.multivectors is not None
        assert len(back.multivectors[0]) == 4_000


async def parts_stored(backend: MilvusBackend) -> set[str]:
    reads = backend._reads
    pages = reads.pages("count", 'key != ""', ["key"], reads.layout.parts_name)
    return {row["key"] async for page in pages for row in page}


@runs
async def test_optimize_removes_old_parts_that_no_document_names_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, other = WORLD.documents[:2]
    real_upsert, real_stamp = MilvusClient.upsert, rows.stamp

    def dies(self: MilvusClient, collection: str, **options: Any) -> Any:
        if collection == "notes":
            raise MilvusException(2, "Fail connecting to server")
        return real_upsert(self, collection, **options)

    async with created(tmp_path) as backend:
        with monkeypatch.context() as patched:
            patched.setattr(rows, "stamp", lambda seconds: real_stamp(seconds - 4_000))
            await backend.upsert([long], LONG[0])
            named = await parts_stored(backend)
            patched.setattr(MilvusClient, "upsert", dies)
            with pytest.raises(Unavailable):
                await backend.upsert([long, other], LONG)
            patched.setattr(rows, "stamp", real_stamp)
            old = await parts_stored(backend)
            with pytest.raises(Unavailable):
                await backend.upsert([other], LONG[1])
        young = await parts_stored(backend) - old
        assert old > named
        assert young
        await backend.optimize()
        assert await parts_stored(backend) == named | young
        back = await backend.vectors([long.id])
        assert back.multivectors is not None
        assert len(back.multivectors[0]) == 4_000


@runs
async def test_optimize_flushes_what_milvus_lite_would_search_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, flushed = MilvusClient.flush, []

    def flush(self: MilvusClient, name: str, **options: Any) -> None:
        flushed.append(name)
        real(self, name, **options)

    monkeypatch.setattr(MilvusClient, "flush", flush)
    async with created(tmp_path) as backend:
        await backend.upsert(WORLD.documents, WORLD.embeddings)
        assert flushed == []
        before = await backend.search(WORLD.queries[0], ALL, 10)
        await backend.optimize()
        assert flushed == ["notes", "notes__m3_parts"]
        assert await backend.search(WORLD.queries[0], ALL, 10) == before


class Building:
    """The calls of a server whose sparse index is built in steps; only what ``built`` asks for."""

    where = "http://h:19530"

    def __init__(self, *steps: tuple[str, int, int]) -> None:
        self.patience = RetryPolicy(total_seconds=0.2)
        self.asked: list[str] = []
        self._steps = list(steps)

    async def call(self, operation: str, method: str, name: str, **options: Any) -> Any:
        self.asked.append(f"{method} {name}")
        if method == "list_indexes":
            return [options["field_name"]]
        if method != "describe_index":
            return None
        done = ("Finished", 5, 0)
        step = self._steps[0] if options["index_name"] == "sparse" else done
        if step is not done and len(self._steps) > 1:
            self._steps.pop(0)
        return dict(zip(("state", "indexed_rows", "pending_index_rows"), step, strict=True))


@runs
async def test_optimize_waits_for_a_servers_indexes_as_long_as_they_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collections, "_LOOK_SECONDS", 0.15)
    layout = Layout(WORLD.schema, "notes", True, "HNSW")
    growing = [("InProgress", rows, 5 - rows) for rows in range(5)]
    started = time.monotonic()
    server = Building(*growing, ("Finished", 4, 1), ("Finished", 5, 0))
    await collections.built(server, layout)  # type: ignore[arg-type]
    assert server.asked[:2] == ["flush notes", "flush notes__m3_parts"]
    assert server.asked.count("describe_index notes") == 2 + 7
    assert time.monotonic() - started > 0.2
    with pytest.raises(
        TimedOut, match=r'index "sparse".* has not grown for .*it holds 1 rows, and 4 are waiting'
    ):
        await collections.built(Building(("InProgress", 1, 4)), layout)  # type: ignore[arg-type]
    with pytest.raises(Rejected, match='cannot build the index "sparse"'):
        await collections.built(Building(("Failed", 1, 4)), layout)  # type: ignore[arg-type]
