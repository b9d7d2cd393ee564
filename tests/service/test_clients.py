"""Real clients of other servers get the same vectors and scores as the library gives."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from serving import Running, client

from m3_connectors import M3Encoder
from m3_connectors.methods import ALL
from m3_connectors.scoring import score

TEXTS = ["Plums ripen in late summer.", "Snow falls in winter.", "The tea steeps for three minutes."]
QUERY = "When does snow fall?"


@pytest.fixture(scope="module")
def web(running: Running) -> Iterator[httpx.Client]:
    with client(running) as web:
        yield web


def _fused(encoder: M3Encoder) -> list[float]:
    """The weighted mean of the three scores of each text for the query."""
    query, texts = encoder.encode([QUERY]), encoder.encode(TEXTS)
    weights = encoder.recommended_weights.get("all", tuple(ALL.weights))
    parts = [
        w * score(name, query, texts).astype(np.float64)
        for name, w in zip(("dense", "sparse", "multivector"), weights, strict=True)
    ]
    return (np.sum(parts, axis=0) / sum(weights)).tolist()  # type: ignore[no-any-return]


def test_openai(running: Running, encoder: M3Encoder) -> None:
    direct = encoder.encode(TEXTS)
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as ours:
        for asked in ("base64", "float", None):  # without a format, the client asks for base64
            options = {"encoding_format": asked} if asked else {}
            answer = ours.embeddings.create(model="bge-m3", input=TEXTS, **options)  # type: ignore[call-overload]
            rows = [
                np.frombuffer(base64.b64decode(one.embedding), np.float32)
                if isinstance(one.embedding, str)
                else np.array(one.embedding, np.float32)
                for one in answer.data
            ]
            np.testing.assert_allclose(np.stack(rows), direct.dense, atol=1e-6)
        assert [one.index for one in answer.data] == [0, 1, 2]
        assert answer.usage.total_tokens == int(direct.token_counts.sum())
        assert answer.model == encoder.info.name
        assert [one.id for one in ours.models.list()] == [encoder.info.name]
        with pytest.raises(openai.UnprocessableEntityError, match="token ids") as refused:
            ours.embeddings.create(model="bge-m3", input=[[1, 2, 3]])
        assert refused.value.code == "InvalidInput"
        with pytest.raises(openai.UnprocessableEntityError, match="dimensions is 3"):
            ours.embeddings.create(model="bge-m3", input="x", dimensions=3)


@pytest.mark.parametrize("path", ["", "/embed"])
def test_inference_client_embeds(running: Running, encoder: M3Encoder, path: str) -> None:
    ours = InferenceClient(model=f"{running.url}{path}")
    direct = encoder.encode(TEXTS).dense
    np.testing.assert_allclose(ours.feature_extraction(TEXTS[0]), direct[:1], atol=1e-6)
    np.testing.assert_allclose(ours.feature_extraction(TEXTS, truncate=True), direct, atol=1e-6)
    np.testing.assert_allclose(ours.feature_extraction(TEXTS[0], normalize=False), direct[:1], atol=1e-6)
    with pytest.raises(HfHubHTTPError) as refused:
        ours.feature_extraction("x", prompt_name="query")
    assert refused.value.response.json()["error_type"] == "Validation"
    assert "prompt_name is 'query'" in refused.value.response.json()["error"]


@pytest.mark.parametrize("path", ["", "/similarity"])
def test_inference_client_compares_sentences(running: Running, encoder: M3Encoder, path: str) -> None:
    ours = InferenceClient(model=f"{running.url}{path}")
    found = ours.sentence_similarity(QUERY, other_sentences=TEXTS)
    direct = score("dense", encoder.encode([QUERY]), encoder.encode(TEXTS))
    assert found == pytest.approx(direct.tolist(), abs=1e-6)


def test_tei_sparse_all_and_info(web: httpx.Client, encoder: M3Encoder) -> None:
    direct = encoder.encode(TEXTS)
    for i, row in enumerate(web.post("/embed_sparse", json={"inputs": TEXTS}).json()):
        expected = direct.sparse[[i]]
        assert [one["index"] for one in row] == expected.indices.tolist()
        assert [one["value"] for one in row] == pytest.approx(expected.data.tolist(), abs=1e-6)
    for i, rows in enumerate(web.post("/embed_all", json={"inputs": TEXTS}).json()):
        np.testing.assert_allclose(rows, direct.multivectors[i], atol=1e-6)
    about = web.get("/info").json()
    assert about["model_id"] == encoder.info.name
    assert about["max_input_length"] == encoder.max_length
    assert about["model_type"] == {"embedding": {"pooling": "cls"}}


def test_texts_beyond_the_maximum_are_an_error_unless_they_may_be_cut(
    web: httpx.Client, encoder: M3Encoder
) -> None:
    long = "word " * (encoder.max_length + 10)
    refused = web.post("/embed", json={"inputs": long})
    assert refused.status_code == 422
    assert "tokens, more than the model reads" in refused.json()["error"]
    assert web.post("/embed", json={"inputs": long, "truncate": True}).status_code == 200
    told = web.post("/v1/encode", json={"texts": ["x", long], "components": ["dense"]}).json()
    assert told["truncated"] == [False, True]


def test_tei_rerank(web: httpx.Client, encoder: M3Encoder) -> None:
    direct = _fused(encoder)
    found = web.post("/rerank", json={"query": QUERY, "texts": TEXTS, "return_text": True}).json()
    assert [one["index"] for one in found] == sorted(range(3), key=lambda i: -direct[i])
    for one in found:
        assert one["score"] == pytest.approx(direct[one["index"]], abs=1e-5)
        assert one["text"] == TEXTS[one["index"]]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_cohere_and_jina_rerank(web: httpx.Client, encoder: M3Encoder, path: str) -> None:
    direct = _fused(encoder)
    asked = {"model": "rerank-v3.5", "query": QUERY, "documents": [TEXTS[0], {"text": TEXTS[1]}, TEXTS[2]]}
    found = web.post(path, json={**asked, "top_n": 2, "return_documents": True}).json()
    assert [one["index"] for one in found["results"]] == sorted(range(3), key=lambda i: -direct[i])[:2]
    for one in found["results"]:
        assert one["relevance_score"] == pytest.approx(direct[one["index"]], abs=1e-5)
        assert one["document"] == {"text": TEXTS[one["index"]]}
    plain = web.post(path, json=asked).json()["results"]
    assert len(plain) == 3
    assert "document" not in plain[0]


def test_vllm_pooling(web: httpx.Client, encoder: M3Encoder) -> None:
    direct = encoder.encode(TEXTS)
    found = web.post("/pooling", json={"model": "bge-m3", "input": TEXTS}).json()
    assert found["object"] == "list"
    for i, one in enumerate(found["data"]):
        assert (one["index"], one["object"]) == (i, "pooling")
        np.testing.assert_allclose(one["data"], direct.multivectors[i], atol=1e-6)
    dense = web.post(
        "/pooling", json={"input": TEXTS[0], "task": "embed", "encoding_format": "base64"}
    ).json()
    row = np.frombuffer(base64.b64decode(dense["data"][0]["data"]), np.float32)
    np.testing.assert_allclose(row, direct.dense[0], atol=1e-6)
