"""Evaluation: BEIR folders, BM25, the measures, and runs over an index."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from m3_connectors.blocking import connect
from m3_connectors.documents import Document
from m3_connectors.encoder.encoder import M3Encoder
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.dataset import Corpus, Dataset
from m3_connectors.evaluation.bm25 import BM25, K1, B, tokenise
from m3_connectors.evaluation.measures import measure
from m3_connectors.evaluation.run import run_method, store_corpus
from m3_connectors.methods import DENSE, METHODS, MULTI_VEC

class TestTokenise:
    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            ("The QUICK fox_1, isn't", ["the", "quick", "fox_1", "isn", "t"]),
            ("naïve Straße", ["naïve", "straße"]),
            ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # vowel signs and virama stay inside words
            ("مُحَمَّد كتاب", ["مُحَمَّد", "كتاب"]),  # so do Arabic short vowels
            ("北京大学", ["北京", "京大", "大学"]),
            ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
            ("한국어", ["한국", "국어"]),
            ("ภาษา", ["ภา", "าษ", "ษา"]),
            ("中", ["中"]),
            ("iPhone手机15", ["iphone", "手机", "15"]),
            ("", []),
            ("!? …", []),
        ],
    )
    def test_words_and_bigrams(self, text: str, tokens: list[str]) -> None:
        assert tokenise(text) == tokens


class TestBM25:
    def test_scores_are_those_of_the_formula(self) -> None:
        texts = ["a a b", "b c", "c c c c d", "e"]
        documents = [Document(str(i), text) for i, text in enumerate(texts)]
        lengths = [len(text.split()) for text in texts]
        mean = sum(lengths) / len(lengths)

        def score(query: str, i: int) -> float:
            total = 0.0
            for token in query.split():
                df = sum(token in text.split() for text in texts)
                tf = texts[i].split().count(token)
                idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
                total += idf * tf / (tf + K1 * (1 - B + B * lengths[i] / mean))
            return total

        for query in ("a", "b c", "c d", "b b e"):
            expected = sorted(range(4), key=lambda i: (-score(query, i), str(i)))
            expected = [i for i in expected if score(query, i) > 0]
            assert BM25(documents).search(query, 10) == [str(i) for i in expected]

    def test_only_documents_that_share_a_token_ties_by_id(self) -> None:
        bm25 = BM25([Document("b", "same"), Document("a", "same"), Document("c", "other")])
        assert bm25.search("same", 10) == ["a", "b"]
        assert bm25.search("same", 1) == ["a"]
        assert bm25.search("nowhere", 10) == bm25.search("", 10) == []

    def test_a_corpus_without_tokens(self) -> None:
        assert BM25([Document("a", ""), Document("b", "…")]).search("x", 5) == []


class TestMeasures:
    def test_by_hand(self) -> None:
        qrels = {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}, "q3": {"d": 1}}
        run = {"q1": ["x", "a", "b"], "q2": ["c"], "q3": []}
        found = measure(qrels, run)
        ideal = 1 + 1 / math.log2(3)
        ndcg = (1 / math.log2(3) + 1 / math.log2(4)) / ideal
        assert found.ndcg_at_10 == pytest.approx((ndcg + 1 + 0) / 3)
        assert found.recall_at_100 == pytest.approx((1 + 1 + 0) / 3)
        assert found.mrr_at_10 == pytest.approx((1 / 2 + 1 + 0) / 3)
        assert found.queries == 3

    def test_a_query_that_was_not_answered_counts_zero(self) -> None:
        assert measure({"q1": {"a": 1}, "q2": {"b": 1}}, {"q1": ["a"]}).ndcg_at_10 == 0.5

    def test_cuts(self) -> None:
        ids = [f"x{i}" for i in range(100)]
        late = measure({"q": {"a": 1}}, {"q": [*ids[:10], "a"]})
        assert (late.ndcg_at_10, late.mrr_at_10, late.recall_at_100) == (0, 0, 1)
        assert measure({"q": {"a": 1}}, {"q": [*ids, "a"]}).recall_at_100 == 0

    def test_the_order_answered_counts_whatever_the_ids(self) -> None:
        assert measure({"q": {"a": 1}}, {"q": ["a", "z"]}).mrr_at_10 == 1
        assert measure({"q": {"z": 1}}, {"q": ["a", "z"]}).mrr_at_10 == 0.5

    def test_nothing_judged(self) -> None:
        with pytest.raises(InvalidInput, match="no query is judged"):
            measure({}, {"q": ["a"]})


class TestRuns:
    def dataset(self) -> Dataset:
        texts = ["Clouds bring rain.", "A ship sails.", "Green hills.", "The library of the city."]
        documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
        # A query whose id equals a document's: the document stays (paper, version 4).
        queries = {"d1": texts[1], "q3": texts[3]}
        return Dataset("tiny", "test", Corpus.of(documents), queries, {"d1": {"d1": 1}, "q3": {"d3": 1}})

    def test_a_text_finds_itself_with_every_method(self, encoder: M3Encoder) -> None:
        dataset = self.dataset()
        with connect("memory:", encoder=encoder) as index:
            assert store_corpus(index, dataset.documents, lambda _: None) == 0
            queries = encoder.encode(list(dataset.queries.values()))
            for method in METHODS.values():
                run = run_method(index, dataset, queries, method)
                assert set(run) == {"d1", "q3"}
                if method in (DENSE, MULTI_VEC):  # unit vectors: no other text can score higher
                    assert measure(dataset.qrels, run).mrr_at_10 == 1, method.name
                    assert len(run["q3"]) == 4

    def test_what_is_stored_is_not_encoded_again(self, encoder: M3Encoder) -> None:
        documents = list(self.dataset().documents)
        calls: list[int] = []
        with connect("memory:", encoder=encoder) as index:
            store_corpus(index, Corpus.of(documents[:2]), calls.append)
            changed = [Document("d0", "another text"), *documents[1:]]
            assert store_corpus(index, Corpus.of(changed), calls.append) == 1
            assert calls == [2, 3]
            assert [document and document.text for document in index.get(["d0"])] == ["another text"]

    def test_other_documents_in_the_collection_are_refused(self, encoder: M3Encoder) -> None:
        dataset = self.dataset()
        with connect("memory:", encoder=encoder) as index:
            index.add([Document("stranger", "found among the others")])
            with pytest.raises(InvalidInput, match="1 documents that are not of this corpus"):
                store_corpus(index, dataset.documents, lambda _: None)
            assert index.count() == 1

    def test_ranking_equals_scores_computed_by_hand(self, encoder: M3Encoder) -> None:
        dataset = self.dataset()
        with connect("memory:", encoder=encoder) as index:
            store_corpus(index, dataset.documents, lambda _: None)
            queries = encoder.encode(list(dataset.queries.values()))
            run = run_method(index, dataset, queries, DENSE)
        corpus = encoder.encode([document.text for document in dataset.documents])
        assert queries.dense is not None
        assert corpus.dense is not None
        order = np.argsort(-(queries.dense @ corpus.dense.T), axis=1)
        assert list(run.values()) == [[f"d{i}" for i in row] for row in order]
