"""Capabilities in both directions: what a store declares it takes, what it does not it refuses by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from qdrant_fake import FakeQdrant

from m3_connectors.backends.__main__ import EXAMPLES, with_table
from m3_connectors.backends.base import Backend
from m3_connectors.backends.capabilities import Capability
from m3_connectors.backends.endpoint import Endpoint
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.backends.registry import backend_for
from m3_connectors.errors import InvalidInput, Unsupported
from m3_connectors.methods import ALL
from m3_connectors.testing.conformance import BackendConformance, runs
from m3_connectors.testing.worlds import make_world

DOCS = Path(__file__).parents[2] / "docs" / "servers.md"

OPTIONS: dict[Capability, dict[str, Any]] = {
    Capability.KEY: {"api_key": "k", "allow_unencrypted_key": True},
    Capability.PASSWORD: {"username": "u", "password": "p"},
    Capability.AUTHORITY: {"ca_certs": None},  # a file of the test's own
    Capability.FINGERPRINT: {"fingerprint": "ab" * 32},
    Capability.UNVERIFIED: {"verify": False},
    Capability.DEADLINES: {"timeout_seconds": 5.0, "attempts": 2, "total_seconds": 9.0},
    Capability.REFRESH: {"refresh": False},
    Capability.SHARDS: {"shards": 2},
    Capability.REPLICAS: {"replicas": 0},
    Capability.FIELD_INDEXES: {"indexes": {"year": "number"}},
    Capability.DENSE_INDEX: {"index": "FLAT"},
}
"""Options that ask for a capability; the others are asked for by calls."""

URLS = [url.replace("+http:", "+https:") for url in EXAMPLES.values()]


@pytest.fixture
def authority(tmp_path: Path) -> str:
    trustme = pytest.importorskip("trustme")
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return str(path)


@pytest.mark.parametrize("asked", OPTIONS, ids=lambda asked: asked.name)
@pytest.mark.parametrize("url", URLS)
def test_an_option_is_taken_where_it_is_declared_and_refused_by_name_elsewhere(
    url: str, asked: Capability, authority: str
) -> None:
    options = {name: authority if name == "ca_certs" else value for name, value in OPTIONS[asked].items()}
    if asked in backend_for(url).capabilities:
        assert backend_for(url, "notes", options).collection == "notes"
        return
    with pytest.raises(Unsupported, match=f"capability {asked.name}") as refused:
        backend_for(url, "notes", options)
    assert asked.value.instead in str(refused.value).splitlines()[1]
    # What works instead: without the option.
    assert backend_for(url, "notes").collection == "notes"


def test_every_capability_is_asked_for_by_a_tested_option_or_call() -> None:
    assert set(OPTIONS) | {Capability.PERSISTENT, Capability.EXACT, Capability.COMPACT} == set(Capability)
    for one, options in OPTIONS.items():
        assert set(options) == set(one.value.options)
        assert one in backend_for(next(u for u in URLS if one in backend_for(u).capabilities)).capabilities


def test_what_is_declared_is_held_by_tests_of_the_suite() -> None:
    clauses = [name for name in dir(BackendConformance) if name.startswith("test_")]
    for one in (Capability.PERSISTENT, Capability.EXACT, Capability.COMPACT):
        assert one.clauses
    for clause in (clause for one in Capability for clause in one.clauses):
        assert any(name.startswith(f"test_{clause}_") for name in clauses), clause


def test_a_memory_that_is_to_keep_its_data_is_refused() -> None:
    with pytest.raises(Unsupported, match="PERSISTENT") as refused:
        backend_for("memory:./data")
    assert "qdrant:DIRECTORY" in str(refused.value)


def test_an_option_that_no_store_takes_is_wrong_and_not_unsupported() -> None:
    for url in URLS:
        with pytest.raises(InvalidInput, match="'colour' is not an option of "):
            backend_for(url, "notes", {"colour": "red"})


class Approximate(MemoryBackend):
    capabilities = frozenset()


@runs
async def test_exact_search_is_refused_by_a_store_that_cannot() -> None:
    world = make_world(1, documents=3)
    backend = Approximate()
    await backend.create(world.schema)
    await backend.upsert(world.documents, world.embeddings)
    query = world.queries[0]
    assert await backend.search(query, ALL, 3)
    for call in (
        backend.search(query, ALL, 3, exact=True),
        backend.candidates("dense", query, 3, exact=True),
    ):
        with pytest.raises(Unsupported, match="EXACT") as refused:
            await call
        assert "exact=False" in str(refused.value)


@runs
async def test_a_strict_collection_declares_less_than_its_store() -> None:
    world = make_world(2, documents=3)
    with FakeQdrant() as fake:
        backend: Backend = backend_for(fake.url, "notes", {"grpc_port": fake.grpc_port})
        await backend.create(world.schema)
        assert Capability.EXACT in backend.capabilities
        fake.strict = {"search_allow_exact": False}
        await backend.open()
        assert Capability.EXACT not in backend.capabilities
        fake.strict = {}
        await backend.open()
        assert Capability.EXACT in backend.capabilities
        await backend.close()


def test_the_table_in_the_docs_is_of_now() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert "| `EXACT` |" in with_table(page)
    assert page == with_table(page), "stale: run  python -m m3_connectors.backends docs/servers.md"


def test_an_endpoint_is_shown_and_pickled_without_its_secrets() -> None:
    import pickle

    url = "elasticsearch+https://me:hunter2@host"
    declared = backend_for("elasticsearch+https://host").capabilities
    endpoint, _ = Endpoint.parse(url, {}, default_port=9200, environment={}, declared=declared)
    assert endpoint.password is not None
    assert endpoint.password.get_secret_value() == "hunter2"
    assert endpoint.verify
    assert "hunter2" not in f"{endpoint} {endpoint!r} {endpoint.url}"
    with pytest.raises(TypeError, match="holds secrets"):
        pickle.dumps(endpoint)
