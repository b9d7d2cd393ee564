from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from m3_connectors.backends.base import Backend
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.backends.schema import FORMAT, Schema
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.filters import parse_filter
from m3_connectors.methods import DENSE
from m3_connectors.testing.conformance import BackendConformance, runs
from m3_connectors.testing.worlds import make_world


class TestMemory(BackendConformance):
    def make_backend(self, directory: Path, collection: str) -> Backend:
        return MemoryBackend(collection)


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
