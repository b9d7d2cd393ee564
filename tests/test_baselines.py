"""Baselines by name: other dense models, an embedding endpoint on loopback, a cross-encoder."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from evaluations import write_evaluation
from hypothesis import given
from hypothesis import strategies as st
from sentence_checkpoints import write_cross_encoder, write_sentence_model

from m3_connectors.backends.retry import Patience
from m3_connectors.documents import Document
from m3_connectors.errors import (
    InvalidInput,
    NotFound,
    Rejected,
    Throttled,
    TimedOut,
    Unauthorised,
    Unavailable,
)
from m3_connectors.evaluation.baselines import ranking, sentence_models
from m3_connectors.evaluation.baselines.baseline import Baseline
from m3_connectors.evaluation.baselines.endpoint import TEXTS_AT_ONCE, EmbeddingEndpoint
from m3_connectors.evaluation.baselines.options import model_and_options, run_name
from m3_connectors.evaluation.baselines.ranking import best, nearest
from m3_connectors.evaluation.baselines.registry import BASELINES, baseline_for
from m3_connectors.evaluation.baselines.rerank import CrossEncoderRanking
from m3_connectors.evaluation.baselines.sentence_models import PUBLISHED, Published, SentenceModel
from m3_connectors.evaluation.datasets.dataset import Corpus, Dataset
from m3_connectors.evaluation.folder import EvaluationFolder

NO_ENCODER = cast(Any, None)
"""These baselines share nothing with the evaluation's own model."""

TEXTS = {
    "d1": "rain falls on the hills",
    "d2": "the ship sails on the sea",
    "d3": "green grass",
    "d4": "cold snow in winter",
    "d5": "",
}
QUERIES = {"q1": "rain on the hills", "q2": "ship on the sea"}


def dataset() -> Dataset:
    return Dataset(
        "x",
        "test",
        Corpus.of([Document(id, text) for id, text in TEXTS.items()]),
        QUERIES,
        {"q1": {"d1": 1}, "q2": {"d2": 1}},
    )


