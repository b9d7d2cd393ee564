"""Ingestion with a ledger: what is unchanged is skipped, what is not in the store is not, and nothing is left over."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from stub_encoder import STORAGE, StubEncoder

from m3_connectors import Document, Index, connect
from m3_connectors.errors import InvalidInput
from m3_connectors.ingestion import Chunking, IngestReport, Ledger, Origin, ingest, ledger_path, verify
from m3_connectors.testing.questions import random_metadata

TOKENS = Chunking("tokens", 16)


class Place:
    """A collection with its ledger; each run has an encoder of its own, which counts."""

    def __init__(self, folder: Path) -> None:
        self.url = f"qdrant:{folder / 'data'}"
        self.ledger = folder / "ledger.sqlite"

    def run(
        self, documents: Sequence[Document], chunking: Chunking = TOKENS, **options: Any
    ) -> tuple[IngestReport, StubEncoder]:
        encoder = StubEncoder()
        with connect(self.url, encoder=encoder, storage=STORAGE) as index, Ledger(self.ledger) as ledger:
            report = ingest(iter(documents), index, ledger=ledger, chunking=chunking, **options)
        return report, encoder

    def assert_holds(self, documents: Sequence[Document], chunking: Chunking = TOKENS) -> None:
        """The store has exactly the chunks of these documents, and the ledger agrees."""
        spans = StubEncoder().token_spans
        expected = {part.id: part for document in documents for part in chunking.chunks(document, spans)}
        with self.open() as index:
            ids = list(index.scan_ids())
            assert sorted(ids) == sorted(expected)
            assert {part.id: part for part in index.get(ids) if part} == expected
            with Ledger(self.ledger) as ledger:
                found = verify(index, ledger, hashes=True)
        assert (found.missing, found.changed, found.unhashed, found.stale, found.unknown) == (0, 0, 0, 0, 0)
        assert found.documents == len({document.id for document in documents})

    def open(self) -> Index:
        return connect(self.url, create=False)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def text(words: int, word: str = "fox") -> str:
    return " ".join(f"{word}{i}" for i in range(words))


def corpus(count: int) -> list[Document]:
    return [Document(f"d{i}", f"{text(1 + i % 40)} of {i}", {"n": i}) for i in range(count)]


@pytest.mark.parametrize("how", ["none", "tokens:16:4", "headings:16"])
def test_the_second_run_encodes_nothing(place: Place, how: str) -> None:
    chunking = Chunking.parse(how)
    documents = corpus(700)
    report, encoder = place.run(documents, chunking)
    assert (report.read, report.documents, report.unchanged, report.replaced) == (700, 700, 0, 0)
    assert report.chunks == len(encoder.texts)
    assert 0 < report.encoder_busy_share <= 1
    place.assert_holds(documents, chunking)
    report, encoder = place.run(documents, chunking)
    assert (report.documents, report.unchanged, encoder.texts) == (0, 700, [])
    place.assert_holds(documents, chunking)


def test_of_1000_documents_only_the_changed_are_encoded_and_the_gone_removed(place: Place) -> None:
    before = corpus(1000)
    here = {"origin": lambda: Origin("folder", "file"), "sync": ["folder"]}
    place.run(before, **here)
    after = [Document(d.id, f"new {d.id}", d.metadata) if i % 100 == 0 else d for i, d in enumerate(before)]
    after = [d for i, d in enumerate(after) if i % 100 != 50]
    report, encoder = place.run(after, **here)
    assert sorted(encoder.texts) == sorted(f"new d{i}" for i in range(0, 1000, 100))
    assert (report.documents, report.replaced, report.removed, report.unchanged) == (10, 10, 10, 980)
    place.assert_holds(after)


def test_changed_metadata_model_and_chunking_are_changes(place: Place) -> None:
    place.run([Document("a", text(40))])
    assert place.run([Document("a", text(40), {"n": 1})])[0].replaced == 1
    for how in ("none", "tokens:16:8", "headings:32", "none"):
        chunking = Chunking.parse(how)
        assert place.run([Document("a", text(40), {"n": 1})], chunking)[0].replaced == 1
        place.assert_holds([Document("a", text(40), {"n": 1})], chunking)


@pytest.mark.parametrize("long_first", [True, False])
def test_of_a_repeated_id_the_last_remains_whatever_the_lengths(place: Place, long_first: bool) -> None:
    lengths = [200, 3] if long_first else [3, 200]
    others = corpus(600)
    documents = [Document("x", text(lengths[0])), *others, Document("x", text(lengths[1]))]
    place.run(documents)
    place.assert_holds(documents[1:])
    together = [Document("y", text(lengths[0])), Document("y", text(lengths[1]))]
    place.run([*documents[1:], *together])
    place.assert_holds([*documents[1:], together[1]])
    # The first is what the ledger has; the one in between must not make the last look unchanged.
    place.run([Document("y", "between"), together[1]])
    place.assert_holds([*documents[1:], together[1]])


def test_documents_deleted_behind_its_back_are_stored_again(place: Place) -> None:
    documents = corpus(100)
    place.run(documents)
    with place.open() as index:
        index.delete(["d7#0", "d30#1"])
    report, encoder = place.run(documents)
    assert report.missing is not None
    assert (report.missing.missing, report.missing.missing_ids) == (2, ("d30", "d7"))
    assert (report.documents, report.unchanged) == (2, 98)
    assert len(encoder.texts) == 1 + len(TOKENS.chunks(documents[30], encoder.token_spans))
    place.assert_holds(documents)


def test_documents_that_were_deleted_are_stored_again_even_if_others_hide_it_from_the_count(
    place: Place,
) -> None:
    documents = corpus(300)
    place.run(documents)
    with connect(place.url, encoder=StubEncoder(), storage=STORAGE) as index:
        index.delete(["d7#0", "d30#1", "d299#0"])
        index.add([Document(f"another program's {i}", "text") for i in range(20)])
    report, encoder = place.run(documents)
    assert (report.missing, report.documents, report.unchanged) == (None, 3, 297)
    assert len(encoder.texts) >= 3
    with place.open() as index:
        assert index.delete([f"another program's {i}" for i in range(20)]) == 20
    place.assert_holds(documents)


def test_a_dropped_collection_is_filled_again(place: Place) -> None:
    documents = corpus(100)
    place.run(documents)
    place.open().drop()
    report, _ = place.run(documents)
    assert report.missing is not None
    assert (report.missing.missing, report.documents, report.unchanged) == (100, 100, 0)
    place.assert_holds(documents)


def test_verify_finds_what_a_count_hides_and_leaves_others_alone(place: Place) -> None:
    documents = corpus(50)
    place.run(documents)
    with connect(place.url, encoder=StubEncoder(), storage=STORAGE) as index:
        index.delete(["d3#0", "d4#0"])
        chunk = {"chunk": {"parent": "d5", "position": 9}}
        index.add([Document("another program's", "text"), Document("d5#9", "of an older backup", chunk)])
        with Ledger(place.ledger) as ledger:
            found = verify(index, ledger)
    assert (found.missing_ids, found.stale, found.unknown) == (("d3", "d4"), 1, 1)
    report, _ = place.run(documents)
    assert report.documents == 3
    with place.open() as index:
        assert index.delete(["another program's"]) == 1
    place.assert_holds(documents)


@pytest.mark.parametrize("how", ["none", "tokens:16:4"])
def test_texts_and_metadata_that_were_changed_behind_its_back_are_found_by_their_hashes(
    place: Place, how: str
) -> None:
    chunking = Chunking.parse(how)
    documents = [Document(d.id, d.text, random_metadata(random.Random(i))) for i, d in enumerate(corpus(60))]
    place.run(documents, chunking)
    place.assert_holds(documents, chunking)
    with connect(place.url, encoder=StubEncoder(), storage=STORAGE) as index:
        stored = {document.id: document for document in index.scan()}
        end = "" if how == "none" else "#0"
        text, metadata, both = (stored[id] for id in (f"d7{end}", f"d8{end}", f"d30{end}"))
        index.add([Document(text.id, text.text.upper(), text.metadata)])
        index.add([Document(metadata.id, metadata.text, {**metadata.metadata, "n": 7})])
        swapped = Document(both.id, stored[f"d3{end}"].text, both.metadata)
        index.add([swapped])
        with Ledger(place.ledger) as ledger:
            assert verify(index, ledger).agrees
            found = verify(index, ledger, hashes=True)
            assert (found.changed_ids, found.missing) == (("d30", "d7", "d8"), 0)
            assert not found.agrees
    report, _ = place.run(documents, chunking)
    assert (report.documents, report.unchanged) == (3, 57)
    place.assert_holds(documents, chunking)


def test_a_restored_backup_is_found_by_ids_and_hashes(place: Place, tmp_path: Path) -> None:
    before = corpus(40)
    place.run(before)
    data = Path(place.url.partition(":")[2])
    shutil.copytree(data, tmp_path / "backup")
    after = [Document(d.id, f"new {d.text}") if i < 5 else d for i, d in enumerate(before)]
    after += [Document("later", "text")]
    place.run(after)
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "backup", data)
    with place.open() as index, Ledger(place.ledger) as ledger:
        found = verify(index, ledger, hashes=True)
    assert (found.missing_ids, found.changed_ids) == (("later",), ("d0", "d1", "d2", "d3", "d4"))
    place.run(after)
    place.assert_holds(after)


def test_a_ledger_of_an_earlier_version_says_what_it_cannot_compare(place: Place) -> None:
    place.run(corpus(3))
    place.run([Document("whole", "text")], Chunking())
    with sqlite3.connect(place.ledger) as ledger:
        for column in ("cut", "stored"):
            ledger.execute(f"ALTER TABLE documents DROP COLUMN {column}")
        ledger.execute("PRAGMA user_version = 1")
    ledger.close()
    with place.open() as index, Ledger(place.ledger) as ledger:
        found = verify(index, ledger, hashes=True)
    assert (found.unhashed, found.changed, found.missing) == (3, 0, 0)


def test_documents_whose_file_was_not_read_are_kept(place: Place) -> None:
    documents = corpus(20)
    place.run(documents, origin=lambda: Origin("folder", "file"))
    report, _ = place.run(
        documents[:5], origin=lambda: Origin("folder", "file"), sync=["folder"], unread=lambda _: True
    )
    assert (report.removed, len(report.kept)) == (0, 15)
    place.assert_holds(documents)


def test_sync_leaves_other_sources_and_documents_that_moved_alone(place: Place) -> None:
    a, b = corpus(10), [Document(f"b{i}", "text") for i in range(10)]
    place.run(a, origin=lambda: Origin("A", ""))
    place.run([*b, *a[:3]], origin=lambda: Origin("B", ""))
    report, _ = place.run(a[3:8], origin=lambda: Origin("A", ""), sync=["A"])
    assert report.removed == 2
    place.assert_holds([*b, *a[:8]])


def test_ids_that_look_like_chunks_of_others_survive(place: Place) -> None:
    documents = [Document("a", text(40)), Document("a#1", "own text"), Document("a#1#0", "another")]
    for how in ("none", "tokens:16:0", "none"):
        place.run(documents, Chunking.parse(how))
        place.assert_holds(documents, Chunking.parse(how))


def test_a_document_that_cannot_be_cut_is_named_and_the_rest_stored(place: Place) -> None:
    refused: list[tuple[str, str]] = []
    bad = Document("bad", "x", {"chunk": "mine"})
    report, _ = place.run(
        [bad, *corpus(3)], on_refused=lambda one: refused.append((one.document.id, one.stage))
    )
    assert (report.refused, report.documents) == (1, 3)
    assert refused == [("bad", "cut")]
    place.assert_holds(corpus(3))


def test_after_a_source_that_fails_what_was_stored_is_known(place: Place) -> None:
    documents = corpus(2000)

    def failing() -> Iterator[Document]:
        yield from documents
        raise OSError("the source failed")

    encoder = StubEncoder()
    with (
        connect(place.url, encoder=encoder, storage=STORAGE) as index,
        Ledger(place.ledger) as ledger,
        pytest.raises(OSError, match="the source failed"),
    ):
        ingest(failing(), index, ledger=ledger, chunking=TOKENS, sync=[""])
    report, again = place.run(documents)
    assert (report.unchanged, again.texts) == (2000, [])
    place.assert_holds(documents)


def test_the_same_collection_has_the_same_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ledger_path("qdrant:./data", "a") == ledger_path(f"qdrant:{tmp_path}/data", "a")
    assert ledger_path("qdrant:./data", "a") != ledger_path("qdrant:./data", "b")
    server = "elasticsearch+http://localhost:9200"
    assert ledger_path(server, "a") == ledger_path(f"{server}/", "a")
    assert ledger_path("elasticsearch+http://me:secret@localhost:9200", "a") == ledger_path(server, "a")


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(InvalidInput, match=r"ledger\.sqlite cannot be used"):
        Ledger(tmp_path / "ledger.sqlite")
