"""The Milvus adapter on the real milvus-lite, embedded and as a server."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from embedded_milvus import embedded, filled
from live_servers import own
from pymilvus import DataType, MilvusClient

from m3_connectors.backends.base import Backend, Storage
from m3_connectors.backends.milvus import lite
from m3_connectors.backends.milvus.backend import MilvusBackend
from m3_connectors.backends.milvus.naming import stored_name
from m3_connectors.backends.precision import FLOAT16, INT8, Precision
from m3_connectors.backends.registry import backend_for
from m3_connectors.documents import Document
from m3_connectors.errors import (
    AlreadyExists,
    Busy,
    Corrupt,
    InvalidInput,
    NotFound,
    Rejected,
    Unsupported,
)
from m3_connectors.methods import ALL, DENSE, METHODS, SPARSE
from m3_connectors.scoring import score
from m3_connectors.search import Candidates, Lists
from m3_connectors.testing.agreement import compare_search, oracle_of
from m3_connectors.testing.conformance import BackendConformance, runs
from m3_connectors.testing.servers.start import Running
from m3_connectors.testing.worlds import join, make_world, unit_rows


class TestEmbedded(BackendConformance):
    def make_backend(self, directory: Path, collection: str) -> Backend:
        return embedded(directory, collection)


class TestServer(BackendConformance):
    worlds = 3

    @pytest.fixture(autouse=True)
    def _server(self, milvus_store: Running) -> None:
        self.url = milvus_store.url

    def make_backend(self, directory: Path, collection: str) -> Backend:
        return backend_for(self.url, own(f"{collection}-{directory.name}"[:200]))


# -- what is this adapter's own


@pytest.mark.parametrize("index", ["HNSW", "FLAT"])
@runs
async def test_an_exact_search_looks_at_every_vector_whatever_the_index(tmp_path: Path, index: str) -> None:
    world = make_world(31, documents=300, most_rows=3)
    oracle = await oracle_of(world)
    backend = await filled(embedded(tmp_path, index=index), world)
    for query in world.queries:
        for limit in (1, 7, 250):
            true = await oracle.candidates("dense", query, limit, exact=True)
            found = await backend.candidates("dense", query, limit, exact=True)
            assert list(found.ids) == list(true.ids)
            np.testing.assert_allclose(found.scores, true.scores, atol=1e-6)
            near = await backend.candidates("dense", query, limit)
            again = await oracle.score("dense", query, near.ids)
            np.testing.assert_allclose(near.scores, again, atol=1e-6)
    await backend.close()


@pytest.mark.parametrize("precision", [FLOAT16, INT8], ids=lambda precision: precision.name)
@runs
async def test_a_long_document_lies_in_parts_and_leaves_none_behind(
    tmp_path: Path, precision: Precision
) -> None:
    world = make_world(32, documents=6, dimension=64, most_rows=4, storage=Storage(precision.name))
    rng = np.random.default_rng(32)
    long = unit_rows(rng.normal(size=(4_000, 64)))
    embeddings = join(
        [(world.embeddings.dense[i], {3: 0.5}, long if i < 2 else long[:3]) for i in range(6)],  # type: ignore[index]
        world.schema.model,
    )
    backend = embedded(tmp_path, max_row_bytes=2**18)
    await backend.create(world.schema)
    parts = backend._reads.layout.parts_name

    async def parts_stored() -> int:
        rows = await backend._reads._connection.call(
            "count", "query", parts, filter='key != ""', output_fields=["key"]
        )
        return len(rows)

    await backend.upsert(world.documents, embeddings)
    stored = await parts_stored()
    assert stored >= 4
    ids = [document.id for document in world.documents]
    query = world.queries[0]
    true = score("multivector", precision.rounded_query(query), precision.rounded(embeddings))
    np.testing.assert_allclose(await backend.score("multivector", query, ids), true, atol=1e-5)
    back = await backend.vectors([ids[1], ids[0]])
    assert back.multivectors is not None
    np.testing.assert_array_equal(back.multivectors[0], precision.rounded(embeddings).multivectors[1])

    await backend.upsert(world.documents, embeddings)
    assert await parts_stored() == stored
    await backend.upsert(world.documents[:1], embeddings[2])
    assert 0 < await parts_stored() < stored
    assert await backend.delete(ids) == 6
    assert await parts_stored() == 0
    await backend.close()


@runs
async def test_what_fits_no_row_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    world = make_world(33, documents=3, dimension=64)
    schema = dataclasses.replace(world.schema, storage=Storage(long_documents="error"))
    many_rows = unit_rows(np.ones((3_000, 64)))
    dense = world.embeddings.dense
    assert dense is not None
    long = join([(dense[i], {}, many_rows if i == 2 else many_rows[:2]) for i in range(3)], schema.model)
    backend = embedded(tmp_path, max_row_bytes=2**17)
    await backend.create(schema)
    with pytest.raises(InvalidInput, match=r"3000 rows(.|\n)*split"):
        await backend.upsert(world.documents, long)
    big_text = [*world.documents[:2], Document("big", "x" * 2**17)]
    with pytest.raises(InvalidInput, match=r"'big'.*max_row_bytes"):
        await backend.upsert(big_text, world.embeddings)
    many_values = [*world.documents[:2], Document("many", "", {"list": list(range(5_000))})]
    with pytest.raises(InvalidInput, match=r"'many'.*5002 filterable values"):
        await backend.upsert(many_values, world.embeddings)
    many_fields = [*world.documents[:2], Document("wide", "", {f"field {i}": i for i in range(1_000)})]
    with pytest.raises(InvalidInput, match=r"'wide'.*numbers or dates in 1000 fields"):
        await backend.upsert(many_fields, world.embeddings)
    assert await backend.count() == 0
    await backend.close()


@runs
async def test_texts_beyond_one_element_come_back(tmp_path: Path) -> None:
    world = make_world(34, documents=2)
    texts = ["é" * 70_000 + "文" * 50_000, "x" * 65_535]
    documents = [Document(f"{i}", text, {"also": text}) for i, text in enumerate(texts)]
    backend = embedded(tmp_path)
    await backend.create(world.schema)
    await backend.upsert(documents, world.embeddings)
    assert await backend.fetch(["1", "0"]) == documents[::-1]
    await backend.close()


@runs
async def test_two_connections_of_one_process_share_the_engine_and_the_last_frees_it(tmp_path: Path) -> None:
    world = make_world(35, documents=5)
    first = await filled(embedded(tmp_path, "one"), world)
    second = await filled(embedded(tmp_path, "two"), world)
    await first.close()
    assert await second.count() == 5
    with pytest.raises(Busy, match="another process"):
        await _open_elsewhere(tmp_path)
    await second.close()
    assert await _open_elsewhere(tmp_path) == 5


async def _open_elsewhere(directory: Path) -> int:
    """Count the collection "two" in another process."""
    code = (
        "import anyio, sys\n"
        "from m3_connectors.backends.milvus.backend import MilvusBackend\n"
        "async def main():\n"
        f"    backend = MilvusBackend.from_url('milvus:{directory}/data.db', 'two', {{}})\n"
        "    await backend.open()\n"
        "    print(await backend.count())\n"
        "    await backend.close()\n"
        "anyio.run(main)\n"
    )
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    )
    if done.returncode:
        assert "errors.Busy" in done.stderr, done.stderr
        raise Busy(done.stderr.strip().splitlines()[-2], backend="milvus", operation="open")
    return int(done.stdout)


@runs
async def test_a_killed_process_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    code = (
        "import anyio, os, dataclasses\n"
        "from m3_connectors.backends.milvus.backend import MilvusBackend\n"
        "from m3_connectors.testing.worlds import make_world\n"
        "async def main():\n"
        "    world = make_world(36, documents=40)\n"
        f"    backend = MilvusBackend.from_url('milvus:{tmp_path}/data.db', 'notes', {{}})\n"
        "    await backend.create(world.schema)\n"
        "    for i in range(0, 40, 4):\n"
        "        await backend.upsert(world.documents[i:i + 4], world.embeddings[i:i + 4])\n"
        "        print(i + 4, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "anyio.run(main)\n"
    )
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    )
    assert done.returncode == -9, done.stderr
    world = make_world(36, documents=40)
    backend = embedded(tmp_path)
    await backend.open()
    assert await backend.count() == 40 == int(done.stdout.split()[-1])
    oracle = await oracle_of(world)
    await compare_search(backend, oracle, world.queries[0], ALL, 40)
    await backend.close()


@pytest.mark.parametrize("version", ["3.2.1", "3.0", "2.5.1", "milvus_lite-3.1.1"])
def test_an_older_lite_is_refused_with_the_reason(version: str) -> None:
    with pytest.raises(Unsupported, match=r"sparse vectors incorrectly(.|\n)*milvus-lite>=3\.2\.2"):
        lite.check_version(version)
    lite.check_version("milvus_lite-3.2.2")
    lite.check_version("3.10")


@runs
async def test_an_older_lite_is_refused_at_connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite, "installed", lambda: "3.2.1")
    backend = embedded(tmp_path)
    with pytest.raises(Unsupported):
        await backend.create(make_world(1).schema)
    await backend.close()
    assert not (tmp_path / "data.db").exists()


@runs
async def test_an_older_lite_behind_a_server_is_refused(
    milvus_store: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MilvusClient, "get_server_version", lambda self, **_: "milvus_lite-3.1.1")
    backend = backend_for(milvus_store.url, "notes")
    with pytest.raises(Unsupported):
        await backend.open()
    await backend.close()


def test_collection_names_that_milvus_does_not_take_never_meet() -> None:
    names = ["a", "A", "a_b", "a-b", "a.b", "1a", "a_b-c", "a-b_c", "a.b-c", "x" * 200, "9"]
    stored = [stored_name(name) for name in names]
    assert len(set(stored)) == len(names)
    assert stored[:3] == ["a", "A", "a_b"]
    for name in stored:
        assert name[0].isalpha()
        assert name.replace("_", "a").isalnum()
        assert len(name) <= 240


@runs
async def test_a_collection_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    engine = lite.acquire(tmp_path / "data.db")
    client = MilvusClient(engine.uri, dedicated=True)
    client.create_collection("notes", dimension=8)
    world = make_world(37, documents=3)
    await filled(embedded(tmp_path, "ours"), world)
    fields = MilvusClient.create_schema(auto_id=False)
    fields.add_field("key", DataType.VARCHAR, max_length=64, is_primary=True)
    fields.add_field("dense", DataType.FLOAT_VECTOR, dim=24)
    properties = client.describe_collection("ours")["properties"]
    client.create_collection("ours_less", schema=fields, properties=properties)
    record = json.loads(properties["m3_connectors.schema"])
    properties = {"m3_connectors.schema": json.dumps({**record, "collection": "less"})}
    client.create_collection("less", schema=fields, properties=properties)

    cases = (
        ("notes", Rejected, "not created by"),
        ("ours_less", Rejected, '"ours"'),
        ("less", Corrupt, "lacks metadata"),
    )
    for name, kind, reason in cases:
        backend = embedded(tmp_path, name)
        with pytest.raises(kind, match=reason):
            await backend.open()
        if kind is Rejected:
            with pytest.raises(Rejected, match=reason):
                await backend.drop()
        else:
            await backend.drop()
        await backend.close()
    assert set(client.list_collections()) == {"notes", "ours", "ours__m3_parts", "ours_less"}
    client.close()
    lite.release(engine)


@runs
async def test_creations_at_the_same_time_have_one_winner_and_it_keeps_what_it_wrote(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    world = make_world(39)
    backends = [embedded(tmp_path) for _ in range(3)]
    outcomes: list[str] = []

    async def create(backend: MilvusBackend) -> None:
        try:
            await backend.create(world.schema)
            outcomes.append("created")
        except AlreadyExists:
            outcomes.append("there")
            await backend.open()

    async with anyio.create_task_group() as group:
        for backend in backends:
            group.start_soon(create, backend)
    assert sorted(outcomes) == ["created", "there", "there"]
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())
    await backends[0].upsert(world.documents, world.embeddings)
    for backend in backends:
        assert await backend.count() == len(world.documents)
        await backend.close()


@runs
async def test_a_creation_that_comes_late_leaves_the_parts_of_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(40, documents=1, dimension=64)
    long = unit_rows(np.random.default_rng(40).normal(size=(4_000, 64)))
    embeddings = join([(unit_rows(np.ones((1, 64)))[0], {3: 0.5}, long)], world.schema.model)
    first, late = embedded(tmp_path, max_row_bytes=2**18), embedded(tmp_path, max_row_bytes=2**18)
    await first.create(world.schema)
    await first.upsert(world.documents, embeddings)
    with monkeypatch.context() as patched:
        # It asked before the first one made it.
        patched.setattr(MilvusClient, "has_collection", lambda *arguments, **options: False)
        with pytest.raises(AlreadyExists):
            await late.create(world.schema)
    back = await first.vectors([world.documents[0].id])
    assert back.multivectors is not None
    assert len(back.multivectors[0]) == 4_000
    await first.close()
    await late.close()


@runs
async def test_an_interrupted_creation_is_mended_by_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(38)
    backend = embedded(tmp_path)

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MilvusClient, "create_index", interrupted)
        with pytest.raises(KeyboardInterrupt):
            await backend.create(world.schema)
    assert await backend.open() == world.schema
    await backend.upsert(world.documents, world.embeddings)
    await compare_search(backend, await oracle_of(world), world.queries[0], METHODS["dense_sparse"], 20)
    await backend.close()


@runs
async def test_a_candidate_deleted_in_between_is_no_error(tmp_path: Path) -> None:
    world = make_world(39)
    backend = await filled(embedded(tmp_path), world)
    lists, query = backend.lists, world.queries[0]
    gone: list[str] = []

    async def lists_then_deletion(ask: Lists) -> Candidates:
        found = await lists(ask)
        if not gone:
            gone.append((await backend.ids(found))[0])
            await backend.delete(gone)
        return found

    backend.lists = lists_then_deletion  # type: ignore[method-assign]
    hits = await backend.search(query, ALL, 10)
    assert len(hits) == 10
    assert gone[0] not in {hit.id for hit in hits}
    with pytest.raises(NotFound):
        await backend.score("dense", query, gone)
    await backend.close()


@runs
async def test_hits_come_whole_and_the_head_of_a_list_in_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(40, documents=60)
    backend = await filled(embedded(tmp_path), world)
    connection = backend._connected
    assert connection is not None
    asked: list[str] = []
    call = connection.call

    async def counted(operation: str, method: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(method)
        return await call(operation, method, *args, **kwargs)

    monkeypatch.setattr(connection, "call", counted)
    for method in METHODS.values():
        asked.clear()
        hits = await backend.search(world.queries[0], method, 3)
        assert len(hits) == 3
        if method in (DENSE, SPARSE):
            assert asked == ["search"]
        assert [hit.document for hit in hits] == await backend.fetch([hit.id for hit in hits])
        assert all(None not in (hit.scores.dense, hit.scores.sparse, hit.scores.multivector) for hit in hits)
    await backend.close()


@runs
async def test_the_server_says_what_it_is(tmp_path: Path, milvus_store: Running) -> None:
    backend = embedded(tmp_path)
    assert (await backend.server()).details["engine"] == "milvus-lite, no data yet"
    assert not (tmp_path / "data.db").exists()
    await backend.create(make_world(1).schema)
    here = await backend.server()
    assert here.url == str(tmp_path / "data.db")
    assert here.version is not None
    assert here.version.startswith("milvus_lite-3.")
    assert here.details["engine"] == "milvus-lite in this process"
    await backend.close()
    there = backend_for(milvus_store.url, "notes")
    assert isinstance(there, MilvusBackend)
    assert (await there.server()).url in milvus_store.url
    await there.close()


@runs
async def test_a_database_of_a_second_start_is_read_without_the_first(tmp_path: Path) -> None:
    """The engine is released by close: opening again costs well under a second, and no lock is in the way."""
    world = make_world(40)
    backend = await filled(embedded(tmp_path), world)
    for _ in range(3):
        await backend.close()
        started = time.monotonic()
        await backend.open()
        assert time.monotonic() - started < 10
        assert await backend.count() == len(world.documents)
    await backend.close()


@pytest.mark.parametrize(
    ("url", "options", "reason"),
    [
        ("milvus:", {}, "does not name a data directory"),
        ("milvus://host:19530", {}, r"milvus\+http://host:19530"),
        ("milvus+http://h", {"indx": "HNSW"}, "'indx' is not an option of "),
        ("milvus:./x.db", {"index": "IVF"}, "index is 'IVF'"),
        ("milvus:./x.db", {"max_row_bytes": 10}, "max_row_bytes is 10"),
        ("milvus:./x.db", {"batch_bytes": True}, "batch_bytes is True"),
        ("milvus+http://h:99999999", {}, "port"),
    ],
)
def test_unusable_urls_and_options_are_refused(url: str, options: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        backend_for(url, "notes", options)


@runs
async def test_secrets_are_in_no_error(tmp_path: Path) -> None:
    fast = {"timeout_seconds": 1.0, "attempts": 1}
    backend = backend_for("milvus+http://user:hunter2@127.0.0.1:1", "notes", fast)
    with pytest.raises(Exception, match="no connection") as caught:
        await backend.open()
    assert "hunter2" not in f"{caught.value!r} {caught.value} {backend!r} {vars(backend)}"
    await backend.close()
    with pytest.raises(InvalidInput, match=r"no\.pem"):
        backend_for("milvus+https://127.0.0.1:1", "notes", {**fast, "ca_certs": str(tmp_path / "no.pem")})
    with pytest.raises(InvalidInput, match="does not name a directory") as caught:
        backend_for("milvus://root:hunter2@db.example:19530", "notes")
    assert "hunter2" not in f"{caught.value!r} {caught.value}"
