"""Searches of the Milvus adapter on servers that round sparse weights, or answer no list of this size."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from m3_connectors.backends.milvus import searching
from m3_connectors.backends.milvus.backend import MilvusBackend
from m3_connectors.backends.milvus.connection import Connection, release
from m3_connectors.methods import ALL, METHODS, SPARSE
from m3_connectors.testing.agreement import compare_search, oracle_of
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.worlds import World, join, make_world, unit_rows

WORLD = make_world(95, documents=120, most_rows=4)


@asynccontextmanager
async def stored(directory: Path, world: World = WORLD) -> AsyncIterator[MilvusBackend]:
    backend = MilvusBackend.from_url(f"milvus:{directory}/data.db", "notes", {})
    await backend.create(world.schema)
    await backend.upsert(world.documents, world.embeddings)
    yield backend
    await backend.close()


@pytest.mark.parametrize(
    ("version", "rounds"),
    [
        ("milvus_lite-3.2.2", False),
        ("2.5.27", False),
        ("v2.6.22", False),
        ("3.0.0", True),
        ("v3.0.1-dev", True),
    ],
)
def test_servers_from_3_are_not_trusted_with_sparse_scores(version: str, rounds: bool) -> None:
    connection = Connection.__new__(Connection)
    connection.version = version
    assert connection.rounds_sparse is rounds
    assert release(version) >= (2, 5)


def rounding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have sparse searches rank and score by weights in 16 bits; the limits that are asked for."""
    real, limits = MilvusClient.search, []

    def search(
        self: MilvusClient, name: str, *, data: Any, anns_field: str, limit: int, **options: Any
    ) -> Any:
        if anns_field != "sparse":
            return real(self, name, data=data, anns_field=anns_field, limit=limit, **options)
        limits.append(limit)
        fields = [*options.pop("output_fields"), "sparse"]
        (found,) = real(
            self, name, data=data, anns_field="sparse", limit=1_000, output_fields=fields, **options
        )
        (query,) = data
        hits = [{"key": hit["key"], **{name: hit[name] for name in fields}} for hit in found]
        for hit in hits:
            hit["distance"] = float(
                sum(query.get(token, 0.0) * float(np.float16(w)) for token, w in hit["sparse"].items())
            )
        return [sorted(hits, key=lambda hit: -hit["distance"])[:limit]]

    monkeypatch.setattr(MilvusClient, "search", search)
    monkeypatch.setattr(Connection, "rounds_sparse", True)
    return limits


@runs
async def test_scores_are_exact_where_a_server_rounds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = await oracle_of(WORLD)
    async with stored(tmp_path) as backend:
        rounding(monkeypatch)
        for query in WORLD.queries[:3]:
            for method in METHODS.values():
                await compare_search(backend, oracle, query, method, 10)
            await compare_search(backend, oracle, query, SPARSE, 40)
            ids = [document.id for document in WORLD.documents]
            np.testing.assert_allclose(
                await backend.score("sparse", query, ids), await oracle.score("sparse", query, ids), atol=1e-7
            )


def nearly_equal(documents: int) -> World:
    """All weights within what 16 bits can tell apart, so that the server's order says nothing."""
    rng = np.random.default_rng(96)
    world = make_world(96, documents=documents, most_rows=1, dimension=8)
    dense = unit_rows(rng.normal(size=(documents, 8)))
    weights = 0.5 + rng.permutation(documents) * 1e-4 / documents
    vectors = [(dense[i], {3: float(weights[i])}, dense[i : i + 1]) for i in range(documents)]
    query = join([(dense[0], {3: 1.0}, dense[:1])], world.schema.model)
    return dataclasses.replace(world, embeddings=join(vectors, world.schema.model), queries=[query])


@pytest.mark.parametrize("most", [16_384, 100])
@runs
async def test_a_list_that_rounding_leaves_open_is_asked_for_deeper_and_read_whole_at_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    world = nearly_equal(200)
    async with stored(tmp_path, world) as backend:
        limits = rounding(monkeypatch)
        monkeypatch.setattr(searching.Searcher, "most_results", most)
        found = await backend.candidates("sparse", world.queries[0], 10)
        true = await (await oracle_of(world)).candidates("sparse", world.queries[0], 10)
        assert list(found.ids) == list(true.ids)
        np.testing.assert_allclose(found.scores, true.scores, atol=1e-7)
        assert limits == ([26, 104, 416] if most > 1_000 else [26, 100])


@runs
async def test_where_scores_are_exact_no_more_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = MilvusClient.search, []

    def search(self: MilvusClient, name: str, **options: Any) -> Any:
        asked.append((options["limit"], options["output_fields"]))
        return real(self, name, **options)

    async with stored(tmp_path) as backend:
        monkeypatch.setattr(MilvusClient, "search", search)
        await backend.candidates("sparse", WORLD.queries[0], 10)
    assert asked == [(10, ["key"])]


def narrow(real: Callable[..., Any], most: int) -> Callable[..., Any]:
    """A call whose answers of more than so many entities with vectors or texts are refused by their size."""

    def call(self: MilvusClient, *arguments: Any, **options: Any) -> Any:
        if options.get("limit", 0) > most and set(options["output_fields"]) - {"key", "rows"}:
            raise MilvusException(65535, "search results exceed the maxOutputSize Limit 104857600")
        return real(self, *arguments, **options)

    return call


@runs
async def test_a_list_whose_answer_is_too_large_is_asked_for_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = await oracle_of(WORLD)
    async with stored(tmp_path) as backend:
        for method in ("search", "query"):
            monkeypatch.setattr(MilvusClient, method, narrow(getattr(MilvusClient, method), 7))
        for query in WORLD.queries[:2]:
            for method in (*METHODS.values(), ALL):
                await compare_search(backend, oracle, query, method, 12)
        found = await backend._searches.scan_for("dense", WORLD.queries[0], 20, "")
        true = await oracle.candidates("dense", WORLD.queries[0], 20, exact=True)
        assert len(found) == len(true.ids)
