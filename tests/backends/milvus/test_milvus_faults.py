"""The Milvus adapter when a server refuses, when a call is cancelled, and when many ask at once."""

from __future__ import annotations

import dataclasses
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import grpc
import numpy as np
import pytest
from fault_stores import Case
from live_servers import own
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from m3_connectors.backends.milvus.backend import MilvusBackend
from m3_connectors.backends.milvus.errors import TooLarge, translated
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import (
    AlreadyExists,
    BackendError,
    CollectionNotFound,
    Corrupt,
    PartialWrite,
    Rejected,
    StorageFull,
    Throttled,
    TimedOut,
    Unauthorised,
    Unavailable,
)
from m3_connectors.filters import parse_filter
from m3_connectors.methods import ALL
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.servers.milvus import MilvusServer
from m3_connectors.testing.servers.start import Running
from m3_connectors.testing.worlds import join, make_world, unit_rows

WORLD = make_world(61, documents=40)
PATIENCE = {"timeout_seconds": 30.0, "attempts": 4, "total_seconds": 60.0}


@pytest.fixture
def url(milvus_store: Running) -> Iterator[str]:
    """A server, and afterwards the same without this test's collection."""
    yield milvus_store.url

    async def clean() -> None:
        backend = backend_at(milvus_store.url)
        await backend.drop()
        await backend.close()

    anyio.run(clean)


def backend_at(url: str, **options: Any) -> MilvusBackend:
    return MilvusBackend.from_url(url, own("milvus-faults"), {**PATIENCE, **options})


async def stored(url: str, documents: int = 40, **options: Any) -> MilvusBackend:
    backend = backend_at(url, **options)
    await backend.drop()
    await backend.create(WORLD.schema)
    await backend.upsert(WORLD.documents[:documents], WORLD.embeddings[:documents])
    return backend


# What networks and dying servers do, and many searches at once, are in the files test_faults_*.py.


@runs
async def test_pages_hold_every_document_once_and_no_other(url: str) -> None:
    world = make_world(62, documents=2_300, most_rows=1, dimension=8)
    backend = backend_at(url)
    await backend.drop()
    await backend.create(world.schema)
    for start in range(0, 2_300, 460):
        batch = slice(start, start + 460)
        await backend.upsert(world.documents[batch], world.embeddings[batch])
    assert sorted([id async for id in backend.scan_ids()]) == sorted(d.id for d in world.documents)
    found = parse_filter({"lang": {"$exists": True}})
    passing = world.passing({"lang": {"$exists": True}})
    assert 1_000 < len(passing) < 2_300
    assert await backend.delete_where(found) == len(passing)
    left = {document.id for document in world.documents} - set(passing)
    assert {id async for id in backend.scan_ids()} == left
    await backend.close()


@runs
async def test_a_restarted_lite_is_loaded_again_at_the_first_call(url: str) -> None:
    """milvus-lite answers 101 for every collection after a start: one load and one more try, no pause."""
    backend = await stored(url)
    client = backend._reads._connection._client
    assert client is not None
    client.release_collection(backend._reads.layout.name)
    client.release_collection(backend._reads.layout.parts_name)
    assert len(await backend.search(WORLD.queries[0], ALL, 5)) == 5
    await backend.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "m3-test", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system here (needs root)")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@runs
async def test_a_disk_that_fills_up_loses_nothing_not_even_after_a_kill(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(63, documents=60, dimension=256, most_rows=200)
    acknowledged = []
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(small_disk))
        server = MilvusServer()
    case = Case("milvus", "full disk, killed after it was mended")
    try:
        server.start()
        backend = backend_at(f"milvus+{server.url}")
        await backend.create(world.schema)
        with case.call("upsert", StorageFull, patience=PATIENCE):
            for n in range(100):
                documents = [dataclasses.replace(d, id=f"{n}-{i}") for i, d in enumerate(world.documents)]
                await backend.upsert(documents, world.embeddings)
                acknowledged += documents
        assert len(acknowledged) >= 60
        with case.call("upsert, still full", StorageFull, patience=PATIENCE):
            await backend.upsert(documents, world.embeddings)
        with case.call("search, still full", patience=PATIENCE):
            assert len(await backend.search(world.queries[0], ALL, 5)) == 5
        assert await backend.fetch([document.id for document in acknowledged]) == acknowledged
        subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
        with case.call("upsert, room again", patience=PATIENCE):
            await backend.upsert(documents, world.embeddings)
        acknowledged += documents
        server.stop(kill=True)
        server.start()
        found = await backend.fetch([document.id for document in acknowledged])
        ids = [id async for id in backend.scan_ids()]
        lost = sum(there != document for there, document in zip(found, acknowledged, strict=True))
        case.record(lost=lost, doubled=len(ids) - len(set(ids)))
        assert lost == 0
        assert sorted(ids) == sorted(document.id for document in acknowledged)
        await backend.close()
    finally:
        server.remove()


# -- what servers say that milvus-lite never does


