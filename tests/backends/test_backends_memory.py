from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_connectors.backends.base import Backend
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.backends.schema import FORMAT, Schema
from m3_connectors.documents import Document
from m3_connectors.embeddings import COMPONENTS, M3Embeddings
from m3_connectors.errors import DocumentNotFound, InvalidInput, ModelMismatch
from m3_connectors.filters import parse_filter
from m3_connectors.methods import DENSE
from m3_connectors.testing.conformance import BackendConformance, runs
from m3_connectors.testing.worlds import make_world


class TestMemory(BackendConformance):
    def make_backend(self, directory: Path, collection: str) -> Backend:
        return MemoryBackend(collection)


class OneByOne(MemoryBackend):
    """Scores many queries as stores do that score themselves."""

    _score_many = Backend._score_many


@pytest.mark.parametrize("kind", [MemoryBackend, OneByOne])
@runs
async def test_the_scores_of_many_queries_are_those_of_each(kind: type[MemoryBackend]) -> None:
    world = make_world(3, documents=30)
    backend = kind("notes")
    await backend.create(world.schema)
    ids = [document.id for document in world.documents]
    await backend.upsert(world.documents, world.embeddings)
    queries = M3Embeddings.concatenate(world.queries[:4])
    other = dataclasses.replace(world.schema.model, vocabulary_fingerprint="another")
    wanted = [ids[:20], [], ids[::-1], [ids[3], ids[3]]]
    for component in COMPONENTS:
        found = await backend.score_many(component, queries, wanted)
        assert [scores.dtype for scores in found] == [np.float32] * 4
        for query, each, scores in zip(queries, wanted, found, strict=True):
            np.testing.assert_allclose(scores, await backend.score(component, query, each), atol=1e-6)
        with pytest.raises(DocumentNotFound, match="absent"):
            await backend.score_many(component, queries[:2], [ids, ["absent"]])
        with pytest.raises(ModelMismatch):
            await backend.score_many(component, queries.replace(model=other), wanted)
    await backend.close()


@runs
async def test_a_collection_of_an_earlier_format_refuses_numbers_that_its_documents_cannot_answer() -> None:
    world = make_world(7, documents=1)
    earlier = dataclasses.replace(world.schema, format=1)
    backend = MemoryBackend("notes")
    await backend.create(earlier)
    await backend.upsert([Document("a", "", {"n": 2**53 - 1})], world.embeddings)
    asked: list[dict[str, Any]] = [
        {"n": 2**53},
        {"$not": {"n": {"$gt": -(2**60)}}},
        {"$or": [{"m": 1}, {"n": 1e30}]},
    ]
    for raw in asked:
        filter = parse_filter(raw)
        assert filter is not None
        for call in (
            backend.count(filter),
            backend.delete_where(filter),
            backend.candidates("dense", world.queries[0], 3, filter=filter),
            backend.search(world.queries[0], DENSE, 3, filter=filter),
        ):
            with pytest.raises(InvalidInput, match='collection "notes" was created by an earlier version'):
                await call
    assert await backend.count(parse_filter({"n": 2**53 - 1, "m": {"$ne": True}})) == 1
    await backend.close()


def test_a_schema_says_its_format_and_later_ones_are_refused() -> None:
    schema = make_world(7, documents=1).schema
    raw = schema.to_json()
    assert raw["format"] == FORMAT == Schema.from_json(raw).format
    earlier = Schema.from_json({**raw, "format": 1})
    assert earlier.format == 1
    assert earlier == schema
    for bad in (FORMAT + 1, 0, None, "2"):
        with pytest.raises(
            InvalidInput, match=re.escape(f"has format {bad!r}; this version reads 1 to {FORMAT}.")
        ):
            Schema.from_json({**raw, "format": bad})
