"""Curation before the ledger: a run that was interrupted and repeated stores what one run would have stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_encoder import STORAGE, StubEncoder

from m3_connectors import Document, connect
from m3_connectors.curation import Curation, Curator, Duplicates, Span
from m3_connectors.ingestion import IngestReport, Ledger, ingest

CURATION = Curation(words=Span(3), duplicates=Duplicates("near", 0.7))


def corpus(count: int) -> list[Document]:
    """Of each ten documents, two differ from the one before in one word or not at all, and one is too short."""
    documents = []
    for i in range(count):
        base = i - (i % 10 in (3, 7))
        words = [f"w{base}x{j}" for j in range(60)]
        if i % 10 == 7:
            words[30] = "changed"
        documents.append(Document(f"d{i}", "two words" if i % 10 == 9 else " ".join(words)))
    return documents


def run(folder: Path, documents: list[Document], stop: int | None = None) -> tuple[IngestReport, list[str]]:
    """Store curated documents; return the ids that were dropped."""

    def read() -> Iterator[Document]:
        for i, document in enumerate(documents):
            if i == stop:
                raise OSError("the source failed")
            yield document

    dropped: list[str] = []
    with (
        connect(f"qdrant:{folder / 'data'}", encoder=StubEncoder(), storage=STORAGE) as index,
        Ledger(folder / "ledger") as ledger,
        Curator(CURATION.stages(), lambda drop: dropped.append(drop.document.id)) as curator,
    ):
        report = ingest(curator.curated(read()), index, ledger=ledger, sync=[""])
    return report, dropped


def stored(folder: Path, documents: list[Document]) -> set[str]:
    with connect(f"qdrant:{folder / 'data'}", create=False) as index:
        return {document.id for document in index.get([d.id for d in documents]) if document}


def test_an_interrupted_run_and_the_next_decide_as_one_run(tmp_path: Path) -> None:
    documents = corpus(1500)
    whole, expected = run(tmp_path / "one", documents)
    assert len(expected) == 450
    for stop in (1, 604, 1203):
        with pytest.raises(OSError, match="the source failed"):
            run(tmp_path / "two", documents, stop)
    report, dropped = run(tmp_path / "two", documents)
    assert dropped == expected
    assert report.documents + report.unchanged == whole.documents == 1050
    assert report.unchanged > 0
    assert report.removed == 0
    assert stored(tmp_path / "two", documents) == stored(tmp_path / "one", documents)


def test_what_is_dropped_now_is_removed_and_what_is_kept_again_is_stored(tmp_path: Path) -> None:
    documents = corpus(200)
    run(tmp_path, documents)
    first = documents[2]
    assert stored(tmp_path, [first]) == {"d2"}
    without = [document for document in documents if document is not first]
    report, dropped = run(tmp_path, without)
    assert (report.documents, report.removed) == (1, 1)
    assert "d3" not in dropped
    assert stored(tmp_path, documents[2:4]) == {"d3"}
    report, dropped = run(tmp_path, documents)
    assert (report.documents, report.removed) == (1, 1)
    assert stored(tmp_path, documents[2:4]) == {"d2"}