class _Call(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


class _Retriable(MilvusException):
    """As pymilvus 3 makes it of a server's own word; its 2.6 knows nothing of it."""

    retriable = True  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MilvusException(100, "can't find collection[notes]"), CollectionNotFound),
        (MilvusException(8, "request is rejected by grpc RateLimiter"), Throttled),
        (MilvusException(65535, "auth check failure, please check api key is correct"), Unauthorised),
        (MilvusException(1100, "invalid parameter"), Rejected),
        (MilvusException(1, "collection 'x' already exists"), AlreadyExists),
        (MilvusException(1, "[Errno 28] No space left on device"), StorageFull),
        (MilvusException(7, "disk limit exceeded[predict=2, limit=1]"), StorageFull),
        (_Retriable(1, "service not ready[stage=Initializing]"), Unavailable),
        (MilvusException(1, "service internal error"), Rejected),
        (MilvusException(2, "Fail connecting to server"), Unavailable),
        (MilvusException(grpc.StatusCode.UNAVAILABLE, "Retry run out of 75"), Unavailable),
        (MilvusException(1, "Unexpected error, message=<Cannot invoke RPC on closed channel!>"), Unavailable),
        (_Call(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), TimedOut),
        (_Call(grpc.StatusCode.RESOURCE_EXHAUSTED, "received message larger than max"), TooLarge),
        (_Call(grpc.StatusCode.RESOURCE_EXHAUSTED, "request is rejected, rate limit exceeded"), Throttled),
        (MilvusException(1, "[Errno 17] File exists: 'notes'"), AlreadyExists),
        (MilvusException(65535, "create duplicate collection with different parameters"), AlreadyExists),
        (MilvusException(65535, "query results exceed the maxOutputSize Limit 104857600"), TooLarge),
        (MilvusException(1100, "search results exceed the maxOutputSize Limit 104857600"), TooLarge),
        (MilvusException(65535, "segcore error: query results exceed the limit size"), TooLarge),
        (MilvusException(1, "Query result size exceeds the configured maximum output size"), TooLarge),
        (MilvusException(9, "quota exceeded[reason=memory quota exceeded]"), Throttled),
        (MilvusException(103, "collection not fully loaded[collection=1]"), Unavailable),
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
async def test_a_server_that_asks_to_slow_down_is_obeyed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = await stored(url, 1)
    monkeypatch.setattr(MilvusClient, "upsert", _failing(2, MilvusException(8, "rate limit exceeded")))
    await backend.upsert(WORLD.documents, WORLD.embeddings)
    assert await backend.count() == 40
    await backend.close()


@runs
async def test_a_message_that_is_too_large_is_halved_and_a_row_that_is_too_large_is_named(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = await stored(url, 1)
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


@runs
async def test_a_part_that_is_refused_leaves_the_old_version_whole(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(64, documents=2, dimension=64)
    rng = np.random.default_rng(64)

    def version(seed_rows: int) -> M3Embeddings:
        return join(
            [
                (unit_rows(rng.normal(size=(1, 64)))[0], {3: 0.5}, unit_rows(rng.normal(size=(rows, 64))))
                for rows in (seed_rows, 3)
            ],
            world.schema.model,
        )

    backend = backend_at(url, max_row_bytes=2**18)
    await backend.drop()
    await backend.create(world.schema)
    await backend.upsert(world.documents, version(4_000))
    long, short = (document.id for document in world.documents)
    before = await backend.vectors([long])
    parts = backend._reads.layout.parts_name

    async def parts_stored() -> set[str]:
        rows = await backend._reads._connection.call(
            "count", "query", parts, filter='key != ""', output_fields=["key"]
        )
        return {row["key"] for row in rows}

    stored_before = await parts_stored()
    real = MilvusClient.upsert

    def narrow(self: MilvusClient, collection: str, data: list[dict[str, Any]], **options: Any) -> Any:
        # The last part of the document only: the others pass.
        if collection == parts and any(row["key"].endswith(".2") for row in data):
            raise _Call(grpc.StatusCode.RESOURCE_EXHAUSTED, "received message larger than max")
        return real(self, collection, data=data, **options)

    new = [dataclasses.replace(document, text="new") for document in world.documents]
    with monkeypatch.context() as patched:
        patched.setattr(MilvusClient, "upsert", narrow)
        with pytest.raises(PartialWrite) as caught:
            await backend.upsert(new, version(4_000))
    assert set(caught.value.failed) == {long}
    assert await backend.fetch([long, short]) == [world.documents[0], new[1]]
    back = await backend.vectors([long])
    assert before.multivectors is not None
    assert back.multivectors is not None
    np.testing.assert_array_equal(back.multivectors[0], before.multivectors[0])
    assert await parts_stored() == stored_before

    # And one whose parts are lost is named, not the one beside it.
    await backend._reads._connection.call("delete", "delete", parts, filter='key != ""', write=True)
    with pytest.raises(Corrupt, match=f"document {long!r}"):
        await backend.vectors([short, long])
    await backend.close()


@runs
async def test_texts_come_in_pieces_and_an_answer_that_is_too_large_is_halved(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = await stored(url)
    real = MilvusClient.query
    limits = []

    def narrow(self: MilvusClient, *arguments: Any, limit: int = 0, **options: Any) -> Any:
        limits.append(limit)
        if limit > 11:
            raise _Call(grpc.StatusCode.RESOURCE_EXHAUSTED, "received message larger than max")
        return real(self, *arguments, limit=limit, **options)

    monkeypatch.setattr(MilvusClient, "query", narrow)
    ids = [document.id for document in WORLD.documents]
    assert await backend.fetch(ids) == list(WORLD.documents)
    limits.clear()
    await backend.fetch([f"absent-{i}" for i in range(300)])
    assert max(limits) == 256
    await backend.close()
