"""``m3 doctor`` on servers: what it says of each, what is wrong and how to mend it, and never a secret."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from live_servers import own
from qdrant_fake import FakeQdrant

from m3_connectors.backends.capabilities import Capability
from m3_connectors.backends.elasticsearch.health import disk_remarks
from m3_connectors.backends.registry import backend_for
from m3_connectors.cli import doctor as doctors
from m3_connectors.cli.app import main
from m3_connectors.testing.faults import FaultProxy, Hang
from m3_connectors.testing.servers.start import Running
from m3_connectors.testing.worlds import make_world

COLLECTION = own("doctored")
WORLD = make_world(91, documents=4)


class Report:
    """What ``m3 doctor --json`` said of a store."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.json: dict[str, Any] = json.loads(out)

    def value(self, what: str) -> str:
        return next(str(one["value"]) for one in self.json["findings"] if one["what"] == what)

    def of(self, level: str) -> list[str]:
        # The model is another matter: nobody has that of a made-up world.
        return [
            f"{one['what']}: {one['value']} → {one['remedy']}"
            for one in self.json["findings"]
            if one["level"] == level and one["what"] != "model" and "not installed" not in one["value"]
        ]


Doctor = Callable[..., Report]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Doctor:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("M3_") and not name.endswith("_URL")]:
        monkeypatch.delenv(name)

    def run(url: str, collection: str = COLLECTION, **environment: str) -> Report:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code = main(["doctor", url, "-c", collection, "--json"])
        return Report(code, *capsys.readouterr())

    return run


@pytest.fixture
def fake() -> Iterator[FakeQdrant]:
    with FakeQdrant() as started:
        yield started


def fill(url: str, collection: str = COLLECTION, **options: Any) -> None:
    async def make() -> None:
        backend = backend_for(url, collection, options)
        await backend.create(WORLD.schema)
        await backend.upsert(WORLD.documents, WORLD.embeddings)
        await backend.close()

    anyio.run(make)


