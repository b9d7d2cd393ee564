"""milvus-lite reads in steps: no write comes between them, so a read shows every write acknowledged before it began."""

from __future__ import annotations

import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import milvus_lite.engine.collection
import pytest
from milvus_lite.storage.memtable import MemTable

from m3_connectors.backends.milvus.backend import MilvusBackend
from m3_connectors.backends.milvus.exclusion import Exclusion, exclusion_of
from m3_connectors.documents import Document
from m3_connectors.errors import TimedOut
from m3_connectors.methods import ALL, SPARSE
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.servers.start import Running
from m3_connectors.testing.worlds import make_world

WORLD = make_world(82, documents=20)
IT = WORLD.documents[0].id
SECONDS = 30.0
"""How long a test waits for what must happen."""

Read = Callable[[MilvusBackend], Awaitable[Document | None]]


async def fetched(backend: MilvusBackend) -> Document | None:
    return (await backend.fetch([IT]))[0]


async def found(backend: MilvusBackend) -> Document | None:
    hits = await backend.search(WORLD.embeddings[0], SPARSE, 10)
    return next((hit.document for hit in hits if hit.document.id == IT), None)


reads = pytest.mark.parametrize("read", [fetched, found])


class Engine:
    """Holds a call in one step of the embedded engine while another call begins.

    The step goes on when the other call asks for its turn or, where it needs none, when it has its answer.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.in_step = threading.Event()
        self.go_on = threading.Event()

    def hold(self, owner: Any, name: str, *, of_write: bool) -> None:
        real = getattr(owner, name)

        def held(*arguments: Any, **options: Any) -> Any:
            answer = real(*arguments, **options)
            if not self.in_step.is_set():
                self._watch_turns(of_write)
                self.in_step.set()
                assert self.go_on.wait(SECONDS)
            return answer

        self._patch.setattr(owner, name, held)

    def _watch_turns(self, of_write: bool) -> None:
        real = Exclusion.turn

        def turn(exclusion: Exclusion, collection: str, is_write: bool, *arguments: Any) -> Any:
            if is_write is not of_write:
                self.go_on.set()
            return real(exclusion, collection, is_write, *arguments)

        self._patch.setattr(Exclusion, "turn", turn)

    async def beside(self, first: Callable[[], Awaitable[Any]], second: Callable[[], Awaitable[Any]]) -> None:
        """Begin the second call while the first is held in its step."""

        async def follow() -> None:
            assert await anyio.to_thread.run_sync(self.in_step.wait, SECONDS)
            await second()
            self.go_on.set()

        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first)
                tasks.start_soon(follow)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    made = Engine(monkeypatch)
    yield made
    made.in_step.set()
    made.go_on.set()


async def embedded(directory: Path, **options: Any) -> MilvusBackend:
    """The world's documents, in segments."""
    backend = MilvusBackend.from_url(f"milvus:{directory}/data.db", "notes", options)
    await backend.create(WORLD.schema)
    await backend.upsert(WORLD.documents, WORLD.embeddings)
    await backend.optimize()
    return backend


@reads
@runs
async def test_a_read_beside_a_flush_shows_what_was_acknowledged_before(
    tmp_path: Path, engine: Engine, read: Read
) -> None:
    backend = await embedded(tmp_path)
    new = Document(IT, "new")
    await backend.upsert([new], WORLD.embeddings[0])
    # Held between taking the unflushed rows away and showing them as a segment.
    engine.hold(milvus_lite.engine.collection, "WAL", of_write=True)
    answers: list[Document | None] = []

    async def ask() -> None:
        answers.append(await read(backend))

    await engine.beside(backend.optimize, ask)
    assert answers == [new]
    await backend.close()


@runs
async def test_a_read_shows_no_document_that_was_deleted_before_it_while_it_is_added_again(
    tmp_path: Path, engine: Engine
) -> None:
    backend = await embedded(tmp_path)
    await backend.delete([IT])
    new = Document(IT, "new")
    answers: list[Document | None] = []

    async def ask() -> None:
        answers.append(await fetched(backend))

    async def add() -> None:
        await backend.upsert([new], WORLD.embeddings[0])

    # Held between reading the unflushed rows and the deletions; the addition removes the deletion.
    engine.hold(MemTable, "get", of_write=False)
    await engine.beside(ask, add)
    assert answers == [None]
    assert await fetched(backend) == new
    await backend.close()


@runs
async def test_a_read_shows_no_older_version_while_the_newer_one_is_deleted(
    tmp_path: Path, engine: Engine
) -> None:
    backend = await embedded(tmp_path)
    new = Document(IT, "new")
    await backend.upsert([new], WORLD.embeddings[0])
    answers: list[Document | None] = []

    async def ask() -> None:
        answers.append(await found(backend))

    async def delete() -> None:
        assert await backend.delete([IT]) == 1

    # A sparse search reads the deletions first; held between them and the unflushed rows.
    engine.hold(MemTable, "delete_index_snapshot", of_write=False)
    await engine.beside(ask, delete)
    assert answers == [new]
    assert await found(backend) is None
    await backend.close()


