"""The baseline behind an embedding endpoint, against a server on loopback."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import Answer, endpoint
from small_task import NO_ENCODER, QUERIES, TEXTS, small_evaluation, small_task

from m3_connectors.backends.retry import RetryPolicy
from m3_connectors.errors import (
    InvalidInput,
    NotFound,
    Rejected,
    Throttled,
    TimedOut,
    Unauthorised,
    Unavailable,
)
from m3_connectors.evaluation.baselines.endpoint import TEXTS_AT_ONCE, EmbeddingEndpoint
from m3_connectors.evaluation.folder import EvaluationFolder


@pytest.fixture
def folder(tmp_path: Path) -> EvaluationFolder:
    return small_evaluation(tmp_path / "evaluation")


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
            run = EmbeddingEndpoint("small").run(small_task(), folder, NO_ENCODER)
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
                "answered 401: bad key\n  Check OPENAI_API_KEY",
            ),
            (
                404,
                {"error": {"message": "no m"}},
                NotFound,
                "answered 404: no m\n  Check that it has the model m",
            ),
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
                EmbeddingEndpoint("m", RetryPolicy(attempts=2)).embed(["a", "b"])
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
            EmbeddingEndpoint("m", RetryPolicy(attempts=1)).embed(["a"])
        release = threading.Event()

        def answer(n: int, body: dict[str, Any]) -> Answer:
            release.wait(10)
            return embeddings(n, body)

        with endpoint(answer) as (base, _):
            monkeypatch.setenv("OPENAI_BASE_URL", base)
            with pytest.raises(TimedOut, match="did not respond in time"):
                EmbeddingEndpoint("m", RetryPolicy(timeout_seconds=0.2, attempts=1)).embed(["a"])
            release.set()

    def test_the_password_of_the_address_is_not_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://me:hunter2@127.0.0.1:9/v1")
        with pytest.raises(Unavailable, match=r": http://127\.0\.0\.1:9/v1 cannot be reached"):
            EmbeddingEndpoint("m", RetryPolicy(attempts=1)).embed(["a"])
        monkeypatch.setenv("OPENAI_BASE_URL", "ftp://me:hunter2@127.0.0.1:9/v1")
        with pytest.raises(InvalidInput, match=r"^OPENAI_BASE_URL is 'ftp://127\.0\.0\.1:9/v1'"):
            EmbeddingEndpoint("m")

    def test_wrong_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for spec in ("m?max_characters=0", "m?max_characters=few", "m?top_k=1"):
            with pytest.raises(InvalidInput):
                EmbeddingEndpoint(spec)
        with pytest.raises(InvalidInput, match="Set OPENAI_BASE_URL"):  # not texts sent to api.openai.com
            EmbeddingEndpoint("http://localhost:8000/v1")
        monkeypatch.setenv("OPENAI_BASE_URL", "localhost:8000")
        with pytest.raises(InvalidInput, match="OPENAI_BASE_URL"):
            EmbeddingEndpoint("m")
