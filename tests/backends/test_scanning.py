"""Scans beyond the contract: parts of bounded size, documents that change while they are read, other stores."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import anyio
import numpy as np
import pytest

from m3_connectors import Document, aconnect, connect
from m3_connectors.backends import scanning
from m3_connectors.backends.base import Backend
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.embeddings import M3Embeddings, MultiVectors
from m3_connectors.errors import Busy, InvalidInput
from m3_connectors.filters import Filter, parse_filter
from m3_connectors.testing.worlds import World, make_world


class Changing(MemoryBackend):
    """Calls ``meanwhile`` after each read of vectors."""

    meanwhile: Callable[[Sequence[str]], None] = staticmethod(lambda ids: None)

    async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
        found = await super()._vectors(ids)
        self.meanwhile(ids)
        return found


class ListsIdsOnly(MemoryBackend):
    """A store that was written before the contract had filtered scans."""

    def _passing_ids(self, filter: Filter) -> AsyncIterator[str]:
        return Backend._passing_ids(self, filter)


async def filled(backend: MemoryBackend, world: World) -> None:
    await backend.create(world.schema)
    await backend.upsert(world.documents, world.embeddings)


def test_a_store_that_only_lists_its_ids_is_filtered_by_reading() -> None:
    world = make_world(1, documents=1300, most_rows=1)

    async def main() -> None:
        backend = ListsIdsOnly()
        await filled(backend, world)
        for raw in world.filters:
            found = [id async for id in backend.passing_ids(parse_filter(raw))]
            assert sorted(found) == sorted(world.passing(raw))

    anyio.run(main)


def test_parts_are_bounded_in_bytes_whatever_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "PART_BYTES", 100_000)
    world = make_world(2, documents=200)
    long = 3000  # 288,000 bytes: a part of its own
    counts = [1] * 80 + [200] * 60 + [long] + [5] * 59
    rows = [np.repeat(world.embeddings.multivectors[0][:1], count, axis=0) for count in counts]
    embeddings = world.embeddings.replace(multivectors=MultiVectors.from_list(rows, 24))
    asked: list[int] = []

    class Counting(MemoryBackend):
        async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
            asked.append(len(ids))
            return await super()._vectors(ids)

    async def main() -> None:
        backend = Counting()
        await filled(backend, dataclasses.replace(world, embeddings=embeddings))
        found = [part async for part in scanning.parts(backend, None)]
        assert [each.id for part, _ in found for each in part] == [each.id for each in world.documents]
        for documents, vectors in found:
            assert len(documents) == 1 or vectors.multivectors.rows.nbytes <= 100_000
        assert max(asked) <= 128
        assert asked[-1] > 1

    anyio.run(main)


def test_a_document_that_is_replaced_while_it_is_read_comes_with_its_new_vectors() -> None:
    world = make_world(3, documents=10)
    even = parse_filter({"even": True})
    documents = [Document(each.id, each.text, {"even": True}) for each in world.documents]
    new = [
        Document(documents[0].id, "new", {"even": True}),
        Document(documents[1].id, "odd", {"even": False}),
    ]

    async def main() -> None:
        backend = Changing()
        await filled(backend, dataclasses.replace(world, documents=documents))

        def change(_: Sequence[str]) -> None:
            for document, row in zip(new, world.embeddings[8:10], strict=True):
                backend._documents[document.id] = document
                backend._embeddings[document.id] = backend.schema.precision.rounded(row)
            for document in documents[2:4]:
                backend._documents.pop(document.id, None)
                backend._embeddings.pop(document.id, None)

        backend.meanwhile = change
        ((found, vectors),) = [part async for part in scanning.parts(backend, even)]
        rows = {document.id: i for i, document in enumerate(found)}
        assert {each.id: each for each in found} == {each.id: each for each in [new[0], *documents[4:]]}
        np.testing.assert_array_equal(vectors.dense[rows[new[0].id]], world.embeddings.dense[8])
        np.testing.assert_array_equal(vectors.dense[rows[documents[4].id]], world.embeddings.dense[4])

    anyio.run(main)


def test_documents_that_are_deleted_before_their_vectors_are_read_are_left_out() -> None:
    world = make_world(4, documents=10)

    class Deleting(MemoryBackend):
        async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
            await self._delete([id for id in ids if id in gone])
            return await super()._vectors(ids)

    gone = {each.id for each in world.documents[::2]}

    async def main() -> None:
        backend = Deleting()
        await filled(backend, world)
        ((found, vectors),) = [part async for part in scanning.parts(backend, None)]
        assert found == world.documents[1::2]
        assert len(vectors) == 5
        gone.update(each.id for each in found)
        assert [part async for part in scanning.parts(backend, None)] == []

    anyio.run(main)


def test_a_document_that_never_stays_the_same_is_named() -> None:
    world = make_world(5, documents=3)
    counter = iter(range(100))

    async def main() -> None:
        backend = Changing()
        await filled(backend, world)

        def change(_: Sequence[str]) -> None:
            first = world.documents[0]
            backend._documents[first.id] = Document(first.id, str(next(counter)))

        backend.meanwhile = change
        with pytest.raises(Busy, match=r"was replaced 8 times.*\n.*fewer documents"):
            [part async for part in scanning.parts(backend, None)]

    anyio.run(main)


def test_both_faces_scan_and_refuse_a_bad_filter_at_once() -> None:
    world = make_world(6, documents=60)
    raw = world.filters[0]
    with connect("memory:", encoder=_Encoder(world)) as index:
        index.add(world.documents, embeddings=world.embeddings)
        assert sorted(index.scan_ids()) == sorted(each.id for each in world.documents)
        assert sorted(index.scan_ids(raw)) == sorted(world.passing(raw))
        passing = {each.id: each for each in world.documents if each.id in set(world.passing(raw))}
        assert {each.id: each for each in index.scan(raw)} == passing
        assert {each.id: each for part, _ in index.scan_embeddings(raw) for each in part} == passing
        for scan in (index.scan_ids, index.scan, index.scan_embeddings):
            with pytest.raises(InvalidInput, match=r"\$near"):
                scan({"lang": {"$near": 1}})

    async def main() -> None:
        async with aconnect("memory:", encoder=_Encoder(world)) as index:
            await index.add(world.documents, embeddings=world.embeddings)
            assert sorted([id async for id in index.scan_ids(raw)]) == sorted(world.passing(raw))
            assert {each.id: each async for each in index.scan(raw)} == passing
            found = [each async for part in index.scan_embeddings(raw) for each in part[0]]
            assert {each.id: each for each in found} == passing
            with pytest.raises(InvalidInput, match=r"\$near"):
                index.scan({"lang": {"$near": 1}})

    anyio.run(main)


def test_a_scan_may_be_abandoned_and_outlive_its_index() -> None:
    world = make_world(7, documents=40)
    index = connect("memory:", encoder=_Encoder(world))
    index.add(world.documents, embeddings=world.embeddings)
    abandoned, left = index.scan_ids(), index.scan()
    assert {next(abandoned), next(left).id} <= {each.id for each in world.documents}
    del abandoned
    gc.collect()
    index.delete([next(index.scan_ids())])  # a scan does not hold the index
    index.close()
    with pytest.raises(InvalidInput, match="closed"):
        list(index.scan())
    del left
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "m3-index"]


class _Encoder:
    recommended_weights: Mapping[str, tuple[float, float, float]] = {}

    def __init__(self, world: World) -> None:
        self.info = world.schema.model

    def encode(self, texts: Sequence[str], **_: object) -> M3Embeddings:
        raise AssertionError("nothing is encoded")

    def token_strings(self, text: str) -> list[str]:
        raise AssertionError("nothing is encoded")

    def id_to_token(self, id: int) -> str | None:
        return None