@runs
async def test_connections_to_one_server_wait_for_each_other(milvus_store: Running) -> None:
    writing, reading = (
        MilvusBackend.from_url(milvus_store.url, "exclusion", {"timeout_seconds": 0.5, "attempts": 1})
        for _ in range(2)
    )
    await writing.create(WORLD.schema)
    try:
        await reading.open()
        connection = writing._connected
        assert connection is not None
        if not connection.is_lite:
            assert connection._exclusion is None  # a server keeps its reads and writes apart by itself
            return
        assert connection._exclusion is not None
        other_write = connection._exclusion.turn("exclusion", True, 0, AssertionError)
        with other_write, pytest.raises(TimedOut, match="was busy with earlier calls of this process"):
            await reading.count()
        assert await reading.count() == 0
    finally:
        await reading.close()
        await writing.drop()
        await writing.close()


@runs
async def test_searches_and_writes_of_two_connections_do_not_starve_each_other(tmp_path: Path) -> None:
    backend = await embedded(tmp_path)
    other = MilvusBackend.from_url(f"milvus:{tmp_path}/data.db", "notes", {})
    await other.open()
    versions = 30
    acknowledged = 0
    wrong: list[tuple[str, int]] = []
    searched = 0
    over = anyio.Event()

    async def search(reader: MilvusBackend) -> None:
        nonlocal searched
        while not over.is_set():
            before = acknowledged
            document = await found(reader)
            if document is None or int(document.text or -1) < before:
                wrong.append((str(document), before))
            await reader.search(WORLD.queries[0], ALL, 5)
            searched += 1

    async def write() -> None:
        nonlocal acknowledged
        await backend.upsert([Document(IT, "0")], WORLD.embeddings[0])
        async with anyio.create_task_group() as searching:
            for reader in (backend, other, backend, other):
                searching.start_soon(search, reader)
            for version in range(1, versions + 1):
                await backend.upsert([Document(IT, str(version))], WORLD.embeddings[0])
                acknowledged = version
                if version % 5 == 0:
                    await backend.optimize()
            over.set()

    with anyio.fail_after(SECONDS * 2):
        await write()
    assert not wrong
    assert searched > 4
    await other.close()
    await backend.close()


# -- the turns themselves


def in_turn(exclusion: Exclusion, collection: str, is_write: bool) -> bool:
    """Whether such a call may run now."""
    try:
        with exclusion.turn(collection, is_write, 0, TimeoutError):
            return True
    except TimeoutError:
        return False


@pytest.mark.parametrize(
    ("held", "asked", "is_free"),
    [
        (("a", False), ("a", False), True),
        (("a", False), ("a", True), False),
        (("a", True), ("a", False), False),
        (("a", True), ("a", True), False),
        (("a", True), ("b", False), True),
        (("a", False), ("b", True), True),
        (("a", True), ("b", True), False),
    ],
)
def test_what_runs_beside_what(held: tuple[str, bool], asked: tuple[str, bool], is_free: bool) -> None:
    exclusion = Exclusion()
    with exclusion.turn(*held, 0, TimeoutError):
        assert in_turn(exclusion, *asked) is is_free
    assert in_turn(exclusion, *asked)


def test_no_read_overtakes_a_write_that_waits_and_one_that_gave_up_holds_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exclusion = Exclusion()
    waits, written = threading.Event(), threading.Event()
    real = exclusion._changed.wait_for

    def noted(*arguments: Any) -> bool:
        waits.set()
        return real(*arguments)

    monkeypatch.setattr(exclusion._changed, "wait_for", noted)

    def write() -> None:
        with exclusion.turn("a", True, SECONDS, AssertionError):
            written.set()

    with exclusion.turn("a", False, 0, AssertionError):
        waits.clear()
        writing = threading.Thread(target=write)
        writing.start()
        assert waits.wait(SECONDS)
        assert not in_turn(exclusion, "a", False)
        assert in_turn(exclusion, "b", False)
        assert not written.is_set()
    writing.join(SECONDS)
    assert written.is_set()
    assert in_turn(exclusion, "a", False)


def test_connections_to_one_address_share_their_turns_as_long_as_one_is_open() -> None:
    address = "http://127.0.0.1:1"
    first = exclusion_of(address)
    assert exclusion_of(address) is first
    assert exclusion_of("http://127.0.0.1:2") is not first
    with first.turn("a", True, 0, AssertionError):
        del first
        gc.collect()
        assert not in_turn(exclusion_of(address), "a", True)
    gc.collect()
    assert in_turn(exclusion_of(address), "a", True)
