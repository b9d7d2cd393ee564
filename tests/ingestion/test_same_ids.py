"""The same id more than once: in one run, as the id of a chunk, in runs at the same time, and in invalid documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stub_encoder import STORAGE, StubEncoder
from test_ingest import TOKENS, text

from m3_connectors import Document, Index, connect
from m3_connectors.ingestion import Chunking, Ledger, Origin, RefusedDocument, ingest, verify
from m3_connectors.ingestion.ledger import Version


@pytest.fixture
def index() -> Iterator[Index]:
    with connect("memory:", encoder=StubEncoder(), storage=STORAGE) as index:
        yield index


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger(None) as ledger:
        yield ledger


def of(source: str) -> dict[str, Any]:
    return {"origin": lambda: Origin(source, "")}


def test_the_last_remains_if_it_is_what_an_earlier_run_stored(index: Index, ledger: Ledger) -> None:
    chunking = Chunking("tokens", 16, 8)  # the overlap makes several batches of a group of documents
    before, other = Document("x", "before"), Document("x", "other")
    ingest([before], index, ledger=ledger, chunking=chunking)
    first = [Document(f"a{i}", "short") for i in range(511)]
    between = [Document(f"b{i}", " ".join(["f"] * 64)) for i in range(400)]
    ingest([*first, other, *between, before], index, ledger=ledger, chunking=chunking)
    (found,) = index.get(["x#0"])
    assert found is not None
    assert found.text == "before"
    assert verify(index, ledger, hashes=True).agrees


def test_a_document_does_not_replace_a_chunk_of_another_source(index: Index, ledger: Ledger) -> None:
    refused: list[RefusedDocument] = []
    ingest([Document("a", text(40))], index, ledger=ledger, chunking=TOKENS, **of("A"))
    documents = [Document("a#1", "own text"), Document("a#3", "behind its last chunk")]
    report = ingest(documents, index, ledger=ledger, on_refused=refused.append, **of("B"))
    assert (report.documents, report.refused) == (1, 1)
    assert [(one.document.id, one.stage, one.reason) for one in refused] == [
        ("a#1", "write", "a chunk of document 'a' from 'A' has the same id")
    ]
    assert verify(index, ledger, hashes=True).agrees


def test_a_document_that_was_replaced_by_a_chunk_is_not_unchanged(index: Index, ledger: Ledger) -> None:
    whole = Document("a#1", "own text")
    ingest([whole], index, ledger=ledger)
    ingest([Document("a", text(40))], index, ledger=ledger, chunking=TOKENS)
    assert verify(index, ledger, hashes=True).agrees
    assert ingest([whole], index, ledger=ledger).documents == 1
    assert ledger.look_up(["a"]) == {"a": None}


def test_sync_keeps_a_document_that_is_no_longer_valid(index: Index, ledger: Ledger) -> None:
    documents = [Document("a", "one"), Document("b", "two")]
    ingest(documents, index, ledger=ledger, **of("A"))
    invalid = Document("a", "one", {"n": 10**400})
    no_ids = [Document("\ud800", "no id"), Document(7, "no id")]  # type: ignore[arg-type]
    report = ingest([invalid, *no_ids], index, ledger=ledger, sync=["A"], **of("A"))
    assert (report.refused, report.removed) == (3, 1)
    assert list(index.scan_ids()) == ["a"]


@pytest.mark.parametrize("chunks", [(0, 0), (2, 2), (2, 5), (5, 2)])
@pytest.mark.parametrize("first", [0, 1])
def test_of_two_runs_that_write_a_document_at_the_same_time_none_is_acknowledged(
    tmp_path: Path, chunks: tuple[int, int], first: int
) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as one, Ledger(path) as other:
        runs = [
            (ledger, Version("a", count, "", "", f"content {i}", "m", "none"))
            for i, (ledger, count) in enumerate(zip((one, other), chunks, strict=True))
        ]
        for ledger, version in runs:
            ledger.begin([version])
        for ledger, version in (runs[first], runs[1 - first]):
            ledger.acknowledge([version])
        assert one.look_up(["a"]) in ({}, {"a": None})


def test_what_another_run_has_stored_since_the_ledger_was_asked_is_removed(ledger: Ledger) -> None:
    class Interrupting(StubEncoder):
        """Before the first document is cut, another run stores a longer version of it."""

        def token_spans(self, text: str) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
            if not ledger.document_count():
                longer = Version("a", 5, "", "", "longer", "m", "none")
                ledger.begin([longer])
                index.add([Document(f"a#{i}", "longer") for i in range(5)])
                ledger.acknowledge([longer])
            return super().token_spans(text)

    with connect("memory:", encoder=Interrupting(), storage=STORAGE) as index:
        ingest([Document("a", text(3))], index, ledger=ledger, chunking=TOKENS)
        assert list(index.scan_ids()) == ["a#0"]


@pytest.mark.parametrize("hashes", [False, True])
def test_verify_does_not_name_what_another_run_stores_meanwhile(
    index: Index, ledger: Ledger, hashes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest([Document("a", "before"), Document("b", "lost")], index, ledger=ledger)
    index.delete(["b"])
    index.add(
        [Document("other", "of another program")]
    )  # as many as the ledger knows: no run compares by itself
    compared = Ledger.compared

    def after_another_run(self: Ledger) -> Iterator[list[tuple[Version, list[str]]]]:
        ingest([Document("a", "after"), Document("c", "new")], index, ledger=ledger)
        return compared(self)

    monkeypatch.setattr(Ledger, "compared", after_another_run)
    found = verify(index, ledger, hashes=hashes)
    assert (found.missing_ids, found.changed_ids) == (("b",), ())
    assert ledger.look_up(["a", "c"]).keys() == {"a", "c"}
    assert None not in ledger.look_up(["a", "c"]).values()


def test_documents_of_other_programs_that_have_ids_like_chunks_are_left_alone(
    index: Index, ledger: Ledger
) -> None:
    ingest([Document("a", text(40))], index, ledger=ledger, chunking=TOKENS)
    others = [Document("a#7", "of another program"), Document("a#123456789", "of another program")]
    index.add(others)
    found = verify(index, ledger)
    assert (found.stale, found.unknown) == (0, 2)
    ingest([Document("a", text(3))], index, ledger=ledger, chunking=TOKENS)
    assert index.get(["a#7", "a#123456789"]) == others
