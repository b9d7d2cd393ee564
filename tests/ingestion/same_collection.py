"""Whether two collections are the same: ids, texts, metadata, and the scores of exact searches."""

from __future__ import annotations

import pytest
from stub_encoder import StubEncoder

from m3_connectors import Document, Index
from m3_connectors.methods import MethodName


def documents_of(index: Index) -> dict[str, Document]:
    ids = list(index.scan_ids())
    assert len(ids) == len(set(ids)) == index.count()
    return {document.id: document for document in index.get(ids) if document is not None}


def assert_same(index: Index, other: Index) -> None:
    expected = documents_of(other)
    assert expected
    assert documents_of(index) == expected
    queries = [StubEncoder().encode([f"query {i}"]) for i in range(20)]
    methods: tuple[MethodName, ...] = ("dense", "sparse", "dense_sparse")
    for method in methods:
        found = index.search_many(queries, method=method, k=100, exact=True)
        for hits, wanted in zip(
            found, other.search_many(queries, method=method, k=100, exact=True), strict=True
        ):
            _assert_same_scores(
                {hit.document.id: hit.score for hit in hits}, {hit.document.id: hit.score for hit in wanted}
            )


def _assert_same_scores(scores: dict[str, float], wanted: dict[str, float]) -> None:
    """Compare scores in order and by id; of documents with equal scores, either may be behind the last hit."""
    assert list(scores.values()) == pytest.approx(list(wanted.values()), abs=1e-5)
    for id, score in scores.items():
        assert wanted.get(id, min(wanted.values())) == pytest.approx(score, abs=1e-5), id
