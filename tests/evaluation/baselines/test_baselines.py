"""Baselines by name: other dense models, an embedding endpoint on loopback, a cross-encoder."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_checkpoints import write_cross_encoder, write_sentence_model
from small_task import NO_ENCODER, QUERIES, TEXTS, small_evaluation, small_task

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, MissingDependency, NotFound
from m3_connectors.evaluation.baselines import ranking, sentence_models
from m3_connectors.evaluation.baselines.baseline import Baseline
from m3_connectors.evaluation.baselines.options import model_and_options, run_name
from m3_connectors.evaluation.baselines.ranking import best, nearest
from m3_connectors.evaluation.baselines.registry import BASELINES, baseline_for
from m3_connectors.evaluation.baselines.rerank import CrossEncoderRanking
from m3_connectors.evaluation.baselines.sentence_models import PUBLISHED, Published, SentenceModel
from m3_connectors.evaluation.datasets.dataset import Corpus, Dataset
from m3_connectors.evaluation.datasets.load import load_dataset
from m3_connectors.evaluation.folder import EvaluationFolder


@pytest.fixture
def folder(tmp_path: Path) -> EvaluationFolder:
    return small_evaluation(tmp_path / "evaluation")


@pytest.mark.parametrize(
    ("module", "ask", "extra"),
    [
        ("sentence_transformers", lambda: baseline_for("st:me5-large"), "sentence-transformers"),
        ("sentence_transformers", lambda: baseline_for("rerank:model"), "sentence-transformers"),
        ("bm25s", lambda: baseline_for("bm25"), "eval"),
        ("bm25s", lambda: baseline_for("bm25-xlmr"), "eval"),
        ("ir_datasets", lambda: load_dataset("irds:beir/scifact/test"), "ir-datasets"),
    ],
)
def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, ask: Callable[[], object], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=re.escape(f'pip install "m3-connectors[{extra}]"')):
        ask()


class TestRanking:
    @given(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0]), max_size=30),
        st.integers(1, 12),
        st.randoms(use_true_random=False),
    )
    def test_best_is_the_head_of_the_sorted_list(self, values: list[float], k: int, random: Any) -> None:
        ids = [f"{i:02}" for i in range(len(values))]
        random.shuffle(ids)
        expected = sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0]))[:k]
        assert best(ids, np.array(values, dtype=np.float32), k) == expected

    def test_nearest_over_batches_is_nearest_over_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        draw = np.random.default_rng(11)
        vectors = {f"{i:03}": row for i, row in enumerate(draw.integers(-2, 3, (50, 3)).astype(np.float32))}
        asked = {"a": np.array([1, 0, 2], np.float32), "b": np.array([-1, 1, 0], np.float32)}
        task = Dataset(
            "x",
            "test",
            Corpus.of([Document(id, id) for id in vectors]),
            {q: q for q in asked},
            {q: {"d": 1} for q in asked},
        )
        monkeypatch.setattr(ranking, "PASSAGES_AT_ONCE", 7)
        run = nearest(
            task,
            10,
            lambda texts: np.array([asked[text] for text in texts]),
            lambda texts: np.array([vectors[text] for text in texts]),
        )
        for query, vector in asked.items():
            scores = {id: float(row @ vector) for id, row in vectors.items()}
            assert run[query] == sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:10]

    @given(
        st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40),
        st.integers(1, 6),
        st.integers(1, 7),
    )
    def test_nearest_leaves_equal_scores_to_their_ids(self, values: list[float], k: int, batch: int) -> None:
        ids = [f"{(i * 17) % 41:02}" for i in range(len(values))]  # batches come in no order of ids
        score = dict(zip(ids, values, strict=True))
        queries = {"q": "q", "r": "r"}
        task = Dataset(
            "x", "test", Corpus.of([Document(id, id) for id in ids]), queries, {q: {"d": 1} for q in queries}
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranking, "PASSAGES_AT_ONCE", batch)
            run = nearest(
                task,
                k,
                lambda texts: np.array([[1], [-1]], np.float32),
                lambda texts: np.array([[score[text]] for text in texts], np.float32),
            )
        for query, sign in (("q", 1), ("r", -1)):
            expected = sorted(
                ((id, sign * value) for id, value in score.items()), key=lambda p: (-p[1], p[0])
            )
            assert run[query] == expected[:k]

    def test_an_embedding_that_is_not_finite_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="query 'q1' and document 'd1' have no finite product"):
            nearest(
                small_task(),
                3,
                lambda texts: np.ones((2, 1), np.float32),
                lambda texts: np.full((5, 1), np.nan, np.float32),
            )


class TestOptions:
    def test_prefixes_are_percent_encoded(self) -> None:
        spec = "intfloat/e5-base?query=query:%20&passage=passage:%20"
        assert model_and_options(spec, ("query", "passage")) == (
            "intfloat/e5-base",
            {"query": "query: ", "passage": "passage: "},
        )
        assert model_and_options("a/b?query=", ("query",)) == ("a/b", {"query": ""})

    @pytest.mark.parametrize("spec", ["", "?query=x", "m?qery=x", "m?query=a&query=b", "m?query"])
    def test_what_is_wrong(self, spec: str) -> None:
        with pytest.raises(InvalidInput):
            model_and_options(spec, ("query", "passage"))

    def test_names_are_file_names(self) -> None:
        assert run_name("st", "intfloat/multilingual-e5-large") == "st-intfloat-multilingual-e5-large"
        assert run_name("st", "./models/my model/") == "st-models-my-model"


class TestRegistry:
    def test_every_name(self) -> None:
        assert list(BASELINES) == ["bm25", "bm25-xlmr", "rrf", "st", "openai", "rerank"]
        for spec in ("bm25", "bm25-xlmr", "rrf", "openai:m"):
            baseline: Baseline = baseline_for(spec)
            assert baseline.name
            assert baseline.description

    @pytest.mark.parametrize("spec", ["lucene", "st", "st:", "openai", "rerank", "bm25:x", "bm25-xlmr:x"])
    def test_what_is_none(self, spec: str) -> None:
        with pytest.raises(InvalidInput):
            baseline_for(spec)


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentence_model(tmp_path_factory.mktemp("models") / "tiny")


class TestSentenceModel:
    def test_ranks_by_the_models_own_vectors(self, sentence_model: Path, folder: EvaluationFolder) -> None:
        from sentence_transformers import SentenceTransformer

        baseline = SentenceModel(str(sentence_model))
        run = baseline.run(small_task(), folder, NO_ENCODER)
        model = SentenceTransformer(str(sentence_model))
        passages = model.encode(list(TEXTS.values()), normalize_embeddings=True)
        for query, text in QUERIES.items():
            cosines = passages @ model.encode(text, normalize_embeddings=True)
            expected = sorted(zip(TEXTS, cosines.tolist(), strict=True), key=lambda pair: -pair[1])
            assert [id for id, _ in run[query]] == [id for id, _ in expected]
            assert [score for _, score in run[query]] == pytest.approx([s for _, s in expected], abs=1e-5)
        assert baseline.name.startswith("st-")
        assert "exact search by cosine, texts cut at 32 tokens" in baseline.description

    def test_prefixes_stand_before_the_texts(self, sentence_model: Path, folder: EvaluationFolder) -> None:
        plain = small_task()
        prefixed = dataclasses.replace(
            plain,
            documents=Corpus.of([Document(id, f"passage : {text}") for id, text in TEXTS.items()]),
            queries={id: f"query : {text}" for id, text in QUERIES.items()},
        )
        by_option = SentenceModel(f"{sentence_model}?query=query%20:%20&passage=passage%20:%20")
        by_hand = SentenceModel(str(sentence_model)).run(prefixed, folder, NO_ENCODER)
        assert _near(by_option.run(plain, folder, NO_ENCODER), by_hand)
        assert not _near(SentenceModel(str(sentence_model)).run(plain, folder, NO_ENCODER), by_hand)

    def test_published_prefixes_pooling_and_similarity(
        self, sentence_model: Path, folder: EvaluationFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sentence_transformers import SentenceTransformer

        published = Published(
            str(sentence_model),
            query="query : ",
            query_of={"miracl": "sea "},
            passage="passage : ",
            similarity="dot",
            pooling="cls",
        )
        monkeypatch.setitem(sentence_models.PUBLISHED, "tiny", published)
        assert SentenceModel("tiny").name == SentenceModel(str(sentence_model)).name == "st-tiny"
        run = SentenceModel("tiny").run(small_task(), folder, NO_ENCODER)
        hidden = SentenceTransformer(str(sentence_model))[0]
        first = {
            text: hidden(hidden.preprocess([text]))["token_embeddings"][0, 0].detach().numpy()
            for text in (
                *(f"passage : {text}" for text in TEXTS.values()),
                *(f"query : {text}" for text in QUERIES.values()),
            )
        }
        for query, text in QUERIES.items():
            scores = {
                id: float(first[f"passage : {t}"] @ first[f"query : {text}"]) for id, t in TEXTS.items()
            }
            assert dict(run[query]) == pytest.approx(scores, rel=1e-4)
        of_miracl = SentenceModel("tiny").run(
            dataclasses.replace(small_task(), family="miracl"), folder, NO_ENCODER
        )
        assert not _near(of_miracl, run)

    def test_the_papers_models(self) -> None:
        assert {name: p.model for name, p in PUBLISHED.items()} == {
            "me5-large": "intfloat/multilingual-e5-large",
            "mcontriever": "facebook/mcontriever-msmarco",
            "mdpr": "castorini/mdpr-tied-pft-msmarco",
            "e5-mistral-7b": "intfloat/e5-mistral-7b-instruct",
        }
        assert (PUBLISHED["me5-large"].query, PUBLISHED["me5-large"].passage) == ("query: ", "passage: ")

    def test_weights_that_cannot_be_had(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="cannot be loaded"):
            SentenceModel(str(tmp_path / "nothing"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cross_encoder(tmp_path_factory.mktemp("models") / "cross")


class TestCrossEncoder:
    def scores(self, model: Path, query: str, ids: list[str]) -> dict[str, float]:
        import torch
        from sentence_transformers import CrossEncoder

        pairs = [(QUERIES[query], TEXTS[id]) for id in ids]
        return dict(
            zip(
                ids,
                CrossEncoder(str(model)).predict(pairs, activation_fn=torch.nn.Identity()).tolist(),
                strict=True,
            )
        )

    def test_ranks_what_dense_found(self, model: Path, folder: EvaluationFolder) -> None:
        baseline = CrossEncoderRanking(str(model))
        run = baseline.run(small_task(), folder, NO_ENCODER)
        for query in QUERIES:
            expected = self.scores(model, query, ["d1", "d2", "d3", "d4"])  # d5 is no candidate
            assert dict(run[query]) == pytest.approx(expected, abs=1e-5)
            assert [id for id, _ in run[query]] == sorted(expected, key=lambda id: -expected[id])
        assert "100 best of dense" in baseline.description

    def test_ranks_what_another_run_found(self, model: Path, folder: EvaluationFolder) -> None:
        baseline = CrossEncoderRanking(f"{model}?of=sparse")
        run = baseline.run(small_task(), folder, NO_ENCODER)
        assert {query: [id for id, _ in answer] for query, answer in run.items()} == {
            "q1": ["d3"],
            "q2": ["d3"],
        }
        assert baseline.name.endswith("-of-sparse")
        with pytest.raises(InvalidInput, match="method 'lucene' was not evaluated"):
            CrossEncoderRanking(f"{model}?of=lucene").run(small_task(), folder, NO_ENCODER)

    def test_a_classifier_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="gives 3 scores for a pair"):
            CrossEncoderRanking(str(write_cross_encoder(tmp_path / "classes", labels=3)))

    def test_weights_that_cannot_be_had(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="cannot be loaded"):
            CrossEncoderRanking(str(tmp_path / "nothing"))


def _near(one: dict[str, list[tuple[str, float]]], other: dict[str, list[tuple[str, float]]]) -> bool:
    return all(
        dict(one[query]).keys() == dict(other[query]).keys()
        and all(abs(dict(one[query])[id] - score) < 1e-5 for id, score in other[query])
        for query in one
    )