@pytest.fixture
def folder(tmp_path: Path) -> EvaluationFolder:
    """Dense: d4, d3, d2, d1 for every query; sparse finds d3 only."""
    cells = {
        query: {f"d{i}": (i / 10, 1.0 if i == 3 else 0.0, 0.0) for i in range(1, 5)} for query in QUERIES
    }
    return write_evaluation(tmp_path / "evaluation", cells, dataset().qrels)


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

    def test_an_embedding_that_is_not_finite_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="query 'q1' and document 'd1' have no finite product"):
            nearest(
                dataset(),
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
        run = baseline.run(dataset(), folder, NO_ENCODER)
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
        plain = dataset()
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
        run = SentenceModel("tiny").run(dataset(), folder, NO_ENCODER)
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
            dataclasses.replace(dataset(), family="miracl"), folder, NO_ENCODER
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
        run = baseline.run(dataset(), folder, NO_ENCODER)
        for query in QUERIES:
            expected = self.scores(model, query, ["d1", "d2", "d3", "d4"])  # d5 is no candidate
            assert dict(run[query]) == pytest.approx(expected, abs=1e-5)
            assert [id for id, _ in run[query]] == sorted(expected, key=lambda id: -expected[id])
        assert "100 best of dense" in baseline.description

    def test_ranks_what_another_run_found(self, model: Path, folder: EvaluationFolder) -> None:
        baseline = CrossEncoderRanking(f"{model}?of=sparse")
        run = baseline.run(dataset(), folder, NO_ENCODER)
        assert {query: [id for id, _ in answer] for query, answer in run.items()} == {
            "q1": ["d3"],
            "q2": ["d3"],
        }
        assert baseline.name.endswith("-of-sparse")
        with pytest.raises(InvalidInput, match="no method 'lucene' was evaluated"):
            CrossEncoderRanking(f"{model}?of=lucene").run(dataset(), folder, NO_ENCODER)

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


Answer = tuple[int, dict[str, str], Any]


@contextlib.contextmanager
def endpoint(answer: Callable[[int, dict[str, Any]], Answer]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server on loopback; ``answer(n, body)`` gives status, headers and body of the n-th request, from 0."""
    heard: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.append({"path": self.path, "key": self.headers["Authorization"], **body})
            status, headers, said = answer(len(heard) - 1, body)
            content = json.dumps(said).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def vector(text: str) -> list[float]:
    """Counts of three letters; all of one direction where none is there."""
    return [float(text.count(letter)) + 0.1 for letter in "ais"]


def embeddings(_: int, body: dict[str, Any]) -> Answer:
    if "" in body["input"]:
        return 400, {}, {"error": {"message": "input cannot be an empty string"}}
    rows = [{"index": i, "embedding": vector(text)} for i, text in enumerate(body["input"])]
    return 200, {}, {"data": rows[::-1], "model": body["model"]}


class TestEmbeddingEndpoint:
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")

    def test_ranks_by_cosine(self, folder: EvaluationFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        with endpoint(embeddings) as (base, heard):
            monkeypatch.setenv("OPENAI_BASE_URL", base)
            run = EmbeddingEndpoint("small").run(dataset(), folder, NO_ENCODER)
        unit = {
            text: np.array(vector(text)) / np.linalg.norm(vector(text))
            for text in (*TEXTS.values(), *QUERIES.values(), " ")
        }
        for query, text in QUERIES.items():
            expected = {id: float(unit[passage or " "] @ unit[text]) for id, passage in TEXTS.items()}
            assert dict(run[query]) == pytest.approx(expected, abs=1e-6)
            assert [id for id, _ in run[query]] == sorted(expected, key=lambda id: -expected[id])
        assert {request["path"] for request in heard} == {"/v1/embeddings"}
        assert {request["key"] for request in heard} == {"Bearer sk-secret"}
        assert {request["model"] for request in heard} == {"small"}

    def test_batches_prefixes_and_cuts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with endpoint(embeddings) as (base, heard):
            monkeypatch.setenv("OPENAI_BASE_URL", base)
            monkeypatch.delenv("OPENAI_API_KEY")
            texts = [f"{i:03} some text" for i in range(2 * TEXTS_AT_ONCE + 3)]
            vectors = EmbeddingEndpoint("m?max_characters=3").embed(texts, prefix="q: ")
        assert vectors.shape == (len(texts), 3)
        assert sorted(len(request["input"]) for request in heard) == [3, TEXTS_AT_ONCE, TEXTS_AT_ONCE]
        assert sorted(text for request in heard for text in request["input"]) == [
            f"q: {t[:3]}" for t in texts
        ]
        assert heard[0]["key"] is None

    def test_tries_again_where_that_helps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def answer(n: int, body: dict[str, Any]) -> Answer:
            if n == 0:
                return 429, {"Retry-After": "0"}, {"error": {"message": "slow down"}}
            return (503, {}, {"error": "starting"}) if n == 1 else embeddings(n, body)

        with endpoint(answer) as (base, heard):
            monkeypatch.setenv("OPENAI_BASE_URL", base)
            assert EmbeddingEndpoint("m").embed(["a"]).shape == (1, 3)
        assert len(heard) == 3

    @pytest.mark.parametrize(
        ("status", "said", "error", "message"),
        [
            (
                401,
                {"error": {"message": "bad key"}},
                Unauthorised,
                "answered 401: bad key\n  Is OPENAI_API_KEY",
            ),
            (404, {"error": {"message": "no m"}}, NotFound, "answered 404: no m\n  Has it a model m"),
            (400, {"error": {"message": "too long"}}, Rejected, "too long\n.*max_characters=N"),
            (429, {"error": {"message": "quota"}}, Throttled, "quota after 2 tries"),
            (500, "oops", Unavailable, 'answered 500: "oops" after 2 tries'),
            (200, {"error": "not here"}, Rejected, "answered no embeddings: not here"),
            (200, {"data": []}, Rejected, "answered 0 embeddings for 2 texts"),
            (
                200,
                {"data": [{"index": 0, "embedding": [1]}] * 2},
                Rejected,
                "answered 2 embeddings for 2 texts",
            ),
            (
                200,
                {"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]},
                Rejected,
                "no emb",
            ),
            (200, {"data": [{"index": i, "embedding": [0, 0]} for i in range(2)]}, Rejected, "or all 0"),
        ],
    )
    def test_refusals_are_the_servers_own_words(
        self, monkeypatch: pytest.MonkeyPatch, status: int, said: Any, error: type[Exception], message: str
    ) -> None:
        with endpoint(lambda n, body: (status, {}, said)) as (base, heard):
            monkeypatch.setenv("OPENAI_BASE_URL", base)
            with pytest.raises(error, match=message) as caught:
                EmbeddingEndpoint("m", Patience(attempts=2)).embed(["a", "b"])
        assert "sk-secret" not in str(caught.value)
        assert len(heard) == (2 if error in (Throttled, Unavailable) else 1)

    def test_a_dimension_that_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def answer(n: int, body: dict[str, Any]) -> Answer:
            return 200, {}, {"data": [{"index": 0, "embedding": [1.0] * (2 + n)}]}

        with endpoint(answer) as (base, _):
            monkeypatch.setenv("OPENAI_BASE_URL", base)
            baseline = EmbeddingEndpoint("m")
            assert baseline.embed(["a"]).shape == (1, 2)
            with pytest.raises(Rejected, match="vectors of 3 dimensions after 2"):
                baseline.embed(["b"])

    def test_no_server_and_a_silent_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:9/v1"):
            EmbeddingEndpoint("m", Patience(attempts=1)).embed(["a"])
        release = threading.Event()

        def answer(n: int, body: dict[str, Any]) -> Answer:
            release.wait(10)
            return embeddings(n, body)

        with endpoint(answer) as (base, _):
            monkeypatch.setenv("OPENAI_BASE_URL", base)
            with pytest.raises(TimedOut, match="did not answer"):
                EmbeddingEndpoint("m", Patience(timeout_seconds=0.2, attempts=1)).embed(["a"])
            release.set()

    def test_wrong_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for spec in ("m?max_characters=0", "m?max_characters=few", "m?top_k=1"):
            with pytest.raises(InvalidInput):
                EmbeddingEndpoint(spec)
        monkeypatch.setenv("OPENAI_BASE_URL", "localhost:8000")
        with pytest.raises(InvalidInput, match="OPENAI_BASE_URL"):
            EmbeddingEndpoint("m")
