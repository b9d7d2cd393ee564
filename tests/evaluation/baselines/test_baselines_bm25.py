"""BM25, the baseline."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from evaluations import write_evaluation

from m3_connectors.documents import Document
from m3_connectors.encoder.encoder import M3Encoder
from m3_connectors.evaluation.baselines import bm25
from m3_connectors.evaluation.baselines.bm25 import BM25, K1, B, TokenBM25, WordBM25, words
from m3_connectors.evaluation.datasets.dataset import Corpus, Dataset
from m3_connectors.evaluation.record import Protocol


class TestWords:
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
        assert words(text) == tokens


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
            assert BM25(documents).search(query.split(), 10) == [
                (str(i), pytest.approx(score(query, i), rel=1e-5)) for i in expected
            ]

    def test_only_documents_that_share_a_token_ties_by_id(self) -> None:
        bm25 = BM25([Document("b", "same"), Document("a", "same"), Document("c", "other")])
        (first, score), (second, same) = bm25.search(["same"], 10)
        assert (first, second, score) == ("a", "b", same)
        assert bm25.search(["same"], 1) == [("a", score)]
        assert bm25.search(["nowhere"], 10) == bm25.search([], 10) == []

    def test_a_corpus_without_tokens(self) -> None:
        assert BM25([Document("a", ""), Document("b", "…")]).search(["x"], 5) == []


class TestRuns:
    def dataset(self) -> Dataset:
        texts = {"d1": "rain rain on hills", "d2": "ships at sea", "d3": "hills, and then the rain"}
        return Dataset(
            "x",
            "test",
            Corpus.of([Document(id, text) for id, text in texts.items()]),
            {"q": "rain", "none": "!"},
            {"q": {"d1": 1}, "none": {"d2": 1}},
        )

    def test_words(self, tmp_path: Path, encoder: M3Encoder) -> None:
        folder = write_evaluation(tmp_path, {"q": {}, "none": {}}, self.dataset().qrels)
        run = WordBM25().run(self.dataset(), folder, encoder)
        assert [id for id, _ in run["q"]] == ["d1", "d3"]
        assert run["none"] == []

    def test_the_models_own_tokens(self, tmp_path: Path, encoder: M3Encoder) -> None:
        dataset = self.dataset()
        whole = write_evaluation(tmp_path / "whole", {"q": {}, "none": {}}, dataset.qrels)
        run = TokenBM25().run(dataset, whole, encoder)
        tokens = {document.id: encoder.token_strings(document.text)[:-1] for document in dataset.documents}
        asked = set(encoder.token_strings("rain")[:-1])
        assert {id for id, _ in run["q"]} == {id for id, found in tokens.items() if asked & set(found)}
        bm25 = BM25([Document(id, id) for id in tokens], lambda id: tokens[id])
        assert run["q"] == bm25.search(encoder.token_strings("rain")[:-1], 100)

        # Cut to <s>, two tokens and </s>.
        protocol = dataclasses.replace(Protocol(), passage_max_length=4)
        cut = write_evaluation(tmp_path / "cut", {"q": {}, "none": {}}, dataset.qrels, protocol=protocol)
        shorter = BM25([Document(id, id) for id in tokens], lambda id: tokens[id][:2])
        found = TokenBM25().run(dataset, cut, encoder)["q"]
        assert found == shorter.search(encoder.token_strings("rain")[:-1], 100)
        assert found != run["q"]


def test_much_memory_is_said_while_the_first_documents_are_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bm25, "_DOCUMENTS_OF_AN_ESTIMATE", 2)
    monkeypatch.setattr(bm25, "_MUCH_MEMORY", 4 * 3 * bm25._BYTES_A_TOKEN)
    few = [Document(f"d{i}", "one two three") for i in range(4)]
    caplog.set_level("WARNING")
    BM25(few)
    assert not caplog.records
    BM25([*few, Document("d4", "one")])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "BM25 over 5 documents" in caplog.text