def drop(url: str, collection: str = COLLECTION) -> None:
    async def gone() -> None:
        backend = backend_for(url, collection)
        await backend.drop()
        await backend.close()

    anyio.run(gone)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.fixture(params=["qdrant", "milvus", "elasticsearch"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "qdrant":
        fake: FakeQdrant = request.getfixturevalue("fake")
        return fake.url
    running: Running = request.getfixturevalue(f"{request.param}_store")
    return running.url


def test_a_server_is_looked_at_before_and_after_there_is_a_collection(
    doctor: Doctor, url: str, request: pytest.FixtureRequest
) -> None:
    environment = {}
    if url.startswith("qdrant"):
        environment["M3_QDRANT_GRPC_PORT"] = str(request.getfixturevalue("fake").grpc_port)
    before = doctor(url, "nothing-there", **environment)
    assert before.of("problem") == []
    assert '"nothing-there" does not exist yet' in before.value("collection")
    store = url.partition("+")[0]
    assert before.value("store").startswith(f"{store} ")
    assert any(digit.isdigit() for digit in before.value("store"))
    assert "not encrypted" in before.value("transport")
    declared = before.json["capabilities"]
    assert declared == {one.name: one in backend_for(url).capabilities for one in Capability}
    assert True in declared.values()
    assert False in declared.values()

    try:
        fill(url, replicas=0) if store == "elasticsearch" else fill(url)
        after = doctor(url)
        assert after.value("collection") == f"{COLLECTION}, 4 documents"
        assert after.value("read back") == "one document with its vectors"
        assert WORLD.schema.model.name in after.value("written by")
        assert "float16" in after.value("components")
        assert after.of("problem") == []
    finally:
        drop(url)


def test_a_server_that_hangs_times_out(doctor: Doctor, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctors, "_TRY_SECONDS", 1.0)
    with FaultProxy(port_of(url)) as proxy:
        proxy.fault = Hang()
        started = time.monotonic()
        report = doctor(f"{url.rpartition(':')[0]}:{proxy.port}")
        assert time.monotonic() - started < 30
    (problem,) = report.of("problem")
    assert "TimedOut" in problem or "Unavailable" in problem
    assert report.code == 1


def test_a_wrong_port_names_what_to_do(doctor: Doctor, url: str) -> None:
    report = doctor(f"{url.rpartition(':')[0]}:1")
    (problem,) = report.of("problem")
    assert "Unavailable" in problem
    assert "Is the server up" in problem
    assert (report.code, report.json["capabilities"]) == (1, {})


def test_no_secret_is_shown(doctor: Doctor, url: str) -> None:
    store = url.partition("+")[0]
    secret = {f"M3_{store.upper()}_API_KEY": "hunter2"}
    port = port_of(url)
    for place in (f"{store}+https://127.0.0.1:{port}", f"{store}+https://127.0.0.1:1"):
        report = doctor(place, **secret)
        assert "hunter2" not in report.out + report.err
        assert report.code == 1


@pytest.mark.parametrize("password", ["hunter2", "hunter2/with?all#of@them"])
def test_a_password_in_a_url_is_redacted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    for store in ("elasticsearch+https", "elastic+https", "qdrant+https", "qdrant", "memory"):
        for command in (["doctor"], ["search", "--json"], ["index"]):
            call = [command[0], f"{store}://me:{password}@127.0.0.1:1", *command[1:]]
            main(call if command == ["doctor"] else [*call, "x"])
            said = capsys.readouterr()
            assert "hunter2" not in said.out + said.err, (store, command)


# -- what is wrong with a Qdrant


def test_a_qdrant_without_grpc_is_a_note(doctor: Doctor, fake: FakeQdrant) -> None:
    report = doctor(fake.url, M3_QDRANT_GRPC_PORT=str(fake.port))
    assert report.value("transport") == "REST, not encrypted"
    assert any("gRPC is not available at port" in note and "6334" in note for note in report.of("note"))
    assert report.of("problem") == []


def test_a_qdrant_that_is_too_old_is_a_problem(doctor: Doctor) -> None:
    with FakeQdrant(version="1.15.0") as fake:
        (problem,) = doctor(fake.url).of("problem")
    assert "1.15.0" in problem
    assert "1.16" in problem


def test_a_strict_qdrant_says_what_it_refuses(doctor: Doctor, fake: FakeQdrant) -> None:
    fill(fake.url, grpc_port=fake.grpc_port)
    fake.strict = {"unindexed_filtering_retrieve": False, "search_allow_exact": False}
    report = doctor(fake.url, M3_QDRANT_GRPC_PORT=str(fake.grpc_port))
    (problem,) = report.of("problem")
    assert "no field has one" in problem
    assert "indexes=" in problem
    assert any("search_allow_exact" in note for note in report.of("note"))
    assert report.json["capabilities"]["EXACT"] is False
    assert report.code == 1


def test_another_programs_collection_is_a_problem(doctor: Doctor, fake: FakeQdrant) -> None:
    from qdrant_client import models

    fake.engine.create_collection(COLLECTION, models.VectorParams(size=4, distance=models.Distance.DOT))
    (problem,) = doctor(fake.url, M3_QDRANT_GRPC_PORT=str(fake.grpc_port)).of("problem")
    assert problem.startswith("collection: Rejected")


def test_a_key_that_is_refused_is_a_problem(doctor: Doctor) -> None:
    with FakeQdrant(api_key="right") as fake:
        (problem,) = doctor(fake.url, M3_QDRANT_GRPC_PORT=str(fake.grpc_port)).of("problem")
    assert "Unauthorised" in problem
    assert "M3_QDRANT_API_KEY" in problem


# -- what is wrong with an Elasticsearch


@pytest.fixture
def elastic(elasticsearch_store: Running) -> Iterator[str]:
    url = elasticsearch_store.url
    try:
        fill(url, replicas=1)
        yield url
        put(url, {"index.blocks.write": None, "index.blocks.read_only_allow_delete": None})
    finally:
        drop(url)


def put(url: str, settings: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"{url.partition('+')[2]}/{COLLECTION}/_settings",
        json.dumps(settings).encode(),
        {"Content-Type": "application/json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def test_elasticsearch_says_licence_health_and_modules(doctor: Doctor, elastic: str) -> None:
    report = doctor(elastic)
    assert report.value("licence").endswith(", active")
    assert report.value("scoring in the server")
    assert report.value("index") == f"{COLLECTION}@1: yellow, 1 shards, 1 replicas"
    (note,) = [note for note in report.of("note") if "yellow" in note]
    assert "number_of_replicas" in note
    assert report.of("problem") == []


@pytest.mark.parametrize("block", ["write", "read_only_allow_delete"])
def test_a_blocked_index_is_a_problem_with_the_request_that_lifts_it(
    doctor: Doctor, elastic: str, block: str
) -> None:
    put(elastic, {f"index.blocks.{block}": True})
    (problem,) = doctor(elastic).of("problem")
    assert f"index.blocks.{block}" in problem
    assert f'PUT /{COLLECTION}/_settings {{"index.blocks.{block}": null}}' in problem


@pytest.mark.parametrize(
    ("free", "marks", "said"),
    [
        (300, {}, None),
        (140, {}, "low watermark"),
        (90, {}, "high watermark"),
        (40, {}, "flood-stage watermark"),
        (40, {"flood_stage": "10gb", "high": "20gb", "low": "0.9"}, "low watermark"),
        (140, {"low.max_headroom": "100GB"}, None),
        (0, {"threshold_enabled": "false"}, None),
    ],
)
def test_disks_beyond_a_watermark_are_named(free: int, marks: dict[str, str], said: str | None) -> None:
    defaults = {"low": "85%", "high": "90%", "flood_stage": "95%", "low.max_headroom": "200GB"}
    enabled = {"threshold_enabled": marks.pop("threshold_enabled", "true")}
    disk = {"cluster": {"routing": {"allocation": {"disk": {"watermark": defaults, **enabled}}}}}
    own = {"cluster": {"routing": {"allocation": {"disk": {"watermark": marks}}}}}
    total = {"total_in_bytes": 1000 * 2**30, "available_in_bytes": free * 2**30}
    nodes = {"nodes": {"x": {"name": "one", "fs": {"total": total}}}}
    remarks = list(disk_remarks({"defaults": disk, "persistent": own}, nodes))
    assert [said in remark.what for remark in remarks] == ([True] if said else [])
    assert all(remark.is_problem == (said != "low watermark") for remark in remarks)
