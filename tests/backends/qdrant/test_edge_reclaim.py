"""The space of deleted documents in an Edge collection: reclaimed by itself, in use, and whatever ends the process."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import logging
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from m3_connectors.backends.base import Storage
from m3_connectors.backends.qdrant.edge import connection as shard
from m3_connectors.backends.qdrant.edge import reclaim
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.backends.qdrant.edge.reclaim import Copy
from m3_connectors.cli.app import main as m3
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import StorageFull
from m3_connectors.filters import parse_filter
from m3_connectors.testing.agreement import compare_world
from m3_connectors.testing.worlds import World, make_world

WORLDS = {
    precision: make_world(61, documents=60, queries=4, storage=Storage(precision))
    for precision in ("float16", "int2")
}
"""The engine scores the rows of the first one; those of the second one are in a file of their own."""

WORLD = WORLDS["float16"]
IDS = [document.id for document in WORLD.documents]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure after few documents, take any garbage, copy few at a time."""
    monkeypatch.setattr(shard, "CHECK_POINTS", 20)
    monkeypatch.setattr(reclaim, "LEAST_BYTES", 0)
    monkeypatch.setattr(reclaim, "_MOST_POINTS", 7)


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread copies: the test takes its steps."""
    monkeypatch.setattr(shard, "_reclaim", lambda *_: None)


def run(test: Callable[[], Awaitable[None]]) -> None:
    anyio.run(test)


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


async def filled(directory: Path, world: World = WORLD) -> EdgeBackend:
    backend = EdgeBackend(directory, "c")
    await backend.create(world.schema)
    await backend.upsert(world.documents, world.embeddings)
    return backend


async def make_garbage(backend: EdgeBackend, rounds: int = 1) -> None:
    """Delete everything and add it again, so that half of the places are garbage after the first round."""
    for _ in range(rounds):
        assert await backend.delete(IDS) == len(IDS)
        await backend.upsert(WORLD.documents, WORLD.embeddings)


@pytest.fixture
def never_at_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy is so nearly done that closing finishes it."""
    monkeypatch.setattr(shard, "_CLOSING_SECONDS", -1.0)


async def settled(backend: EdgeBackend) -> None:
    """Wait until a copy in progress is done."""
    thread = backend._opened()._reclaiming
    if thread is not None:
        await anyio.to_thread.run_sync(thread.join)


def shards(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "c").iterdir() if path.is_dir())


def test_documents_deleted_and_added_again_and_again_take_bounded_space(tmp_path: Path, world: World) -> None:
    async def main() -> None:
        backend = await filled(tmp_path, world)
        for _ in range(12):
            await make_garbage(backend)
            await settled(backend)
            usage = await backend._run("test", backend._opened().usage)
            assert usage.live == len(IDS)
            assert usage.places < 3 * len(IDS)
            assert usage.rows_bytes <= 3 * usage.named_bytes
        assert shards(tmp_path) != ["shard"]
        assert len(shards(tmp_path)) == 1
        await compare_world(backend, world)
        await backend.close()
        assert await EdgeBackend(tmp_path, "c").open() == world.schema
        again = EdgeBackend(tmp_path, "c")
        gc.collect()
        await again.open()
        await compare_world(again, world)
        await again.close()

    run(main)


