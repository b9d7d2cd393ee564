"""Saved embeddings on their way into another store: without the model, with the ledger's guarantees."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from stub_encoder import StubEncoder

from m3_connectors import Document, Index, InvalidInput, M3Embeddings, ModelMismatch, Storage, connect
from m3_connectors.backends.base import Backend
from m3_connectors.errors import Unavailable
from m3_connectors.ingestion import (
    Chunking,
    EmbeddingsFolder,
    EmbeddingsKeeper,
    IngestReport,
    Ledger,
    Origin,
    SavedReport,
    ingest,
    ingest_embedded,
    verify,
)
from m3_connectors.shards import format as shard_format

STORAGE = Storage("int8")
TOKENS = Chunking("tokens", 16)


def text(words: int, word: str = "fox") -> str:
    return " ".join(f"{word}{i}" for i in range(words))


def corpus(count: int) -> list[Document]:
    return [Document(f"d{i}", f"{text(1 + i % 40)} of {i}", {"n": i}) for i in range(count)]


class Place:
    """A collection that a folder is kept of, and another one that the folder is put into."""

    def __init__(self, folder: Path) -> None:
        self.one, self.other = f"qdrant:{folder / 'one'}", f"qdrant:{folder / 'other'}"
        self.ledgers = folder / "one.sqlite", folder / "other.sqlite"
        self.kept = folder / "kept"

    def run(
        self, documents: Sequence[Document], chunking: Chunking = TOKENS, **options: Any
    ) -> tuple[IngestReport, SavedReport, StubEncoder]:
        encoder = StubEncoder()
        with (
            connect(self.one, encoder=encoder, storage=STORAGE) as index,
            Ledger(self.ledgers[0]) as ledger,
            EmbeddingsKeeper(self.kept, index) as keeper,
        ):
            report = ingest(
                iter(documents),
                index,
                ledger=ledger,
                chunking=chunking,
                on_embedded=keeper.on_embedded,
                **options,
            )
            return report, keeper.finish(), encoder

    def put(self, storage: Storage = STORAGE, **options: Any) -> IngestReport:
        folder = EmbeddingsFolder(self.kept)
        with (
            connect(self.other, model=folder.schema.model, storage=storage) as index,
            Ledger(self.ledgers[1]) as ledger,
        ):
            report = ingest_embedded(
                folder.parts(),
                index,
                ledger=ledger,
                saved=folder.schema,
                origin=lambda: Origin("kept"),
                **options,
            )
            found = verify(index, ledger)
            assert (found.missing, found.stale, found.unknown) == (0, 0, 0)
        return report

    def assert_equal(self) -> None:
        """Both collections have the same documents with the same vectors, and the folder has the same."""
        with connect(self.one, create=False) as one, connect(self.other, create=False) as other:
            ours, theirs = contents(one.scan_embeddings()), contents(other.scan_embeddings())
            assert ours == theirs
        assert contents(EmbeddingsFolder(self.kept).parts()) == ours


def contents(parts: Iterator[tuple[list[Document], M3Embeddings]]) -> dict[str, tuple[Any, ...]]:
    return {
        document.id: (
            document,
            vectors[i].dense.tobytes(),
            vectors[i].sparse.toarray().tobytes(),
            vectors[i].multivectors.encoded,
        )
        for documents, vectors in parts
        for i, document in enumerate(documents)
    }


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("how", ["none", "tokens:16:4"])
def test_a_folder_gives_the_same_collection_without_the_model(place: Place, how: str) -> None:
    documents = corpus(600)
    report, saved, encoder = place.run(documents, Chunking.parse(how))
    assert (saved.documents, saved.written, saved.read, saved.removed) == (
        report.chunks, len(encoder.texts), 0, 0,
    )  # fmt: skip
    put = place.put()
    assert (put.documents, put.unchanged, put.replaced, put.add.encoding_seconds) == (report.chunks, 0, 0, 0)
    place.assert_equal()
    again = place.put()
    assert (again.documents, again.unchanged) == (0, report.chunks)


def test_changed_and_removed_documents_are_followed(place: Place) -> None:
    before = corpus(300)
    here = {"origin": lambda: Origin("folder", "file"), "sync": ["folder"]}
    place.run(before, **here)
    place.put(sync=["kept"])
    after = [dataclasses.replace(d, text=f"new {d.id}") if i % 50 == 3 else d for i, d in enumerate(before)]
    after = [d for i, d in enumerate(after) if i % 50 != 40]  # those of 40 have several chunks
    _, saved, _ = place.run(after, **here)
    assert saved.written == 6
    assert saved.removed >= 6
    put = place.put(sync=["kept"])
    assert put.documents == put.replaced == 6
    assert put.removed == saved.removed
    place.assert_equal()


def test_what_the_folder_lacks_is_read_from_the_store(place: Place) -> None:
    """As after a kill between the ledger and the folder, or if the folder is begun later."""
    documents = corpus(200)
    with (
        connect(place.one, encoder=StubEncoder(), storage=STORAGE) as index,
        Ledger(place.ledgers[0]) as ledger,
    ):
        ingest(documents[:150], index, ledger=ledger)
    report, saved, encoder = place.run(documents, Chunking())
    assert (report.unchanged, saved.written, saved.read) == (150, 50, 150)
    assert len(encoder.texts) == 50
    place.put()
    place.assert_equal()
    # A run without the folder changes documents; the next one with it notices.
    with (
        connect(place.one, encoder=StubEncoder(), storage=STORAGE) as index,
        Ledger(place.ledgers[0]) as ledger,
    ):
        ingest(
            [Document("d3", "other"), Document("d4", documents[4].text, {"n": "other"})], index, ledger=ledger
        )
    _, saved, encoder = place.run(documents[10:], Chunking())
    assert (saved.written, saved.read, encoder.texts) == (0, 2, [])
    place.put()
    place.assert_equal()


def test_a_store_that_fails_loses_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, documents = random.Random(0), corpus(400)
    monkeypatch.setattr(shard_format, "_GROUP_DOCUMENTS", 50)
    place.run(documents, Chunking())
    upsert, left = Backend.upsert, [0]

    async def failing(self: Backend, *given: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Unavailable("it is gone", backend="test", operation="upsert")
        await upsert(self, *given)

    monkeypatch.setattr(Backend, "upsert", failing)
    for _ in range(4):
        left[0] = rng.randint(0, 2)
        with pytest.raises(Unavailable):
            place.put(wait_seconds=0)
    monkeypatch.undo()
    place.put()
    place.assert_equal()


def test_documents_that_were_removed_behind_the_ledgers_back_are_stored_again(place: Place) -> None:
    place.run(corpus(50), Chunking())
    place.put()
    with connect(place.other, create=False) as index:
        index.delete(["d3", "d4"])
    report = place.put()
    assert report.documents == 2
    assert report.missing is not None
    assert report.missing.missing_ids == ("d3", "d4")
    place.assert_equal()


class TestRefusals:
    def test_a_missing_component_and_another_model(self, place: Place, tmp_path: Path) -> None:
        world = StubEncoder().encode(["a", "b"], components=("dense", "sparse"))
        documents = [Document("a", "a"), Document("b", "b")]

        def put(index: Index, embeddings: M3Embeddings) -> IngestReport:
            with Ledger(tmp_path / f"{index.schema.model.name.replace('/', '-')}.sqlite") as ledger:
                return ingest_embedded([(documents, embeddings)], index, ledger=ledger)

        with connect("memory:", model=StubEncoder.info) as index:
            with pytest.raises(InvalidInput, match="does not have multivector"):
                put(index, world)
            assert index.count() == 0
        other = dataclasses.replace(StubEncoder.info, name="other", weights_fingerprint="0" * 64)
        with (
            connect("memory:", model=other, storage=Storage(components=("dense", "sparse"))) as index,
            pytest.raises(ModelMismatch),
        ):
            put(index, world)

    def test_a_saved_collection_with_fewer_components(self, place: Place) -> None:
        place.run(corpus(5))
        folder = EmbeddingsFolder(place.kept)
        small = dataclasses.replace(folder.schema, storage=Storage("int8", components=("dense",)))
        with (
            connect("memory:", model=small.model) as index,
            Ledger(place.ledgers[1]) as ledger,
            pytest.raises(InvalidInput, match="sparse, multivector is missing"),
        ):
            ingest_embedded(folder.parts(), index, ledger=ledger, saved=small)

    def test_a_folder_of_another_collection(self, place: Place) -> None:
        place.run(corpus(5))
        with (
            connect("memory:", model=StubEncoder.info) as index,
            pytest.raises(InvalidInput, match="another collection"),
        ):
            EmbeddingsKeeper(place.kept, index)


def test_of_a_repeated_id_the_last_remains(tmp_path: Path) -> None:
    encoder = StubEncoder()
    texts = ["one", "two", "three", "four"]
    parts = [
        ([Document("a", "one"), Document("a", "two")], encoder.encode(texts[:2])),
        ([Document("b", "three"), Document("a", "four")], encoder.encode(texts[2:])),
    ]
    with connect("memory:", model=encoder.info) as index, Ledger(tmp_path / "ledger") as ledger:
        report = ingest_embedded(parts, index, ledger=ledger)
        assert report.documents == 2
        (document,) = index.get(["a"])
        assert document == Document("a", "four")
        hit = index.search(encoder.encode(["four"]), method="dense", k=1)[0]
        assert (hit.document.id, hit.score) == ("a", pytest.approx(1))
        assert verify(index, ledger).missing == 0
