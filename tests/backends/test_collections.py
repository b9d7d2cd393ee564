"""What a store holds: ``list_collections`` on every store, and ``m3 collections``, ``m3 get`` and ``m3 delete``."""

from __future__ import annotations

import json
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any

import anyio
import pytest
import qdrant_edge as engine
import typer
from qdrant_client import QdrantClient, models
from qdrant_fake import FakeQdrant

from m3_connectors import CollectionInfo, alist_collections, connect, list_collections
from m3_connectors.backends.base import Storage
from m3_connectors.backends.registry import backend_for
from m3_connectors.cli.app import main
from m3_connectors.errors import Busy, InvalidInput, NotFound, Unsupported
from m3_connectors.testing.servers.start import Running
from m3_connectors.testing.worlds import make_world

WORLD = make_world(71, documents=5)
OTHER = make_world(72, documents=3, components=("dense", "sparse"), storage=Storage(long_documents="error"))
TAG = uuid.uuid4().hex[:12]
NAMES = [f"Notes-{TAG}", f"a.b_{TAG}"]
FOREIGN = f"foreign_{TAG}"


class Store:
    """A store, and how another program makes a collection there and removes it."""

    def __init__(self, url: str, options: Any, make: Callable[[], None], remove: Callable[[], None]) -> None:
        self.url, self.options, self.make, self.remove = url, dict(options), make, remove


LIVE = [pytest.param(name, marks=pytest.mark.live) for name in ("milvus", "elasticsearch", "qdrant")]


@pytest.fixture(params=["edge", "milvus-embedded", "qdrant-stand-in", *LIVE])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    name = request.param
    if name == "edge":
        yield Store(
            f"qdrant:{tmp_path}", {}, lambda: _edge(tmp_path / FOREIGN), lambda: rmtree(tmp_path / FOREIGN)
        )
    elif name == "qdrant-stand-in":
        with FakeQdrant() as fake:
            yield _qdrant(fake.url, {"grpc_port": fake.grpc_port})
    elif name == "milvus-embedded":
        yield Store(f"milvus:{tmp_path}/data.db", {}, lambda: None, lambda: None)
    else:
        running: Running = request.getfixturevalue(f"{name}_store")
        if name == "qdrant":
            yield _qdrant(running.url, running.options)
        elif name == "milvus":
            yield _milvus(running)
        else:
            yield _elasticsearch(running)


def _edge(directory: Path) -> None:
    directory.mkdir()
    vectors = {"v": engine.EdgeVectorParams(4, engine.Distance.Dot)}
    engine.EdgeShard.create(str(directory), engine.EdgeConfig(vectors)).close()


def _qdrant(url: str, options: Any) -> Store:
    client = QdrantClient(url=url.removeprefix("qdrant+"), check_compatibility=False)
    vectors = models.VectorParams(size=4, distance=models.Distance.DOT)
    return Store(
        url,
        options,
        lambda: client.create_collection(FOREIGN, vectors_config=vectors) and None,
        lambda: client.delete_collection(FOREIGN) and None,
    )


def _milvus(running: Running) -> Store:
    from pymilvus import MilvusClient

    client = MilvusClient(running.url.removeprefix("milvus+"), dedicated=True)
    return Store(
        running.url,
        running.options,
        lambda: client.create_collection(FOREIGN, dimension=4),
        lambda: client.drop_collection(FOREIGN),
    )


def _elasticsearch(running: Running) -> Store:
    base = running.url.removeprefix("elasticsearch+")

    def ask(method: str) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{base}/{FOREIGN}", method=method)).close()

    return Store(running.url, running.options, lambda: ask("PUT"), lambda: ask("DELETE"))


