"""Collections that another program drops or replaces while the service has them open."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import httpx
import pytest
from qdrant_fake import FakeQdrant
from serving import PLUMS, Running, filled, serving
from stub_encoder import StubEncoder

from m3_connectors import connect
from m3_connectors.backends.schema import Storage
from m3_connectors.service import collections

FRUIT = "/v1/collections/fruit"


@pytest.fixture
def server() -> Iterator[FakeQdrant]:
    with FakeQdrant() as server:
        yield server


@pytest.fixture
def running(server: FakeQdrant) -> Iterator[Running]:
    with serving(StubEncoder(), server.url) as running:
        yield running


@pytest.fixture
def web(running: Running) -> Iterator[httpx.Client]:
    with filled(running) as web:
        yield web


def _drop(server: FakeQdrant) -> None:
    with connect(server.url, "fruit", encoder=StubEncoder()) as index:
        index.drop()


def test_a_dropped_collection_is_gone_and_can_be_created_again(server: FakeQdrant, web: httpx.Client) -> None:
    _drop(server)
    assert web.post(f"{FRUIT}/search", json={"query": "x"}).status_code == 404
    assert web.get("/readyz").status_code == 200  # the service itself is well
    assert web.get("/v1/collections").json() == {"collections": []}
    web.put(FRUIT, json={}).raise_for_status()
    web.post(f"{FRUIT}/documents", json={"documents": PLUMS}).raise_for_status()
    assert len(web.post(f"{FRUIT}/search", json={"query": "x"}).json()["hits"]) == 3


@pytest.mark.parametrize(
    ("path", "body"), [("documents", {"documents": PLUMS}), ("documents/delete", {"ids": ["1"]})]
)
def test_nothing_is_written_into_a_collection_of_another_model(
    server: FakeQdrant, web: httpx.Client, path: str, body: object
) -> None:
    _drop(server)
    other = StubEncoder()
    other.info = dataclasses.replace(other.info, name="other", weights_fingerprint="0" * 64)
    with connect(server.url, "fruit", encoder=other) as index:
        answer = web.post(f"{FRUIT}/{path}", json=body)
        assert (answer.status_code, answer.json()["title"]) == (409, "ModelMismatch")
        assert index.count() == 0


def test_a_search_finds_out_within_seconds(
    server: FakeQdrant, web: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    _drop(server)
    other = StubEncoder()
    other.info = dataclasses.replace(other.info, name="other", weights_fingerprint="0" * 64)
    with connect(server.url, "fruit", encoder=other):
        monkeypatch.setattr(collections, "_TRUSTED_SECONDS", 0.0)
        assert web.post(f"{FRUIT}/search", json={"query": "x"}).status_code == 409


def test_one_that_now_stores_less_is_opened_anew(
    server: FakeQdrant, web: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    _drop(server)
    with connect(server.url, "fruit", encoder=StubEncoder(), storage=Storage(components=("dense",))) as index:
        web.post(f"{FRUIT}/documents", json={"documents": PLUMS}).raise_for_status()
        assert index.count() == 3
    assert web.get(FRUIT).json()["components"] == ["dense"]
