"""Synthetic corpora: each document follows from the seed and its number, and is shaped like M3's output."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_connectors.bench.scenario import CorpusSettings, Rows
from m3_connectors.bench.synthetic import Corpus, filter_for
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.filters import matches, parse_filter
from m3_connectors.scoring import score

SHAPE = CorpusSettings(dimension=96, rows=Rows(mean=20), vocabulary=5000, topics=20, query_rows=12)
CORPUS = Corpus(SHAPE, 1000, seed=7)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 990), st.integers(1, 10), st.integers(0, 9))
def test_a_document_is_the_same_in_whatever_batch_it_is_made(start: int, length: int, at: int) -> None:
    documents, embeddings = CORPUS.batch(start, start + length)
    i = at % length
    alone, vectors = CORPUS.batch(start + i, start + i + 1)
    assert alone == documents[i : i + 1]
    assert _close(vectors, embeddings[i])


def _close(one: M3Embeddings, other: M3Embeddings) -> bool:
    """Equal; in another batch a sum may differ in its last bit."""
    assert one.dense is not None
    assert other.dense is not None
    assert one.sparse is not None
    assert other.sparse is not None
    assert one.multivectors is not None
    assert other.multivectors is not None
    return (
        np.allclose(one.dense, other.dense, atol=1e-7)
        and (one.sparse != other.sparse).nnz == 0
        and np.array_equal(one.multivectors.offsets, other.multivectors.offsets)
        and np.allclose(one.multivectors.rows, other.multivectors.rows, atol=1e-7)
    )


def test_the_same_seed_makes_the_same_corpus_and_a_larger_one_begins_with_the_smaller() -> None:
    _, first = CORPUS.batch(0, 50)
    _, again = Corpus(SHAPE, 1000, seed=7).batch(0, 50)
    _, larger = Corpus(SHAPE, 2000, seed=7).batch(0, 50)
    _, other = Corpus(SHAPE, 1000, seed=8).batch(0, 50)
    assert first.dense is not None
    assert again.dense is not None
    assert np.array_equal(first.dense, again.dense)
    assert _close(first, larger)
    assert not _close(first[:1], other[:1])


@pytest.mark.parametrize(
    ("change", "documents", "seed", "same"),
    [
        ({}, 1000, 7, True),
        ({"query_rows": 99}, 1000, 7, True),
        ({"documents": (5,)}, 1000, 7, True),
        ({}, 999, 7, False),
        ({}, 1000, 8, False),
        ({"dimension": 97}, 1000, 7, False),
        ({"rows": Rows(mean=21)}, 1000, 7, False),
        ({"topics": 21}, 1000, 7, False),
    ],
)
def test_the_fingerprint_tells_what_documents_there_are(
    change: dict[str, Any], documents: int, seed: int, same: bool
) -> None:
    shape = SHAPE.model_copy(update=change)
    assert (Corpus(shape, documents, seed).fingerprint == CORPUS.fingerprint) == same


def test_batches_are_bounded_and_hold_everything_once() -> None:
    ids, largest = [], 0
    for documents, embeddings in CORPUS.batches(200_000):
        ids += [document.id for document in documents]
        assert embeddings.multivectors is not None
        largest = max(largest, embeddings.multivectors.rows.nbytes)
    assert len(ids) == len(set(ids)) == 1000
    assert largest < 400_000


def test_memory_does_not_grow_with_the_corpus() -> None:
    def peak_bytes(documents: int) -> int:
        corpus = Corpus(SHAPE.model_copy(update={"rows": Rows(mean=2)}), documents, seed=1)
        tracemalloc.start()
        for _ in corpus.batches(50_000):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_bytes(4000) < 1.5 * peak_bytes(400)


def test_vectors_are_shaped_like_those_of_m3() -> None:
    _, embeddings = CORPUS.batch(0, 1000)
    assert embeddings.dense is not None
    assert embeddings.sparse is not None
    assert embeddings.multivectors is not None
    for rows in (embeddings.dense, embeddings.multivectors.rows):
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    cosines = (embeddings.dense @ embeddings.dense.T)[np.triu_indices(1000, 1)]
    assert 0.3 < cosines.mean() < 0.4  # a common direction
    assert np.percentile(cosines, 99.5) > 0.5  # and clusters
    assert embeddings.sparse.data.min() > 0
    assert embeddings.sparse.indices.min() >= 4
    assert embeddings.multivectors.counts.mean() == pytest.approx(20, rel=0.1)
    assert embeddings.multivectors.counts.std() > 5
    own = [
        rows.mean(axis=0) @ dense
        for rows, dense in zip(embeddings.multivectors, embeddings.dense, strict=True)
    ]
    others = [rows.mean(axis=0) @ embeddings.dense[i - 1] for i, rows in enumerate(embeddings.multivectors)]
    assert np.mean(own) > np.mean(others) + 0.2  # rows lean on their text


def test_tokens_follow_zipf_and_frequent_ones_weigh_little() -> None:
    _, embeddings = CORPUS.batch(0, 1000)
    assert embeddings.sparse is not None
    frequency = np.asarray((embeddings.sparse > 0).sum(axis=0)).ravel()
    ordered = np.sort(frequency)[::-1]
    assert ordered[:10].sum() > 5 * ordered[100:110].sum() > 0
    weights = np.asarray(embeddings.sparse.sum(axis=0)).ravel()
    common = np.argsort(-frequency)[:5]
    rare = np.flatnonzero(frequency == 1)
    assert weights[common].sum() / frequency[common].sum() < 0.5 * weights[rare].mean()


@pytest.mark.parametrize("component", ["dense", "sparse", "multivector"])
def test_a_query_finds_its_document_among_rivals(component: Any) -> None:
    _, embeddings = CORPUS.batch(0, 1000)
    queries = CORPUS.queries(40)
    ranks, gaps = [], []
    for i, query in enumerate(queries):
        scores = score(component, query, embeddings)
        own = scores[CORPUS.source(i)]
        ranks.append(int((scores > own).sum()))
        gaps.append(np.sort(scores)[-2] / scores.max())
    assert np.median(ranks) < 10
    assert np.median(gaps) > 0.5  # a rival is near


def test_queries_are_the_same_whatever_their_number() -> None:
    assert _close(CORPUS.queries(3), CORPUS.queries(5)[:3])
    counts = CORPUS.queries(5).multivectors
    assert counts is not None
    assert counts.counts.tolist() == [12] * 5


@pytest.mark.parametrize("selectivity", [0.01, 0.1, 0.5, 1.0])
def test_so_many_documents_pass_a_filter_as_it_says(selectivity: float) -> None:
    documents, _ = CORPUS.batch(0, 1000)
    passing = sum(matches(parse_filter(filter_for(selectivity)), document.metadata) for document in documents)
    assert passing == CORPUS.passing(selectivity)
    assert passing == pytest.approx(1000 * selectivity, abs=3)


def test_documents_of_a_single_row_have_no_tokens() -> None:
    corpus = Corpus(SHAPE.model_copy(update={"rows": Rows(mean=1, spread=0)}), 5, seed=1)
    documents, embeddings = corpus.batch(0, 5)
    assert embeddings.sparse is not None
    assert embeddings.multivectors is not None
    assert embeddings.sparse.nnz == 0
    assert embeddings.multivectors.counts.tolist() == [1] * 5
    assert {document.text for document in documents} == {""}
    assert len(corpus.queries(2)) == 2


def test_the_shape_of_a_corpus_is_that_of_its_documents() -> None:
    documents, embeddings = CORPUS.batch(0, 1000)
    assert embeddings.sparse is not None
    assert embeddings.multivectors is not None
    assert CORPUS.shape() == {
        "rows": pytest.approx(embeddings.multivectors.counts.mean()),
        "distinct_tokens": pytest.approx(embeddings.sparse.nnz / 1000),
        "text_bytes": pytest.approx(sum(len(document.text) for document in documents) / 1000),
    }


def test_what_is_said_of_shared_tokens_is_so() -> None:
    corpus = Corpus(SHAPE.model_copy(update={"query_rows": 3, "vocabulary": 100_000}), 100, seed=3)
    _, documents = corpus.batch(0, 100)
    queries = corpus.queries(60)
    assert documents.sparse is not None
    assert queries.sparse is not None
    shared = [documents.sparse[[corpus.source(i)]].multiply(queries.sparse[[i]]).nnz > 0 for i in range(60)]
    assert shared == [corpus.shares_a_token(i) for i in range(60)]
    assert 0 < sum(shared) < 60
