"""The ledger: what it remembers of documents, across versions of its format, and when its disk is full."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stub_encoder import StubEncoder
from test_ingest import Place, corpus, text

from m3_connectors import Document, connect
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import InvalidInput
from m3_connectors.ingestion import Ledger, Origin, ingest
from m3_connectors.ingestion.ledger import Version


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class Short(StubEncoder):
    """Reads at most 10 words."""

    def encode(self, texts: Sequence[str], **options: Any) -> M3Embeddings:
        counts = np.array([len(text.split()) for text in texts])
        return (
            super()
            .encode(texts, **options)
            .replace(truncated=counts > 10, token_counts=counts, kept_token_counts=np.minimum(counts, 10))
        )


def test_truncated_documents_are_told_again_while_they_are_unchanged() -> None:
    documents = [Document("long", text(30)), *corpus(3), Document("longer", text(40))]
    documents = [Document(d.id, d.text[:20], d.metadata) if d.id[0] == "d" else d for d in documents]
    told: list[tuple[str, int | None, int | None, str]] = []
    with connect("memory:", encoder=Short()) as index, Ledger(None) as ledger:
        for file in ("a", "a", "b"):
            told.clear()
            report = ingest(
                documents,
                index,
                ledger=ledger,
                origin=lambda file=file: Origin("s", file),  # type: ignore[misc]
                on_cut=lambda cut, origin: told.append(
                    (cut.id, cut.token_count, cut.kept_token_count, origin.file)
                ),
            )
            assert told == [("long", 30, 10, file), ("longer", 40, 10, file)]
            assert (report.add.truncated, report.add.lost_tokens) == (2, 50)
        assert report.unchanged == 5
        ingest(
            [Document("long", "short now")], index, ledger=ledger, on_cut=lambda *_: pytest.fail("not cut")
        )


def test_of_a_repeated_id_only_the_last_document_is_told_as_truncated() -> None:
    between = [Document(f"d{i}", "short") for i in range(600)]
    documents = [Document("x", text(30)), *between, Document("x", "short")]
    with connect("memory:", encoder=Short()) as index, Ledger(None) as ledger:
        report = ingest(documents, index, ledger=ledger, on_cut=lambda *_: pytest.fail("not cut"))
    assert report.add.truncated == 0


def test_repeated_ids_are_told(place: Place) -> None:
    first, rest = Document("a", "first"), [*corpus(1200), Document("b", "x")]
    report, _ = place.run([first, first, *rest, Document("a", "last"), Document("d7", "last")])
    assert (report.repeated_count, set(report.repeated)) == (3, {"a", "d7"})
    kept = [d for d in rest if d.id != "d7"]
    place.assert_holds([*kept, Document("a", "last"), Document("d7", "last")])


def test_a_ledger_of_the_first_format_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        version = Version("a", 0, "s", "f", "content", "model", "none")
        ledger.begin([version])
        ledger.acknowledge([version])
    db = sqlite3.connect(path)
    for column in ("cut", "stored"):
        db.execute(f"ALTER TABLE documents DROP COLUMN {column}")
    db.execute("PRAGMA user_version = 1")
    db.close()
    for _ in range(2):
        with Ledger(path) as ledger:
            assert ledger.look_up(["a", "b"]) == {"a": version}
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(InvalidInput, match=r"another version of m3 \(format 99\)"):
        Ledger(path)


def test_odd_ids_are_told_apart() -> None:
    ids = ["a", "a\x00", "a\x00b", "é", "e\u0301", "\U0001f600", "'", '"', "%", "A"]
    with Ledger(None) as ledger:
        versions = [Version(id, 0, "", "", str(i), "m", "none") for i, id in enumerate(ids)]
        ledger.begin(versions)
        ledger.acknowledge(versions[::2])
        known = ledger.look_up(ids)
        assert known == {id: None if i % 2 else versions[i] for i, id in enumerate(ids)}
        assert ledger.see(ids) == []
        assert sorted(ledger.see([*ids, "new", "new"])) == sorted([*ids, "new"])


def test_after_a_full_disk_the_next_run_makes_the_store_whole(place: Place) -> None:
    documents = corpus(3000)
    with connect(place.url, encoder=StubEncoder(), storage=None) as index, Ledger(place.ledger) as ledger:
        (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
        ledger._db.execute(f"PRAGMA max_page_count = {pages + 120}")
        with pytest.raises(
            InvalidInput, match=r"cannot be used: database or disk is full\.\n  Mend it or its disk"
        ):
            ingest(documents, index, ledger=ledger)
        assert 0 < index.count() < 3000
        acknowledged = ledger.document_count()
    with connect(place.url, encoder=StubEncoder(), storage=None) as index, Ledger(place.ledger) as ledger:
        report = ingest(documents, index, ledger=ledger)
        assert report.unchanged == acknowledged > 0
        assert index.count() == 3000
