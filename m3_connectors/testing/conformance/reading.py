"""B11 to B15: reads return what was stored."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from m3_connectors.backends.base import Storage
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import DocumentNotFound
from m3_connectors.filters import MAX_DEPTH, matches, parse_filter
from m3_connectors.methods import DENSE
from m3_connectors.testing.conformance.suite import Suite, each_storage, runs
from m3_connectors.testing.questions import WHOLE, random_filter, random_metadata
from m3_connectors.testing.worlds import NASTY_IDS, make_world


class ReadingClauses(Suite):
    """B11 to B15: reads return what was stored."""

    @runs
    async def test_b11_fetch_gives_back_what_went_in(self, tmp_path: Path) -> None:
        world = make_world(11, documents=60)
        async with self.stored(tmp_path, world) as backend:
            documents = {document.id: document for document in world.documents}
            asked = [*list(documents)[::-1], "unknown", world.documents[0].id]
            assert await backend.fetch(asked) == [documents.get(id) for id in asked]
            assert await backend.fetch([]) == []

    @runs
    async def test_b11_metadata_keep_their_json_types(self, tmp_path: Path) -> None:
        world = make_world(111, documents=1)
        metadata: dict[str, Any] = {
            "int": 2**63 - 1, "least": -(2**63), "float": 0.1 + 0.2, "whole": 2.0, "tiny": 5e-324, "huge": 1.7e308,
            "true": True, "null": None, "text": "\x00 \u2028 🇰🇪", "list": [1, "1", 1.5, None, [], {}], "": {"": ""},
            "a.b": {"c.d": [[{"e": []}]]}, "$in": "dollar", 'quo"te': 1, "_id": 1, "id": 2, "vector": [1], "dense": {},
        }  # fmt: skip
        changed = [Document("one", "text", MappingProxyType(metadata))]
        async with self.stored(tmp_path, dataclasses.replace(world, documents=changed)) as backend:
            (found,) = await backend.fetch(["one"])
            assert found is not None
            assert found.metadata == metadata
            assert repr(sorted(found.metadata.items())) == repr(sorted(metadata.items()))

    @each_storage("precisions")
    async def test_b12_vectors_are_as_stored(self, tmp_path: Path, storage: Storage) -> None:
        world = make_world(12, storage=storage)
        async with self.stored(tmp_path, world) as backend:
            order = [3, 0, 7, 3, 11]
            got = await backend.vectors([world.documents[i].id for i in order])
            kept = world.schema.precision.rounded(world.embeddings)
            want = M3Embeddings.concatenate([kept[i] for i in order])
            assert got.dense is not None and got.sparse is not None and got.multivectors is not None
            assert want.dense is not None and want.sparse is not None and want.multivectors is not None
            np.testing.assert_array_equal(got.dense, want.dense)
            np.testing.assert_array_equal(got.sparse.toarray(), want.sparse.toarray())
            np.testing.assert_array_equal(got.multivectors.offsets, want.multivectors.offsets)
            np.testing.assert_array_equal(got.multivectors.rows, want.multivectors.rows)
            with pytest.raises(DocumentNotFound, match="unknown"):
                await backend.vectors([world.documents[0].id, "unknown"])

    @runs
    async def test_b13_count_follows_the_meaning_of_filters(self, tmp_path: Path) -> None:
        world = make_world(13, documents=60)
        assert len(world.filters) > 20
        async with self.stored(tmp_path, world) as backend:
            assert await backend.count() == 60
            for raw in world.filters:
                passing = world.passing(raw)
                assert 0 < len(passing) < 60
                assert await backend.count(parse_filter(raw)) == len(passing), raw

    @runs
    async def test_b13_filters_mean_the_same_on_any_metadata(self, tmp_path: Path) -> None:
        rng = random.Random(131)
        world = make_world(131, documents=120, most_rows=2)
        documents = [Document(each.id, each.text, random_metadata(rng)) for each in world.documents]
        told_apart = 0
        async with self.stored(tmp_path, dataclasses.replace(world, documents=documents)) as backend:
            for _ in range(self.random_filters):
                raw = random_filter(rng)
                filter = parse_filter(raw)
                passing = sum(matches(filter, document.metadata) for document in documents)
                told_apart += 0 < passing < len(documents)
                assert await backend.count(filter) == passing, raw
            assert await backend.fetch([each.id for each in documents]) == documents
        assert told_apart > self.random_filters / 2

    @runs
    async def test_b13_whole_numbers_of_64_bits_are_told_apart(self, tmp_path: Path) -> None:
        rng = random.Random(132)
        numbers = [*WHOLE, 2.0**53, -(2.0**53), 2.0**63, -(2.0**63), 1e30, 0, 0.5]
        world = make_world(132, documents=len(numbers), most_rows=2)
        documents = [
            Document(each.id, each.text, {"n": number})
            for each, number in zip(world.documents, numbers, strict=True)
        ]
        async with self.stored(tmp_path, dataclasses.replace(world, documents=documents)) as backend:
            for number in numbers:
                for operator in ("$eq", "$in", *rng.sample(("$gt", "$gte", "$lt", "$lte"), 2)):
                    filter = parse_filter({"n": {operator: [number] if operator == "$in" else number}})
                    passing = sum(matches(filter, document.metadata) for document in documents)
                    assert await backend.count(filter) == passing, (operator, number)

    @runs
    async def test_b13_filters_of_every_depth_and_year_are_taken(self, tmp_path: Path) -> None:
        dates = ["0001-01-01", "0001-01-01T00:00:00+02:00", "2024-05-31", "9999-12-31T23:59:59.999999-12:00"]
        world = make_world(130, documents=len(dates))
        dated = [
            Document(document.id, document.text, {"when": date})
            for document, date in zip(world.documents, dates, strict=True)
        ]
        deep: dict[str, Any] = {"when": {"$gte": "2024-05-31T00:00:00Z"}}
        for level in range(MAX_DEPTH - 1):
            other = {"when": "soon"}  # passes no date filter
            deep = ({"$or": [other, deep]}, {"$and": [{"$not": other}, deep]}, {"$not": deep})[level % 3]
        async with self.stored(tmp_path, dataclasses.replace(world, documents=dated)) as backend:
            for raw in (
                deep,
                {"when": {"$gte": "0001-01-01"}},
                {"when": {"$lt": "9999-12-31T23:59:59.999999"}},
            ):
                filter = parse_filter(raw)
                passing = {document.id for document in dated if matches(filter, document.metadata)}
                assert 0 < len(passing) < len(dated)
                assert await backend.count(filter) == len(passing)
                hits = await backend.search(world.queries[0], DENSE, len(dated), filter=filter)
                assert {hit.id for hit in hits} == passing

    @runs
    async def test_b14_ids_are_never_confused(self, tmp_path: Path) -> None:
        world = make_world(14, documents=len(NASTY_IDS))
        async with self.stored(tmp_path, world) as backend:
            by_id = {document.id: document for document in world.documents}
            assert set(by_id) == set(NASTY_IDS)
            for id in NASTY_IDS:
                assert await backend.fetch([id]) == [by_id[id]]
            for left, id in enumerate(NASTY_IDS):
                assert await backend.delete([id]) == 1
                assert await backend.count() == len(NASTY_IDS) - left - 1

    @runs
    async def test_b15_scan_yields_every_id_once(self, tmp_path: Path) -> None:
        world = make_world(15, documents=2300, most_rows=2)
        async with self.stored(tmp_path, dataclasses.replace(world, documents=[])) as backend:
            assert [id async for id in backend.scan_ids()] == []
            await backend.upsert(world.documents, world.embeddings)
            found = [id async for id in backend.scan_ids()]
            assert sorted(found) == sorted(document.id for document in world.documents)
