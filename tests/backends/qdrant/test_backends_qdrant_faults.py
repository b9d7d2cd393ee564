"""What happens to an Edge collection when something else goes wrong: other processes, kills, full disks, damage."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest
import qdrant_edge as engine
from fault_stores import Case

from m3_connectors.backends.base import Storage
from m3_connectors.backends.qdrant.edge import errors as failures
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.backends.qdrant.edge.rows import point_id
from m3_connectors.embeddings import COMPONENTS, M3Embeddings
from m3_connectors.errors import (
    AlreadyExists,
    BackendError,
    Busy,
    Corrupt,
    InvalidInput,
    NotFound,
    StorageFull,
)
from m3_connectors.methods import ALL, METHODS, Method
from m3_connectors.testing.agreement import compare_search, oracle_of
from m3_connectors.testing.worlds import World, make_world

PRELUDE = """
import anyio, dataclasses, os, signal, sys
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.testing.worlds import make_world
directory = sys.argv[1]
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(body: str, directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Run Python code in another process; it finds the directory in ``directory``."""
    code = PRELUDE + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(directory), *arguments],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )


def run(test: Callable[[], Awaitable[None]]) -> None:
    anyio.run(test)


async def filled(directory: Path, world: World) -> EdgeBackend:
    backend = EdgeBackend(directory, "c")
    await backend.create(world.schema)
    await backend.upsert(world.documents, world.embeddings)
    return backend


@pytest.mark.parametrize("what", ["a file", "a directory"])
def test_what_is_no_collection_is_neither_opened_nor_taken(tmp_path: Path, what: str) -> None:
    async def main() -> None:
        home = tmp_path / "c"
        if what == "a file":
            home.touch()
        else:
            (home / "collections").mkdir(parents=True)
        said = "there is no collection at" if what == "a file" else "is not a collection of m3-connectors"
        with pytest.raises(NotFound, match=said):
            await EdgeBackend(tmp_path, "c").open()
        with pytest.raises(
            AlreadyExists,
            match=f"c already exists and is {what} that m3-connectors did not create.\n  Use another collection name",
        ):
            await EdgeBackend(tmp_path, "c").create(make_world(0).schema)
        if what == "a directory":
            with pytest.raises(NotFound, match=r"no m3\.json"):
                await EdgeBackend(tmp_path, "c").drop()
        assert home.exists()

    run(main)


def test_another_process_is_named_and_its_end_frees_the_data(tmp_path: Path) -> None:
    holder = start(
        """
        async def main():
            backend = EdgeBackend(directory, "c")
            await backend.create(make_world(0, documents=2).schema)
            print("ready", flush=True)
            sys.stdin.readline()
            die()
        anyio.run(main)
        """,
        tmp_path,
    )

    async def main() -> None:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "ready\n"
        for call in ("open", "drop"):
            with pytest.raises(
                Busy, match=f'process {holder.pid} has opened collection "c" in {tmp_path}'
            ) as caught:
                await getattr(EdgeBackend(tmp_path, "c"), call)()
            assert caught.value.retryable
            assert "wait for that process to end" in str(caught.value)
            assert "a server: qdrant+http://HOST:6333" in str(caught.value)
        with pytest.raises(AlreadyExists):
            await EdgeBackend(tmp_path, "c").create(make_world(0).schema)
        other = EdgeBackend(tmp_path, "another")
        await other.create(make_world(0).schema)
        await other.close()
        holder.stdin.write("end\n")
        holder.stdin.flush()
        assert holder.wait(20) == -signal.SIGKILL
        backend = EdgeBackend(tmp_path, "c")
        await backend.open()
        assert await backend.count() == 0
        await backend.close()

    try:
        run(main)
    finally:
        holder.kill()
        holder.communicate()


def test_a_second_open_in_one_process_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    async def main() -> None:
        first = await filled(tmp_path, make_world(1, documents=3))
        second = EdgeBackend(tmp_path, "c")
        with pytest.raises(Busy, match="this process"):
            await second.open()
        await first.close()
        await second.open()
        assert await second.count() == 3
        await second.close()

    run(main)


def test_calls_of_cancelled_callers_keep_their_turn(tmp_path: Path) -> None:
    inside: list[str] = []
    most_inside: list[list[str]] = []
    began, go_on = threading.Event(), threading.Event()

    def slow(edge: engine.EdgeShard) -> None:
        inside.append("slow")
        began.set()
        assert go_on.wait(20)
        most_inside.append(list(inside))
        inside.remove("slow")

    def quick(edge: engine.EdgeShard) -> int:
        inside.append("quick")
        most_inside.append(list(inside))
        inside.remove("quick")
        return edge.count(engine.CountRequest())

    async def main() -> None:
        backend = await filled(tmp_path, make_world(1, documents=3))
        for after in ("another call", "close"):
            began.clear()
            go_on.clear()
            call = asyncio.create_task(backend._run("test", slow))
            await anyio.to_thread.run_sync(began.wait)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            waiting = asyncio.create_task(
                backend._run("test", quick) if after == "another call" else backend.close()
            )
            await asyncio.wait([waiting], timeout=0.2)
            assert not waiting.done()
            if after == "close":
                with pytest.raises(Busy, match="this process"):
                    await EdgeBackend(tmp_path, "c").open()
            go_on.set()
            await waiting
        assert most_inside == [["slow"], ["quick"], ["slow"]]
        again = EdgeBackend(tmp_path, "c")
        await again.open()
        assert await again.count() == 3
        await again.close()

    run(main)


@pytest.mark.parametrize("optimized", [False, True])
def test_equal_documents_at_the_cut_go_by_id(tmp_path: Path, optimized: bool) -> None:
    async def main() -> None:
        world = make_world(13, documents=60, queries=3)
        same = M3Embeddings.concatenate([world.embeddings[i % 2] for i in range(60)])
        documents = [
            dataclasses.replace(document, id=f"t{i:03}") for i, document in enumerate(world.documents)
        ]
        backend = await filled(tmp_path, dataclasses.replace(world, documents=documents, embeddings=same))
        if optimized:
            await backend.optimize()
        everyone = await backend.candidates("dense", world.embeddings[0], 60, exact=True)
        assert list(everyone.ids) == [f"t{i:03}" for i in (*range(0, 60, 2), *range(1, 60, 2))]
        for limit in (1, 5, 29, 30, 31, 45, 59):
            for component in COMPONENTS[:2]:
                got = await backend.candidates(component, world.embeddings[0], limit, exact=optimized)
                assert list(got.ids) == list(everyone.ids)[: len(got.ids)]
                assert len(got.ids) == limit or component == "sparse"
        shallow = Method("shallow", {"dense": 4}, ALL.weights)
        hits = await backend.search(world.embeddings[0], shallow, 4)
        assert [hit.id for hit in hits] == list(everyone.ids)[:4]
        await backend.close()

    run(main)


@pytest.mark.parametrize("k", [2**31, 2**63, 2**70])
def test_asking_for_more_than_the_engine_can_count_gives_all(tmp_path: Path, k: int) -> None:
    async def main() -> None:
        world = make_world(14, documents=5)
        backend = await filled(tmp_path, world)
        for method in METHODS.values():
            hits = await backend.search(world.embeddings[0], method, k)
            assert len(hits) == 5 or method.name == "sparse"
        deep = Method("deep", {"dense": k, "sparse": k}, ALL.weights)
        assert len(await backend.search(world.embeddings[0], deep, k, exact=True)) == 5
        assert len((await backend.candidates("dense", world.embeddings[0], k)).ids) == 5
        await backend.close()

    run(main)


def test_a_forgotten_backend_does_not_keep_the_lock(tmp_path: Path) -> None:
    async def main() -> None:
        world = make_world(1, documents=3)
        first = await filled(tmp_path, world)
        del first
        again = EdgeBackend(tmp_path, "c")
        await again.open()
        assert await again.count() == 3
        await again.close()

    run(main)


def test_a_forked_child_is_told_and_the_parent_goes_on(tmp_path: Path) -> None:
    process = start(
        """
        from m3_connectors.errors import Busy
        world = make_world(2, documents=6)
        async def parent():
            backend = EdgeBackend(directory, "c")
            await backend.create(world.schema)
            await backend.upsert(world.documents[:3], world.embeddings[:3])
            return backend
        async def child(backend):
            try:
                await backend.count()
            except Busy as error:
                print("forked child" in str(error), flush=True)
            await backend.close()
        async def goes_on(backend):
            await backend.upsert(world.documents[3:], world.embeddings[3:])
            print(await backend.count(), flush=True)
            await backend.close()
            await backend.open()
            print(await backend.count(), flush=True)
            await backend.close()
        backend = anyio.run(parent)
        forked = os.fork()
        if forked == 0:
            anyio.run(child, backend)
            sys.exit(0)
        print(os.waitpid(forked, 0)[1], flush=True)
        anyio.run(goes_on, backend)
        """,
        tmp_path,
    )
    printed, _ = process.communicate(timeout=60)
    assert printed.split() == ["True", "0", "6", "6"]
    assert process.returncode == 0


def test_kill_at_any_moment_keeps_every_acknowledged_document_once(tmp_path: Path) -> None:
    """Six times: write, be killed at a random moment, open again, compare with what was acknowledged."""
    rng = random.Random(7)
    world = make_world(3, documents=12, dimension=64)
    case, lost, doubled = Case("qdrant-edge", "killed and started in mid-batch"), [0], [0]
    for round_ in range(6):
        writer = start(
            """
            import itertools
            async def main():
                world = make_world(3, documents=12, dimension=64)
                backend = EdgeBackend(directory, "c")
                await (backend.open() if os.path.exists(f"{directory}/c") else backend.create(world.schema))
                for n in itertools.count():
                    named = [dataclasses.replace(d, id=f"{sys.argv[2]}-{n}-{i}") for i, d in enumerate(world.documents)]
                    print("try", n, flush=True)
                    await backend.upsert(named, world.embeddings)
                    print("done", n, flush=True)
                    again = dataclasses.replace(named[0], text=f"second {n}")
                    await backend.upsert([again], world.embeddings[5])
                    print("twice", n, flush=True)
            anyio.run(main)
            """,
            tmp_path,
            str(round_),
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.6))
        writer.kill()
        # The kill may cut the last line, and then nobody was told: where Python writes unbuffered, between its words.
        lines = [line.split() for line in writer.communicate()[0].splitlines(True) if line.endswith("\n")]
        done = [int(n) for word, n in lines if word == "done"]
        twice = {int(n) for word, n in lines if word == "twice"}

        async def check(round_: int = round_, done: list[int] = done, twice: set[int] = twice) -> None:
            backend = EdgeBackend(tmp_path, "c")
            with case.call("open"):
                await backend.open()
            ids = [id async for id in backend.scan_ids()]
            doubled[0] += len(ids) - len(set(ids))
            assert len(set(ids)) == await backend.count()
            for n in done:
                found = await backend.fetch([f"{round_}-{n}-{i}" for i in range(12)])
                texts = [document and document.text for document in found]
                wanted = [document.text for document in world.documents]
                # The first may have its second text before that was acknowledged.
                wanted[0] = f"second {n}" if n in twice or texts[0] == f"second {n}" else wanted[0]
                lost[0] += sum(there != text for there, text in zip(texts, wanted, strict=True))
                scores = await backend.score(
                    "dense", world.embeddings[3], [f"{round_}-{n}-3", f"{round_}-{n}-5"]
                )
                assert scores[0] == pytest.approx(1.0, abs=1e-5)
            # What was being written: wholly there with its vectors, or not at all.
            for id in ids:
                assert len(await backend.score("multivector", world.queries[0], [id])) == 1
            await backend.close()

        run(check)
    case.record(lost=lost[0], doubled=doubled[0])
    assert (lost, doubled) == ([0], [0])


@pytest.mark.parametrize(
    ("patch", "left"),
    [
        ("os.rename", "nothing"),
        ("m3_connectors.backends.qdrant.edge.connection.write_record", "nothing"),
        ("m3_connectors.backends.qdrant.edge.connection.sync_directory", "a collection"),
    ],
)
def test_a_kill_during_creation_leaves_all_or_nothing(tmp_path: Path, patch: str, left: str) -> None:
    process = start(
        f"""
        from unittest import mock
        async def main():
            with mock.patch("{patch}", die):
                await EdgeBackend(directory, "c").create(make_world(0, documents=2).schema)
        anyio.run(main)
        """,
        tmp_path,
    )
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL

    async def main() -> None:
        backend = EdgeBackend(tmp_path, "c")
        if left == "nothing":
            with pytest.raises(NotFound):
                await backend.open()
            await backend.create(make_world(0, documents=2).schema)
        else:
            await backend.open()
        assert await backend.count() == 0
        assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))
        await backend.close()

    run(main)


def test_a_kill_during_drop_leaves_no_half_collection(tmp_path: Path) -> None:
    process = start(
        """
        from unittest import mock
        async def main():
            backend = EdgeBackend(directory, "c")
            await backend.create(make_world(0, documents=2).schema)
            with mock.patch("shutil.rmtree", die):
                await backend.drop()
        anyio.run(main)
        """,
        tmp_path,
    )
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL

    async def main() -> None:
        backend = await filled(tmp_path, make_world(4, documents=5))
        assert await backend.count() == 5
        assert [path.name for path in tmp_path.glob("*") if not path.name.startswith(".")] == ["c"]
        await backend.close()

    run(main)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("m3.json", b"{"),
        ("shard/edge_config.json", b"\xff"),
        ("shard/segments/*/segment.json", b""),
        # The engine panics on this one instead of raising.
        ("shard/segments/*/vector_storage-multi_0/offsets/status.dat", b"\x01\x00\x00\x00"),
    ],
)
def test_damaged_files_are_reported_as_corrupt(tmp_path: Path, file: str, content: bytes) -> None:
    async def main() -> None:
        backend = await filled(tmp_path, make_world(5, documents=5))
        await backend.close()
        (path,) = (tmp_path / "c").glob(file)
        path.write_bytes(content)
        with pytest.raises(Corrupt, match="cannot be read") as caught:
            await backend.open()
        assert f"move {tmp_path / 'c'} away" in str(caught.value)
        await backend.drop()
        await backend.create(make_world(5).schema)
        await backend.close()

    run(main)


def test_a_directory_of_something_else_is_no_collection(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "thesis.txt").write_text("precious")
        backend = EdgeBackend(tmp_path, "c")
        with pytest.raises(NotFound, match="is not a collection"):
            await backend.open()
        with pytest.raises(AlreadyExists):
            await backend.create(make_world(0).schema)
        with pytest.raises(BackendError, match="is not a collection"):
            await backend.drop()
        assert (tmp_path / "c" / "thesis.txt").read_text() == "precious"

    run(main)


def test_a_panic_is_an_error_and_closes_the_way(tmp_path: Path) -> None:
    async def main() -> None:
        backend = await filled(tmp_path, make_world(6, documents=3))
        assert backend._shard is not None
        ragged = engine.Point(point_id("x"), {"dense": [0.0] * 24, "multi_0": [[1.0] * 24, [1.0]]}, {})
        with pytest.raises(Corrupt, match="panicked"):
            await backend._shard.run(
                "upsert", lambda edge: edge.update(engine.UpdateOperation.upsert_points([ragged]))
            )
        with pytest.raises(Corrupt, match="earlier call failed"):
            await backend.count()
        await backend.close()

    run(main)


def test_a_closed_backend_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        backend = await filled(tmp_path, make_world(6, documents=3))
        await backend.close()
        with pytest.raises(InvalidInput, match="not open"):
            await backend.count()

    run(main)


def test_a_nearly_full_disk_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        world = make_world(8, documents=6)
        backend = await filled(
            tmp_path,
            dataclasses.replace(world, documents=world.documents[:3], embeddings=world.embeddings[:3]),
        )
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(failures.shutil, "disk_usage", lambda path: usage._replace(free=50 * 2**20))
        with pytest.raises(StorageFull, match="50 MiB free"):
            await backend.upsert(world.documents[3:], world.embeddings[3:])
        with pytest.raises(StorageFull):
            await backend.optimize()
        with pytest.raises(StorageFull):
            await EdgeBackend(tmp_path, "new").create(world.schema)
        assert await backend.count() == 3
        assert await backend.delete([world.documents[0].id]) == 1
        monkeypatch.undo()
        await backend.upsert(world.documents[3:], world.embeddings[3:])
        assert await backend.count() == 5
        assert not (tmp_path / "new").exists()
        await backend.close()

    run(main)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m", "m3-test", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system here (needs root); the check itself is tested above")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_loses_nothing(small_disk: Path) -> None:
    process = start(
        """
        import itertools, json, time
        from m3_connectors.errors import StorageFull
        async def main():
            world = make_world(9, documents=60, dimension=256, most_rows=200)
            backend = EdgeBackend(directory, "c")
            await backend.create(world.schema)
            for n in itertools.count():
                documents = [dataclasses.replace(d, id=f"{n}-{i}") for i, d in enumerate(world.documents)]
                started = time.monotonic()
                try:
                    await backend.upsert(documents, world.embeddings)
                except StorageFull as error:
                    print(json.dumps(["upsert", "StorageFull", str(error), time.monotonic() - started]))
                    print(n, await backend.count())
                    await backend.close()
                    await backend.open()
                    print(n, await backend.count())
                    await backend.close()
                    return
        anyio.run(main)
        """,
        small_disk,
    )
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    saw, _, counts = printed.partition("\n")
    rounds, before, _, after = map(int, counts.split())
    case = Case("qdrant-edge", "full disk")
    case.saw(*json.loads(saw))
    case.record(lost=max(0, 60 * rounds - after), doubled=0)
    assert rounds >= 2
    assert before == after >= 60 * rounds


def test_optimize_changes_no_answer(tmp_path: Path) -> None:
    async def main() -> None:
        world = make_world(10, documents=400, most_rows=4)
        backend = await filled(tmp_path, world)
        gone = [document.id for document in world.documents[:150]]
        await backend.delete(gone)
        await backend.upsert(world.documents[:50], world.embeddings[:50])
        oracle = await oracle_of(world)
        await oracle.delete(gone[50:])
        await backend.optimize()
        for again in range(2):
            assert await backend.count() == 300
            for query in world.queries:
                await compare_search(backend, oracle, query, ALL, 20)
                approximate = await backend.candidates("dense", query, 40)
                scores = await oracle.score("dense", query, approximate.ids)
                assert abs(approximate.scores - scores).max() < 1e-5
            if not again:
                await backend.close()
                await backend.open()
        await backend.upsert(world.documents[100:110], world.embeddings[100:110])
        assert await backend.count() == 310
        await backend.close()

    run(main)


def test_optimize_gives_the_old_segments_back_at_once(tmp_path: Path) -> None:
    def size_bytes() -> int:
        return sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*") if path.is_file())

    async def main() -> None:
        backend = await filled(tmp_path, make_world(12, documents=1500, dimension=64, most_rows=60))
        await backend.optimize()
        optimized = size_bytes()
        await backend.close()
        assert optimized < 1.1 * size_bytes()

    run(main)


def test_documents_of_several_multivectors_at_full_width(tmp_path: Path) -> None:
    async def main() -> None:
        world = make_world(11, documents=3, queries=2, dimension=1024, most_rows=2600)
        assert world.embeddings.multivectors is not None
        assert (world.embeddings.multivectors.counts > 1023).sum() == 2
        backend = await filled(tmp_path, world)
        oracle = await oracle_of(world)
        for query in world.queries:
            await compare_search(backend, oracle, query, ALL, 3)
        ids = [document.id for document in world.documents]
        got, want = await backend.vectors(ids), await oracle.vectors(ids)
        assert got.multivectors is not None
        assert want.multivectors is not None
        assert (got.multivectors.rows == want.multivectors.rows).all()
        await backend.close()

    run(main)


def test_a_document_without_room_is_refused_before_writing(tmp_path: Path) -> None:
    async def main() -> None:
        world = make_world(
            12, documents=3, dimension=1024, most_rows=1500, storage=Storage(long_documents="error")
        )
        assert world.embeddings.multivectors is not None
        position = int((world.embeddings.multivectors.counts > 1023).argmax())
        backend = EdgeBackend(tmp_path, "c")
        await backend.create(world.schema)
        with pytest.raises(InvalidInput, match=rf"documents\[{position}\].*stores at most 1023"):
            await backend.upsert(world.documents, world.embeddings)
        assert await backend.count() == 0
        await backend.close()

    run(main)


def test_a_file_in_place_of_a_directory_is_said(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "file").write_text("")
        for directory in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(InvalidInput, match=r"file.* is not a directory\.\n  Use qdrant:DIRECTORY"):
                await EdgeBackend(directory, "c").create(make_world(0).schema)

    run(main)


if not hasattr(os, "fork"):  # pragma: no cover
    pytest.skip("these tests need fork and signals", allow_module_level=True)