def test_deletions_by_filter_and_replaced_documents_count_too(tmp_path: Path) -> None:
    async def main() -> None:
        backend = await filled(tmp_path)
        raw = next(raw for raw in WORLD.filters if 10 < len(WORLD.passing(raw)) < 50)
        passing = WORLD.passing(raw)
        chosen = [i for i, id in enumerate(IDS) if id in passing]
        documents = [WORLD.documents[i] for i in chosen]
        embeddings = M3Embeddings.concatenate([WORLD.embeddings[i] for i in chosen])
        parsed = parse_filter(raw)
        assert parsed is not None
        for _ in range(12):
            assert await backend.delete_where(parsed) == len(passing)
            await backend.upsert(documents, embeddings)
            await settled(backend)
        usage = await backend._run("test", backend._opened().usage)
        assert usage.places < 3 * len(IDS)
        await compare_world(backend, WORLD)
        # Replacing alone takes the places that are there.
        before = usage.places
        for _ in range(3):
            await backend.upsert(WORLD.documents, WORLD.embeddings)
        assert (await backend._run("test", backend._opened().usage)).places == before
        await backend.close()

    run(main)


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("seed", range(6))
def test_writes_between_any_two_pages_are_in_the_copy(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    world = WORLDS["int2" if seed % 2 else "float16"]

    async def main() -> None:
        backend = await filled(tmp_path, world)
        await make_garbage(backend, 2)
        opened = backend._opened()
        copy = opened._copy
        assert copy is not None
        versions = dict.fromkeys(range(len(IDS)), 0)  # of the documents that are there, by position
        while opened._copy is copy:
            for _ in range(rng.randrange(3)):
                some = rng.sample(range(len(IDS)), rng.randrange(1, 12))
                if rng.random() < 0.5:
                    gone = await backend.delete([IDS[i] for i in some])
                    assert gone == len(versions.keys() & set(some))
                    versions = {i: version for i, version in versions.items() if i not in some}
                else:
                    versions |= {i: versions.get(i, 0) + 1 for i in some}
                    documents = [at(i, versions[i]) for i in some]
                    rows = [world.embeddings[(i + versions[i]) % len(IDS)] for i in some]
                    await backend.upsert(documents, M3Embeddings.concatenate(rows))
            await anyio.to_thread.run_sync(opened._reclaim_page, copy)
        assert shards(tmp_path) == [copy.directory.name]
        for _ in range(2):
            there = sorted(versions)
            assert await backend.fetch(IDS) == [
                at(i, versions[i]) if i in versions else None for i in range(len(IDS))
            ]
            assert {id async for id in backend.scan_ids()} == {IDS[i] for i in there}
            stored = dataclasses.replace(
                world,
                documents=[at(i, versions[i]) for i in there],
                embeddings=M3Embeddings.concatenate(
                    [world.embeddings[(i + versions[i]) % len(IDS)] for i in there]
                ),
            )
            await compare_world(backend, stored)
            await backend.close()
            await backend.open()
        await backend.close()

    def at(i: int, version: int) -> Document:
        document = world.documents[i]
        return document if version == 0 else dataclasses.replace(document, text=f"version {version}")

    run(main)


def test_searches_go_on_and_are_right_while_it_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every page waits until a search ended since the one before: they take turns, and no answer is wrong."""
    searched = threading.Semaphore(0)
    pages = 0
    step = Copy.step

    def slow(copy: Copy, *arguments: Any) -> bool:
        nonlocal pages
        pages += 1
        return step(copy, *arguments)

    def after_a_search(copy: Copy) -> float | None:
        assert searched.acquire(timeout=60)
        return take(copy)

    async def main() -> None:
        nonlocal take
        backend = await filled(tmp_path)
        opened = backend._opened()
        take = opened._reclaim_page
        monkeypatch.setattr(opened, "_reclaim_page", after_a_search)
        await make_garbage(backend, 2)
        assert opened._copy is not None
        while opened._copy is not None:
            await compare_world(backend, WORLD)
            searched.release()
        await settled(backend)
        assert pages > len(IDS) // 7
        await compare_world(backend, WORLD)
        await backend.close()

    take: Callable[[Copy], float | None]
    monkeypatch.setattr(Copy, "step", slow)
    run(main)


@pytest.mark.usefixtures("by_hand")
def test_closing_finishes_a_copy_that_is_nearly_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        backend = await filled(tmp_path)
        await make_garbage(backend, 2)
        copy = backend._opened()._copy
        assert copy is not None
        assert copy.seconds_left == float("inf")
        assert backend._opened()._reclaim_page(copy) is not None
        monkeypatch.setattr(shard, "_CLOSING_SECONDS", copy.seconds_left * 1.001)
        await backend.close()
        assert shards(tmp_path) == [copy.directory.name]
        await backend.open()
        await compare_world(backend, WORLD)
        usage = await backend._run("test", backend._opened().usage)
        assert usage.live == len(IDS)
        assert usage.places <= 2 * len(IDS)  # those deleted while it copied are in the copy, too
        await backend.close()

    run(main)


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("failing", ["sync_directory", "write_record", "close of the old shard"])
def test_what_fails_when_the_copy_takes_over_loses_nothing(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    class Unclosable:
        def __init__(self, edge: Any) -> None:
            self.edge = edge

        def close(self) -> None:
            self.edge.close()
            raise Exception("cannot close")  # as the engine's own failures are

        def __getattr__(self, name: str) -> Any:
            return getattr(self.edge, name)

    async def main() -> None:
        backend = await filled(tmp_path)
        await make_garbage(backend, 2)
        opened = backend._opened()
        copy = opened._copy
        assert copy is not None
        with monkeypatch.context() as patched:
            if failing != "close of the old shard":
                patched.setattr(shard, failing, fails)
            else:
                opened._shard = Unclosable(opened._shard)  # type: ignore[assignment]
            while opened._reclaim_page(copy) is not None:
                pass
        assert "is not reclaimed" in caplog.text
        await compare_world(backend, WORLD)
        await backend.upsert(WORLD.documents[:3], WORLD.embeddings[:3])
        await backend.close()
        await backend.open()
        assert shards(tmp_path) == (["shard"] if failing == "write_record" else [copy.directory.name])
        await compare_world(backend, WORLD)
        await backend.close()

    run(main)


@pytest.mark.usefixtures("by_hand", "never_at_close")
@pytest.mark.parametrize("end", ["close", "forget", "optimize"])
def test_a_copy_that_is_not_finished_is_left_behind_and_loses_nothing(tmp_path: Path, end: str) -> None:
    async def main() -> None:
        backend = await filled(tmp_path)
        await make_garbage(backend, 2)
        copy = backend._opened()._copy
        assert copy is not None
        assert await anyio.to_thread.run_sync(backend._opened()._reclaim_page, copy) is not None
        assert shards(tmp_path) == ["shard", copy.directory.name]
        if end == "optimize":
            await backend.optimize()
            usage = await backend._run("test", backend._opened().usage)
            assert usage.places < 2 * len(IDS)
        if end == "forget":
            del backend, copy
            gc.collect()
        else:
            await backend.close()
        again = EdgeBackend(tmp_path, "c")
        await again.open()
        assert shards(tmp_path) == ["shard"]
        await compare_world(again, WORLD)
        await again.close()

    run(main)


@pytest.mark.parametrize("where", ["room for the copy", "a page", "a write"])
def test_without_room_for_the_copy_writes_go_on(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shard, "_reclaim", lambda *_: None)
    full = False
    check = shard.check_space

    def checked(directory: Path, size_bytes: int, operation: str) -> None:
        if full and operation == "reclaim":
            raise StorageFull("the disk is full.\n  Free some.", backend="qdrant", operation=operation)
        check(directory, size_bytes, operation)

    monkeypatch.setattr(shard, "check_space", checked)

    async def main() -> None:
        nonlocal full
        backend = await filled(tmp_path)
        full = where == "room for the copy"
        await make_garbage(backend, 2)
        opened = backend._opened()
        if not full:
            copy, full = opened._copy, True
            assert copy is not None
            if where == "a page":
                assert opened._reclaim_page(copy) is None
            else:
                await backend.upsert(WORLD.documents[:1], WORLD.embeddings[:1])
        assert opened._copy is None
        assert shards(tmp_path) == ["shard"]
        assert "not reclaimed: qdrant reclaim: the disk is full." in caplog.text
        await make_garbage(backend)
        await compare_world(backend, WORLD)
        full = False
        await make_garbage(backend)
        assert opened._copy is not None
        await backend.close()

    with caplog.at_level(logging.WARNING):
        run(main)


@pytest.mark.usefixtures("by_hand")
def test_rows_of_replaced_documents_are_reclaimed(tmp_path: Path) -> None:
    """The engine replaces a document in its place; the rows of the replaced one stay in the file."""
    world = WORLDS["int2"]

    async def main() -> None:
        backend = await filled(tmp_path, world)
        opened = backend._opened()
        before = await backend._run("test", opened.usage)
        assert before.unnamed_bytes == 0
        for _ in range(2):
            await backend.upsert(world.documents, world.embeddings)
        replaced = await backend._run("test", opened.usage)
        assert replaced.places == before.places
        assert replaced.unnamed_bytes == replaced.reclaimable_bytes == 2 * before.rows_bytes
        copy = opened._copy
        assert copy is not None
        while opened._reclaim_page(copy) is not None:
            pass
        after = await backend._run("test", opened.usage)
        assert after.rows_bytes == before.rows_bytes == after.named_bytes
        await compare_world(backend, world)
        # A rewrite on request does the same, and a second one has nothing to do.
        await backend.upsert(world.documents[:30], world.embeddings[:30])
        for _ in range(2):
            await backend.optimize()
            assert (await backend._run("test", opened.usage)).rows_bytes == before.rows_bytes
            names = shards(tmp_path)
        assert shards(tmp_path) == names
        assert names != [copy.directory.name]
        await compare_world(backend, world)
        await backend.close()

    run(main)


def test_few_deletions_start_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that deletes some documents and ends must not rewrite the others."""
    monkeypatch.undo()  # the limits are the package's own here

    async def main() -> None:
        backend = await filled(tmp_path)
        await backend.delete(IDS[:50])
        assert backend._opened()._reclaiming is None
        await backend.close()
        assert shards(tmp_path) == ["shard"]

    run(main)


def test_half_of_the_data_is_the_bound_and_small_garbage_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    mib = 2**20
    assert reclaim.Usage(1000, 2000, 100 * mib).due
    assert reclaim.Usage(1000, 2000, 100 * mib).reclaimable_bytes == 50 * mib
    assert not reclaim.Usage(1001, 2000, 100 * mib).due
    assert not reclaim.Usage(10, 1000, 10 * mib).due
    assert not reclaim.Usage(0, 0, 0).due
    assert reclaim.Usage(0, 1000, 20 * mib).due


def test_doctor_says_how_much_can_be_reclaimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shard, "_reclaim", lambda *_: None)
    big = make_world(62, documents=400, dimension=256, most_rows=60)

    async def main() -> None:
        backend = EdgeBackend(tmp_path, "c")
        await backend.create(big.schema)
        await backend.upsert(big.documents, big.embeddings)
        assert await backend.remarks() == ()
        await backend.delete([document.id for document in big.documents[:300]])
        await backend.close()

    run(main)
    m3(["doctor", f"qdrant:{tmp_path}", "-c", "c", "--json"])
    found = json.loads(capsys.readouterr().out)["findings"]
    (note,) = [one for one in found if "reclaimed" in one["value"]]
    assert "(300 deleted documents, 100 live)" in note["value"]
    assert note["level"] == "note"
    assert "optimize()" in note["remedy"]