def test_every_store_lists_what_it_holds(store: Store) -> None:
    async def fill() -> None:
        for name, world in zip(NAMES, (WORLD, OTHER), strict=True):
            backend = backend_for(store.url, name, store.options)
            await backend.create(world.schema)
            await backend.upsert(world.documents, world.embeddings)
            await backend.close()

    async def drop() -> None:
        for name in NAMES:
            backend = backend_for(store.url, name, store.options)
            await backend.drop()
            await backend.close()

    anyio.run(fill)
    store.make()
    try:
        found = {one.name: one for one in list_collections(store.url, **store.options)}
        assert list(found) == sorted(found)
        assert found[NAMES[0]] == CollectionInfo(NAMES[0], WORLD.schema, 5)
        assert found[NAMES[1]] == CollectionInfo(NAMES[1], OTHER.schema, 3)
        ours = {name for name, one in found.items() if one.is_ours and TAG in name}
        assert ours == set(NAMES)  # neither parts of long documents nor indices behind an alias
        if FOREIGN in found:
            assert found[FOREIGN].problem == "made by another program"
            assert found[FOREIGN].schema is found[FOREIGN].count is None
        assert (FOREIGN in found) == ("data.db" not in store.url)  # milvus-lite in this process: only ours
    finally:
        anyio.run(drop)
        store.remove()
    after = {one.name for one in anyio.run(lambda: alist_collections(store.url, **store.options))}
    assert not [name for name in after if TAG in name]


def test_a_store_that_is_not_there_is_no_empty_store(tmp_path: Path) -> None:
    for url in (f"qdrant:{tmp_path}/typo", f"milvus:{tmp_path}/typo.db"):
        with pytest.raises(NotFound, match="typo"):
            list_collections(url)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for call in (list_collections, lambda url: connect(url, create=False)):
        with pytest.raises(InvalidInput, match=r"is not a directory\.\n  Use qdrant:DIRECTORY"):
            call(f"qdrant:{tmp_path}/file")
    assert list_collections("memory:") == []
    with pytest.raises(Unsupported, match="api_key"):
        list_collections(f"qdrant:{tmp_path}", api_key="secret")


def test_collections_that_cannot_be_opened_or_read_are_listed_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "m3.json").write_text("{")
    (tmp_path / "pictures").mkdir()  # neither a collection nor a shard
    (tmp_path / ".hidden").mkdir()

    async def main() -> None:
        backend = backend_for(f"qdrant:{tmp_path}", "held")
        await backend.create(WORLD.schema)
        broken, held = await alist_collections(f"qdrant:{tmp_path}")
        assert (broken.name, broken.schema, broken.count, broken.is_ours) == ("broken", None, None, True)
        assert broken.problem is not None
        assert "cannot be read" in broken.problem
        assert (held.schema, held.count) == (WORLD.schema, None)
        assert held.problem is not None
        assert f'this process has already opened collection "held" in {tmp_path}' in held.problem
        await backend.close()
        assert (await alist_collections(f"qdrant:{tmp_path}"))[1].count == 0

    anyio.run(main)


# -- the command line


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)

    async def fill() -> None:
        backend = backend_for("qdrant:./data", "documents")
        await backend.create(WORLD.schema)
        await backend.upsert(WORLD.documents, WORLD.embeddings)
        await backend.close()

    anyio.run(fill)
    return "qdrant:./data"


IDS = [document.id for document in WORLD.documents]


