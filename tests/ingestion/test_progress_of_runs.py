"""What ``progress`` is told after each batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from stub_encoder import STORAGE, StubEncoder

from m3_connectors import Document, connect
from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings
from m3_connectors.ingestion import Chunking, IngestProgress, Ledger, ingest


class Counting(StubEncoder):
    """Says how many tokens it has encoded, as the real encoder does."""

    def encode(self, texts: Sequence[str], *, components: Sequence[Component] = COMPONENTS) -> M3Embeddings:
        counts = np.array([len(text.split()) for text in texts])
        found = super().encode(texts, components=components)
        return M3Embeddings(
            model=self.info,
            dense=found.dense,
            sparse=found.sparse,
            token_counts=counts,
            kept_token_counts=counts,
        )


def test_progress_rises_to_what_the_report_says() -> None:
    documents = [Document(f"d{i}", "one two three four. " * 8, {"n": i}) for i in range(900)]
    documents.insert(100, Document("", "no id"))
    told: list[IngestProgress] = []
    with connect("memory:", encoder=Counting(), storage=STORAGE) as index, Ledger(None) as ledger:
        report = ingest(
            documents, index, ledger=ledger, chunking=Chunking("tokens", 16), progress=told.append
        )
    assert len(told) == report.batches > 2
    for before, now in itertools.pairwise(told):
        for name in (
            "documents",
            "chunks",
            "tokens",
            "batches",
            "encoding_seconds",
            "writing_seconds",
            "seconds",
        ):
            assert getattr(before, name) <= getattr(now, name)
        assert now.documents + now.unchanged + now.refused <= now.read
    last = told[-1]
    assert (last.read, last.documents, last.refused) == (901, 900, 1)
    assert (last.chunks, last.tokens, last.chunks_under_way) == (report.chunks, report.tokens, 0)
    assert max(now.chunks_under_way for now in told) > 0
    assert report.tokens > 0
    assert last.tokens_per_second is not None
    assert last.seconds_per_write is not None
    assert 0 < last.encoder_busy_share <= 1