# -- kill -9

_WRITER = """
import itertools, os, signal, sys
import anyio
from m3_connectors.backends.base import Storage
from m3_connectors.backends.qdrant.edge import reclaim
from m3_connectors.backends.qdrant.edge import connection as shard
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.backends.qdrant.edge.row_file import RowFile
from m3_connectors.testing.worlds import make_world
import dataclasses, shutil

directory, event, count, precision = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
shard.CHECK_POINTS, reclaim.LEAST_BYTES, reclaim._MOST_POINTS = 20, 0, 7

def dies(owner, name, after):
    call, calls = getattr(owner, name), itertools.count(1)
    def wrapped(*args, **kwargs):
        last = next(calls) == count
        if last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **kwargs)
        if last and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, wrapped)

async def main():
    world = make_world(61, documents=60, queries=4, storage=Storage(precision))
    ids = [document.id for document in world.documents]
    backend = EdgeBackend(directory, "c")
    await backend.open()
    # Only what happens in reclaiming counts: the collection is made by the test.
    owner, _, name = event.partition(".")
    owners = {"Copy": reclaim.Copy, "RowFile": RowFile, "shard": shard, "os": os, "shutil": shutil}
    dies(owners[owner], name.rstrip("+"), name.endswith("+"))
    for version in itertools.count(1):
        for start in range(0, 60, 20):
            some = slice(start, start + 20)
            documents = [dataclasses.replace(d, text=f"version {version}") for d in world.documents[some]]
            print("deleting", start, version, flush=True)
            await backend.delete(ids[some])
            print("deleted", start, version, flush=True)
            await backend.upsert(documents, world.embeddings[some])
            print("added", start, version, flush=True)

anyio.run(main)
"""


