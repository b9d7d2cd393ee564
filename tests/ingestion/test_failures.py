"""Documents that are refused are named and the rest is stored; a store that is down is waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from stub_encoder import STORAGE, StubEncoder

from m3_connectors import Document, Index, connect
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import (
    BackendError,
    InvalidInput,
    PartialWrite,
    Rejected,
    StorageFull,
    Throttled,
    Unavailable,
    Unsupported,
)
from m3_connectors.ingestion import Chunking, IngestReport, Ledger, RefusedDocument, Wait, failures, ingest

WHERE = {"backend": "memory", "operation": "upsert"}
Upsert = Callable[[MemoryBackend, Sequence[Document], M3Embeddings], Any]


class Picky(StubEncoder):
    """Fails on every batch with the word ``bad`` in it."""

    def encode(self, texts: Sequence[str], **options: Any) -> M3Embeddings:
        if any("bad" in text for text in texts):
            raise RuntimeError("the tokenizer failed")
        return super().encode(texts, **options)


class Place:
    """A collection in memory with its ledger."""

    def __init__(self, encoder: StubEncoder | None = None) -> None:
        self.encoder = encoder or StubEncoder()
        self.index: Index = connect("memory:", encoder=self.encoder, storage=STORAGE)
        self.ledger = Ledger(None)
        self.refused: list[RefusedDocument] = []
        self.waits: list[Wait] = []

    def run(self, documents: Sequence[Document], **options: Any) -> IngestReport:
        self.refused.clear()
        return ingest(
            iter(documents),
            self.index,
            ledger=self.ledger,
            on_refused=self.refused.append,
            on_wait=self.waits.append,
            **options,
        )

    @property
    def named(self) -> list[tuple[str, str, str]]:
        return [(one.document.id, one.stage, one.reason) for one in self.refused]


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    with place.index, place.ledger:
        yield place


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(failures, "_LONGEST_PAUSE_SECONDS", 0.01)


def corpus(count: int, bad: Sequence[int] = ()) -> list[Document]:
    return [Document(f"d{i}", f"{'bad' if i in bad else 'good'} text {i}") for i in range(count)]


def refusing(
    monkeypatch: pytest.MonkeyPatch, refuse: Callable[[Sequence[Document]], Exception | None]
) -> list[list[str]]:
    """Make the store raise what ``refuse`` returns for the documents of a write; return the ids of every write."""
    upsert, calls = MemoryBackend._upsert, []

    async def picky(self: MemoryBackend, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        calls.append([document.id for document in documents])
        error = refuse(documents)
        if isinstance(error, PartialWrite):
            rows = [i for i, document in enumerate(documents) if document.id not in error.failed]
            if rows:
                some = M3Embeddings.concatenate([embeddings[i] for i in rows])
                await upsert(self, [documents[i] for i in rows], some)
        elif error is None:
            await upsert(self, documents, embeddings)
        if error is not None:
            raise error

    monkeypatch.setattr(MemoryBackend, "_upsert", picky)
    return calls


def test_what_cannot_be_encoded_is_named_and_the_rest_is_stored() -> None:
    place = Place(Picky())
    bad = [3, 4, 511, 512, 1300]
    with place.index, place.ledger:
        report = place.run(corpus(1500, bad))
        assert place.named == [(f"d{i}", "encode", "RuntimeError: the tokenizer failed") for i in bad]
        assert (report.documents, report.refused, place.index.count()) == (1495, 5, 1495)
        again = place.run(corpus(1500, [4]))  # mended, but one
        assert (again.documents, again.unchanged, again.refused) == (4, 1495, 1)


def by_id(error: Callable[[Sequence[str]], Exception]) -> Callable[[Sequence[Document]], Exception | None]:
    def refuse(documents: Sequence[Document]) -> Exception | None:
        bad = [document.id for document in documents if "bad" in document.text]
        return error(bad) if bad else None

    return refuse


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (lambda ids: Rejected("too large", **WHERE), "memory upsert: too large"),
        (lambda ids: InvalidInput("a value is NaN"), "a value is NaN"),
        (lambda ids: PartialWrite(dict.fromkeys(ids, "mapping\nmore"), **WHERE), "mapping"),
        (lambda ids: Unsupported("the document takes 40 MiB"), "the document takes 40 MiB"),
    ],
)
def test_what_cannot_be_written_is_named_and_the_rest_is_stored(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[Sequence[str]], Exception],
    reason: str,
) -> None:
    bad = [0, 7, 8, 700]
    refusing(monkeypatch, by_id(error))
    report = place.run(corpus(1100, bad))
    assert place.named == [(f"d{i}", "write", reason) for i in bad]
    assert (report.documents, report.chunks, report.refused, place.index.count()) == (1096, 1096, 4, 1096)
    monkeypatch.undo()
    assert place.run(corpus(1100, bad)).documents == 4
    assert place.index.count() == 1100


def test_of_a_partial_write_that_was_throttled_nothing_is_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([PartialWrite({"d1": "429", "d2": "400"}, **WHERE), Throttled("429", **WHERE), None])

    def refuse(documents: Sequence[Document]) -> Exception | None:
        if [document.id for document in documents] == ["d2"]:
            return PartialWrite({"d2": "400"}, **WHERE)
        return next(answers)

    refusing(monkeypatch, refuse)
    report = place.run(corpus(4))
    assert place.named == [("d2", "write", "400")]
    assert (report.documents, place.index.count()) == (3, 3)
    assert [wait.is_over for wait in place.waits] == [False, True]


def test_a_store_that_is_down_is_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([None, *[Unavailable("no connection", **WHERE)] * 5])
    calls = refusing(monkeypatch, lambda _: next(answers, None))
    report = place.run(corpus(1400))
    assert (report.documents, report.refused, place.index.count()) == (1400, 0, 1400)
    assert [wait.is_over for wait in place.waits] == [False] * 5 + [True]
    assert place.waits[0].reason == "memory upsert: no connection"
    assert 0 < place.waits[-1].waited_seconds == report.waited_seconds
    assert len(calls) == 3 + 5


def test_a_throttled_request_is_repeated_even_if_the_store_did_not(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = Throttled("no memory for a request of this size", **WHERE)
    error.retryable = False
    answers = iter([error, error])
    refusing(monkeypatch, lambda _: next(answers, None))
    assert place.run(corpus(3)).documents == 3
    assert [wait.is_over for wait in place.waits] == [False, False, True]


def test_a_delete_is_waited_for_as_well(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.run([Document("a", "word " * 40)], chunking=Chunking("tokens", 16))
    delete, down = MemoryBackend._delete, [Unavailable("no connection", **WHERE)]

    async def fails(self: MemoryBackend, ids: Sequence[str]) -> int:
        if down:
            raise down.pop()
        return await delete(self, ids)

    monkeypatch.setattr(MemoryBackend, "_delete", fails)
    assert place.run([Document("a", "word")], chunking=Chunking("tokens", 16)).replaced == 1
    assert place.index.count() == 1
    assert len(place.waits) == 2


def test_a_store_that_stays_down_ends_the_run_and_the_next_one_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([None])
    refusing(monkeypatch, lambda _: next(answers, Unavailable("no connection", **WHERE)))
    with pytest.raises(Unavailable) as raised:
        place.run(corpus(1400), wait_seconds=0.05)
    assert "waited" in raised.value.__notes__[0]
    assert place.index.count() == 512
    monkeypatch.undo()
    report = place.run(corpus(1400))
    assert (report.documents, report.unchanged, place.index.count()) == (888, 512, 1400)


@pytest.mark.parametrize(
    "error", [StorageFull("the disk is full", **WHERE), BackendError("what is this?", **WHERE)]
)
def test_errors_of_the_store_end_the_run_at_once(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    calls = refusing(monkeypatch, lambda _: error)
    with pytest.raises(type(error)):
        place.run(corpus(600))
    assert len(calls) == 1
    assert place.refused == []


def test_if_all_documents_are_refused_the_run_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = refusing(monkeypatch, lambda _: Rejected("read only", **WHERE))
    with pytest.raises(Rejected) as raised:
        place.run(corpus(2000))
    assert "100 documents in a row" in raised.value.__notes__[0]
    assert len(calls) < 300


def test_of_a_document_that_was_cut_the_refused_chunk_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"w{i}" for i in range(60)]
    document = Document("a", " ".join([*words[:30], "bad", *words[30:]]), {"n": 1})
    refusing(monkeypatch, by_id(lambda ids: Rejected("refused", **WHERE)))
    tokens = Chunking("tokens", 20)
    count = len(tokens.chunks(document, place.encoder.token_spans))
    report = place.run([document, *corpus(3)], chunking=tokens)
    (refused,) = place.refused
    assert refused.document is document
    assert refused.reason == f"chunk 2 of {count}: memory upsert: refused"
    assert (report.documents, report.refused) == (3, 1)
    monkeypatch.undo()
    assert place.run([document, *corpus(3)], chunking=tokens).documents == 1


def test_what_is_no_valid_document_is_named(place: Place) -> None:
    odd = [Document("", "no id"), Document("x", "y", {"a": object()}), Document("z", "\ud800")]
    report = place.run([odd[0], *corpus(2), *odd[1:]])
    assert [(one.document.id, one.stage) for one in place.refused] == [
        ("", "read"),
        ("x", "read"),
        ("z", "read"),
    ]
    assert (report.read, report.documents, report.refused) == (5, 2, 3)
    with pytest.raises(InvalidInput, match=r"it must be a Document"):
        place.run(["a text"])  # type: ignore[list-item]