def test_m3_collections(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    _edge(Path("data/shard-of-others"))
    assert main(["collections", filled]) == 0
    out = capsys.readouterr().out
    assert " documents           5  worlds/random (24 dims)" in out
    assert "float16, long documents: split" in out
    assert "and 1 collection of other programs: shard-of-others" in out
    assert main(["collections", filled, "--json"]) == 0
    ours, other = json.loads(capsys.readouterr().out)["collections"]
    assert (ours["name"], ours["documents"], ours["made_by_m3"], ours["problem"]) == (
        "documents",
        5,
        True,
        None,
    )
    assert ours["components"] == ["dense", "sparse", "multivector"]
    assert ours["storage"]["multivector_dtype"] == "float16"
    assert (other["documents"], other["made_by_m3"]) == (None, False)
    assert main(["collections", "memory:"]) == 0
    assert "no collection of m3-connectors" in capsys.readouterr().out
    assert main(["collections", "qdrant:./typo"]) == 1
    assert "there is no directory typo" in capsys.readouterr().err
    assert not Path("typo").exists()


def test_m3_get(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [IDS[2], IDS[0]]
    assert main(["get", filled, "--json", "--", *asked]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == asked
    by_id = {document.id: document for document in WORLD.documents}
    for line in lines:
        assert (line["text"], line["metadata"]) == (by_id[line["id"]].text, dict(by_id[line["id"]].metadata))
    assert main(["get", filled, "--", IDS[0], "not there", "nor this", "not there"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(IDS[0])
    assert captured.err.splitlines() == [
        "document 'not there' does not exist",
        "document 'nor this' does not exist",
    ]
    assert main(["get", filled, "a", "-c", "other"]) == 1
    assert "m3 index qdrant:./data SOURCE -c other" in capsys.readouterr().err
    assert main(["get", filled, "x" * 600]) == 2
    assert main(["get", filled]) == 2


def test_m3_delete_by_id(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["delete", filled, "--", IDS[0], IDS[1], "not there", IDS[0]]) == 0
    captured = capsys.readouterr()
    assert captured.out == "  2 documents deleted\n"
    assert "1 id not found" in captured.err
    assert main(["delete", filled, "--json", "--", IDS[0], IDS[2]]) == 0
    assert json.loads(capsys.readouterr().out) == {"deleted": 1}
    assert {one.count for one in list_collections(filled)} == {2}


def test_m3_delete_by_filter_asks_and_never_takes_everything_by_accident(
    filled: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = next(raw for raw in WORLD.filters if 0 < len(WORLD.passing(raw)) < 5)
    passing, filter = len(WORLD.passing(raw)), json.dumps(raw)

    def count() -> int | None:
        return list_collections(filled)[0].count

    for wrong in ([], ["--filter", "{}"], ["--filter", "{}", "--yes"], ["a", "--filter", filter], ["--yes"]):
        assert main(["delete", filled, *wrong]) == 2
    assert count() == 5
    capsys.readouterr()
    assert main(["delete", filled, "--filter", filter]) == 2  # nobody is there to be asked
    assert "add --yes" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert count() == 5
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    asked: list[str] = []
    for answer in (False, True):

        def confirm(question: str, answer: bool = answer, **_: Any) -> bool:
            asked.append(question)
            if not answer:
                raise typer.Abort
            return True

        monkeypatch.setattr(typer, "confirm", confirm)
        assert main(["delete", filled, "--filter", filter]) == (0 if answer else 1)
        assert count() == (5 - passing if answer else 5)
    assert asked[0].startswith(f"Delete {passing} document")
    assert 'of collection "documents"?' in asked[0]
    capsys.readouterr()
    assert main(["delete", filled, "--filter", filter, "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"deleted": 0}


def test_doctor_lists_collections(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    _edge(Path("data/shard-of-others"))
    Path("data/broken").mkdir()
    Path("data/broken/m3.json").write_text("{")
    assert main(["doctor", filled, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    listed = [(one["value"], one["level"]) for one in found if one["what"] == "collections"]
    assert listed[0] == ("broken, documents (and 1 of other programs)", "ok")
    assert listed[1][0].startswith("broken: its record cannot be read")
    assert listed[1][1] == "problem"


def test_a_second_worker_is_told_which_collection_is_busy_and_what_to_use_instead(tmp_path: Path) -> None:
    async def main() -> None:
        first = backend_for(f"qdrant:{tmp_path}", "notes")
        await first.create(WORLD.schema)
        (tmp_path / ".other.lock").touch()
        with pytest.raises(Busy) as caught:
            await backend_for(f"qdrant:{tmp_path}", "notes").open()
        assert f'has already opened collection "notes" in {tmp_path}.' in str(caught.value)
        await first.close()

    anyio.run(main)