@pytest.mark.parametrize(
    ("event", "count", "precision"),
    [
        ("Copy.__init__", 1, "float16"),
        ("Copy.__init__+", 1, "float16"),
        ("Copy.step", 1, "float16"),
        ("Copy.step", 5, "float16"),
        ("Copy.step+", 9, "float16"),
        ("Copy.step+", 24, "float16"),
        ("Copy.update", 2, "float16"),
        ("Copy.update+", 4, "float16"),
        ("shard.write_record", 1, "float16"),
        ("os.replace", 1, "float16"),
        ("os.replace+", 1, "float16"),
        ("shard.sync_directory+", 1, "float16"),
        ("shutil.rmtree", 1, "float16"),
        ("shutil.rmtree+", 1, "float16"),
        ("Copy.step", 40, "float16"),
        # Between the rows of a document and the document, and wherever their places change.
        ("RowFile.append", 1, "int2"),
        ("RowFile.append+", 1, "int2"),
        ("RowFile.append+", 5, "int2"),
        ("os.fsync", 2, "int2"),
        ("Copy.step+", 9, "int2"),
        ("Copy.update+", 4, "int2"),
        ("os.replace", 1, "int2"),
        ("os.replace+", 1, "int2"),
        ("shutil.rmtree+", 1, "int2"),
    ],
)
def test_a_kill_at_any_moment_of_it_loses_no_acknowledged_document(
    tmp_path: Path, event: str, count: int, precision: str
) -> None:
    world = WORLDS[precision]

    async def make() -> None:
        await (await filled(tmp_path, world)).close()

    run(make)
    writer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_WRITER), str(tmp_path), event, str(count), precision],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert writer.returncode == -signal.SIGKILL
    last: dict[int, tuple[str, int]] = {}
    for line in writer.stdout.splitlines(True):
        if not line.endswith("\n"):  # the kill came while it was printed, so nobody was told
            break
        word, start, version = line.split()
        last[int(start)] = (word, int(version))

    async def check() -> None:
        backend = EdgeBackend(tmp_path, "c")
        await backend.open()
        assert len(shards(tmp_path)) == 1
        found = await backend.fetch(IDS)
        for start in range(0, 60, 20):
            word, version = last.get(start, ("added", 0))
            texts = [document and document.text for document in found[start : start + 20]]
            new: list[str | None] = [f"version {version}"] * 20
            original: list[str | None] = [document.text for document in world.documents[start : start + 20]]
            old = [f"version {version - 1}"] * 20 if version > 1 else original
            # What was acknowledged is there. Of the call that the kill cut off, all may be there or nothing.
            allowed = {
                "added": [new if version else original],
                "deleted": [[None] * 20, new],
                "deleting": [old, [None] * 20],
            }[word]
            assert texts in allowed
        there = [i for i, document in enumerate(found) if document is not None]
        assert await backend.count() == len(there)
        stored = World(
            world.schema,
            [document for document in found if document is not None],
            M3Embeddings.concatenate([world.embeddings[i] for i in there]),
            world.queries,
            world.filters,
        )
        await compare_world(backend, stored)
        await backend.close()

    run(check)


def test_every_kill_leaves_one_shard_that_the_record_names(tmp_path: Path) -> None:
    """Nothing that an earlier process left over is ever taken for the collection."""

    async def main() -> None:
        await (await filled(tmp_path)).close()
        home = tmp_path / "c"
        for left in itertools.islice((f"shard-{'0' * 31}{n}" for n in range(3)), 3):
            (home / left / "segments").mkdir(parents=True)
        (home / "m3.json.tmp").write_text("{")
        backend = EdgeBackend(tmp_path, "c")
        await backend.open()
        assert shards(tmp_path) == ["shard"]
        await compare_world(backend, WORLD)
        await backend.close()

    run(main)
