"""Another collection as a source: copied with its vectors, resumable, and only what is new or changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stub_encoder import StubEncoder

from m3_connectors import Document, Index, M3Embeddings, Storage, connect
from m3_connectors.backends.base import Backend
from m3_connectors.errors import InvalidInput, ModelMismatch, Unavailable
from m3_connectors.ingestion import IngestReport, Ledger, ingest_collection, verify


class Places:
    """A collection and its copy, in two stores."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        self.source = connect(f"qdrant:{folder / 'source'}", encoder=StubEncoder(), storage=storage)
        self.target_url = f"qdrant:{folder / 'target'}"
        self.ledger = folder / "ledger.sqlite"

    def copy(self, storage: Storage | None = None, **options: Any) -> IngestReport:
        schema = self.source.schema
        with (
            connect(self.target_url, model=schema.model, storage=storage or schema.storage) as target,
            Ledger(self.ledger) as ledger,
        ):
            return ingest_collection(self.source, target, ledger=ledger, name="source", **options)

    def assert_equal(self) -> None:
        with connect(self.target_url, create=False) as target, Ledger(self.ledger) as ledger:
            assert contents(target) == contents(self.source)
            assert verify(target, ledger, hashes=True).agrees


def contents(index: Index) -> dict[str, tuple[Document, bytes, bytes, bytes]]:
    return {
        document.id: (
            document,
            row.dense.tobytes(),
            row.sparse.toarray().tobytes(),
            row.multivectors.rows.tobytes(),
        )
        for documents, vectors in index.scan_embeddings()
        for document, row in zip(documents, vectors, strict=True)
    }


def corpus(count: int) -> list[Document]:
    return [Document(f"d{i}#0", f"text {i}", {"n": i, "chunk": {"parent": f"d{i}"}}) for i in range(count)]


@pytest.fixture(params=["float16", "int4"])
def places(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    made = Places(tmp_path, Storage(request.param))
    yield made
    made.source.close()


def test_a_copy_has_the_same_documents_and_vectors_and_the_next_copies_what_changed(places: Places) -> None:
    documents = corpus(1100)
    places.source.add(documents)
    report = places.copy()
    assert (report.read, report.documents, report.unchanged) == (1100, 1100, 0)
    places.assert_equal()
    places.source.add([dataclasses.replace(documents[3], text="new"), Document("later", "text")])
    places.source.delete([documents[4].id])
    report = places.copy(sync=True)
    assert (report.read, report.documents, report.replaced, report.removed) == (1100, 2, 1, 1)
    assert report.unchanged == 1098
    places.assert_equal()


def test_vectors_of_unchanged_documents_are_not_read(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = corpus(100)
    places.source.add(documents)
    places.copy()
    places.source.add([dataclasses.replace(documents[3], text="new")])
    read: list[str] = []
    vectors = Backend.vectors

    async def noted(self: Backend, ids: Sequence[str]) -> M3Embeddings:
        read.extend(ids)
        return await vectors(self, ids)

    monkeypatch.setattr(Backend, "vectors", noted)
    places.copy()
    assert read == [documents[3].id]


def test_what_was_deleted_from_the_copy_is_copied_again_even_if_the_counts_agree(places: Places) -> None:
    documents = corpus(50)
    places.source.add(documents)
    places.copy()
    with connect(places.target_url, encoder=StubEncoder(), create=False) as target:
        target.delete([documents[7].id, documents[8].id])
        target.add([Document("x", "another program's"), Document("y", "another program's")])
    report = places.copy()
    assert (report.missing, report.documents, report.unchanged) == (None, 2, 48)
    with connect(places.target_url, create=False) as target:
        target.delete(["x", "y"])
    places.assert_equal()


def test_an_interrupted_copy_removes_nothing_and_goes_on(places: Places) -> None:
    documents = corpus(1500)
    places.source.add(documents)
    places.copy()
    places.source.add([dataclasses.replace(each, text="new") for each in documents[::2]])
    places.source.delete([documents[1].id])
    asked = iter([True, *[False] * 10_000])
    report = places.copy(sync=True, wanted=lambda: next(asked))
    assert report.removed == 0
    assert 0 < report.documents < 750
    places.copy(sync=True)
    places.assert_equal()


def test_a_store_that_fails_loses_nothing(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    places.source.add(corpus(600))
    upsert, left = Backend.upsert, [2]

    async def failing(self: Backend, *given: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Unavailable("it is gone", backend="test", operation="upsert")
        await upsert(self, *given)

    monkeypatch.setattr(Backend, "upsert", failing)
    with pytest.raises(Unavailable):
        places.copy(wait_seconds=0)
    monkeypatch.undo()
    report = places.copy()
    assert report.unchanged + report.documents == 600
    places.assert_equal()


def test_another_model_and_missing_components_are_refused(tmp_path: Path) -> None:
    places = Places(tmp_path, Storage(components=("dense", "sparse")))
    other = dataclasses.replace(StubEncoder.info, name="someone/else", weights_fingerprint="0" * 64)
    with places.source, Ledger(None) as ledger:
        places.source.add(corpus(3))
        with connect("memory:", model=other, storage=places.source.schema.storage) as target:
            with pytest.raises(ModelMismatch, match="someone/else"):
                ingest_collection(places.source, target, ledger=ledger, name="source")
            assert target.count() == 0
        with (
            connect("memory:", model=StubEncoder.info) as target,
            pytest.raises(InvalidInput, match="multivector is missing"),
        ):
            ingest_collection(places.source, target, ledger=ledger, name="source")


def test_pooled_rows_are_not_pooled_again(tmp_path: Path) -> None:
    storage = Storage(long_documents="pool", pool_from_rows=1)
    places = Places(tmp_path, storage)
    with places.source:
        rows = StubEncoder().encode(["a b c d"])
        many = (
            np.repeat(rows.multivectors.rows, 8, axis=0) * np.linspace(0.5, 1, 8, dtype=np.float32)[:, None]
        )
        long = rows.replace(multivectors=type(rows.multivectors).from_list([many], 8))
        places.source.add([Document("long", "a b c d")], embeddings=long)
        places.copy()
        places.assert_equal()
