"""The three scores against their formulas, written as plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from m3_connectors import scoring
from m3_connectors.embeddings import COMPONENTS, M3Embeddings, MultiVectors
from m3_connectors.errors import InvalidInput
from m3_connectors.scoring import (
    dense_scores,
    multivector_scores,
    multivector_scores_of_pairs,
    score,
    sparse_scores,
)

WIDTH = 5
VOCABULARY = 12

NUMBERS = st.floats(-1, 1, width=32)
VECTORS = st.lists(NUMBERS, min_size=WIDTH, max_size=WIDTH)
MATRICES = st.lists(VECTORS, min_size=1, max_size=6)
WEIGHTS = st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(0.0009765625, 4, width=32), max_size=8)


def dot(a: list[float], b: list[float]) -> float:
    total = 0.0
    for x, y in zip(a, b, strict=True):
        total += x * y
    return total


def csr(rows: list[dict[int, float]]) -> sp.csr_array:
    dense = np.zeros((len(rows), VOCABULARY), dtype=np.float32)
    for i, row in enumerate(rows):
        for token, weight in row.items():
            dense[i, token] = weight
    return sp.csr_array(dense)


def batch(texts: list[tuple[list[float], dict[int, float], list[list[float]]]]) -> M3Embeddings:
    return M3Embeddings(
        np.array([dense for dense, _, _ in texts], dtype=np.float32),
        csr([weights for _, weights, _ in texts]),
        MultiVectors.from_list([rows for _, _, rows in texts], WIDTH),
    )


TEXTS = st.tuples(VECTORS, WEIGHTS, MATRICES)


@given(VECTORS, st.lists(VECTORS, min_size=1, max_size=5))
def test_dense_is_the_inner_product(query: list[float], documents: list[list[float]]) -> None:
    got = dense_scores(np.array(query, dtype=np.float32), np.array(documents, dtype=np.float32))
    np.testing.assert_allclose(got, [dot(query, document) for document in documents], atol=1e-5)


@given(WEIGHTS, st.lists(WEIGHTS, min_size=1, max_size=5))
def test_sparse_sums_over_shared_tokens(query: dict[int, float], documents: list[dict[int, float]]) -> None:
    want = []
    for document in documents:
        total = 0.0
        for token, weight in query.items():
            if token in document:
                total += weight * document[token]
        want.append(total)
    got = sparse_scores(csr([query]), csr(documents))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5)


@given(MATRICES, st.lists(MATRICES, min_size=1, max_size=5))
def test_multivector_is_the_mean_of_the_best(
    query: list[list[float]], documents: list[list[list[float]]]
) -> None:
    want = []
    for document in documents:
        total = 0.0
        for row in query:
            best = -math.inf
            for other in document:
                best = max(best, dot(row, other))
            total += best
        want.append(total / len(query))
    got = multivector_scores(np.array(query, dtype=np.float32), MultiVectors.from_list(documents, WIDTH))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=5), st.data())
def test_a_score_depends_on_its_own_document_only(
    query: Any, documents: list[Any], data: st.DataObject
) -> None:
    everything = batch(documents)
    i = data.draw(st.integers(0, len(documents) - 1))
    for component in COMPONENTS:
        together = score(component, batch([query]), everything)
        alone = score(component, batch([query]), batch([documents[i]]))
        np.testing.assert_allclose(together[i], alone[0], atol=1e-6)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    documents = MultiVectors.from_list([rng.normal(size=(n, WIDTH)) for n in (1, 9, 2, 30, 1, 1, 4)], WIDTH)
    query = rng.normal(size=(3, WIDTH)).astype(np.float32)
    whole = multivector_scores(query, documents)
    for floats in (1, 12, 30, 31, 100):
        monkeypatch.setattr(scoring, "_BLOCK_FLOATS", floats)
        np.testing.assert_allclose(multivector_scores(query, documents), whole, atol=1e-6)


@given(
    st.lists(MATRICES, min_size=1, max_size=4),
    st.lists(MATRICES, min_size=1, max_size=5),
    st.sampled_from([(1, 1), (2, 3), (2048, 2048)]),
    st.data(),
)
def test_pairs_have_the_scores_of_single_queries(
    queries: list[Any], documents: list[Any], tile: tuple[int, int], data: st.DataObject
) -> None:
    position = st.integers(0, len(documents) - 1)
    wanted = [data.draw(st.lists(position, max_size=6)) for _ in queries]
    rows = [np.array(document, dtype=np.float32) for document in documents]
    asked = [np.array(query, dtype=np.float32) for query in queries]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_TILE_ROWS", tile[0])
        patch.setattr(scoring, "_TILE_COLUMNS", tile[1])
        got = multivector_scores_of_pairs(asked, rows, wanted)
    assert len(got) == len(queries)
    for query, positions, scores in zip(asked, wanted, got, strict=True):
        want = multivector_scores(query, MultiVectors.from_list(documents, WIDTH))[positions]
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, want, atol=1e-6)


def test_a_document_is_multiplied_by_the_queries_that_want_it_and_no_others() -> None:
    """Every other query has rows of another width, which could not be multiplied."""
    rng = np.random.default_rng(0)
    asked = [rng.random((2, width), dtype=np.float32) for width in (3, 4, 3, 4)]
    rows = [rng.random((5, width), dtype=np.float32) for width in (3, 4)]
    got = multivector_scores_of_pairs(asked, rows, [[0], [1], [0, 0], []])
    assert [len(scores) for scores in got] == [1, 1, 2, 0]
    assert got[2][0] == got[2][1] == pytest.approx((asked[2] @ rows[0].T).max(axis=1).mean())


def test_a_side_without_rows_has_no_multivector_score() -> None:
    row = np.ones((1, WIDTH), dtype=np.float32)
    with pytest.raises(InvalidInput, match="no multi-vector rows, so its score is undefined"):
        multivector_scores(row[:0], MultiVectors.from_list([row], WIDTH))
    with pytest.raises(InvalidInput, match="no multi-vector rows, so its score is undefined"):
        multivector_scores(row, MultiVectors.from_list([row, row[:0]], WIDTH))
    assert multivector_scores(row, MultiVectors.from_list([], WIDTH)).shape == (0,)
    for queries, documents in (([row[:0]], [row]), ([row], [row[:0]])):
        with pytest.raises(InvalidInput, match="no multi-vector rows, so its score is undefined"):
            multivector_scores_of_pairs(queries, documents, [[0]])
    assert multivector_scores_of_pairs([], [], []) == []


def test_a_query_is_one_text_that_has_the_component() -> None:
    texts = batch([([1.0] * WIDTH, {1: 1.0}, [[1.0] * WIDTH])] * 2)
    with pytest.raises(InvalidInput, match="embeddings of 2 texts; it must have one"):
        score("dense", texts, texts)
    with pytest.raises(InvalidInput, match="sparse cannot be scored"):
        score("sparse", M3Embeddings(dense=texts.dense[:1]), texts)  # type: ignore[index]
