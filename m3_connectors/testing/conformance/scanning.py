"""B29: scans of what passes a filter, while others write."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np

from m3_connectors.backends.base import Backend
from m3_connectors.backends.scanning import document_pages, parts
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.filters import parse_filter
from m3_connectors.testing.conformance.suite import Suite, runs
from m3_connectors.testing.worlds import NASTY_IDS, World, make_world

_EVEN = parse_filter({"half": 0})


class ScanningClauses(Suite):
    """B29: scans of what passes a filter, while others write."""

    @runs
    async def test_b29_a_scan_yields_what_passes_the_filter(self, tmp_path: Path) -> None:
        world = make_world(290, documents=60)
        async with self.stored(tmp_path, world) as backend:
            for raw in [None, *world.filters]:
                found = [id async for id in backend.passing_ids(parse_filter(raw))]
                assert sorted(found) == sorted(world.passing(raw)), raw
            assert [id async for id in backend.passing_ids(parse_filter({"no such field": 1}))] == []

    @runs
    async def test_b29_what_is_present_is_known(self, tmp_path: Path) -> None:
        world = make_world(293, documents=len(NASTY_IDS))
        async with self.stored(tmp_path, world) as backend:
            assert await backend.present([]) == set()
            assert await backend.present(["unknown", *NASTY_IDS, NASTY_IDS[0]]) == set(NASTY_IDS)
            gone = set(NASTY_IDS[::2])
            await backend.delete(sorted(gone))
            assert await backend.present(NASTY_IDS) == set(NASTY_IDS) - gone

    @runs
    async def test_b29_many_pages_are_scanned_while_others_write(self, tmp_path: Path) -> None:
        world = _halves(make_world(291, documents=4200, most_rows=2))
        stored = dataclasses.replace(
            world, documents=world.documents[:4000], embeddings=world.embeddings[:4000]
        )
        even = [document for document in stored.documents if document.metadata["half"] == 0]
        async with self.stored(tmp_path, stored) as backend:
            found: list[str] = []
            async with contextlib.aclosing(backend.passing_ids(_EVEN)) as ids:
                async for id in ids:
                    found.append(id)
                    if len(found) == 500:
                        late = set(found[:250])
                        replaced = [each for each in even if each.id in late]
                        await backend.upsert(replaced, world.embeddings[: len(replaced)])
                        gone = [each.id for each in even if each.id not in late][::3]
                        await backend.delete(gone)
                        await backend.upsert(world.documents[4000:], world.embeddings[4000:])
            assert len(found) == len(set(found))
            untouched = {each.id for each in even} - set(gone)
            assert untouched <= set(found)
            new = {each.id for each in world.documents[4000:] if each.metadata["half"] == 0}
            assert set(found) <= untouched | set(gone) | new

    @runs
    async def test_b29_documents_come_with_their_own_vectors(self, tmp_path: Path) -> None:
        world = _halves(make_world(292, documents=300))
        even = {each.id: each for each in world.documents if each.metadata["half"] == 0}
        async with self.stored(tmp_path, world) as backend:
            pages = [page async for page in document_pages(backend, _EVEN)]
            assert {each.id: each for page in pages for each in page} == even
            assert sum(map(len, pages)) == len(even)
            scanned = [part async for part in parts(backend, _EVEN)]
            documents = [each for page, _ in scanned for each in page]
            assert {each.id: each for each in documents} == even
            assert len(documents) == len(even)
            await _assert_equal(backend, documents, M3Embeddings.concatenate([rows for _, rows in scanned]))


def _halves(world: World) -> World:
    documents = [Document(each.id, each.text, {"half": i % 2}) for i, each in enumerate(world.documents)]
    return dataclasses.replace(world, documents=documents)


async def _assert_equal(backend: Backend, documents: list[Document], found: M3Embeddings) -> None:
    stored = await backend.vectors([document.id for document in documents])
    np.testing.assert_array_equal(found.dense, stored.dense)
    assert (found.sparse != stored.sparse).nnz == 0
    np.testing.assert_array_equal(found.multivectors.offsets, stored.multivectors.offsets)
    np.testing.assert_array_equal(found.multivectors.rows, stored.multivectors.rows)
    assert found.model == backend.schema.model
