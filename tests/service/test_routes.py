"""The service's own routes give what the library gives; their examples in the OpenAPI document work."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from serving import PLUMS, Running, client, filled

from m3_connectors import ALL, Document, Index, M3Embeddings, M3Encoder, connect
from m3_connectors.scoring import score

TEXTS = ["What is BGE M3?", "Plums ripen in late summer.", ""]


@pytest.fixture(scope="module")
def web(running: Running) -> Iterator[httpx.Client]:
    with filled(running) as web:
        yield web


@pytest.fixture(scope="module")
def index(encoder: M3Encoder) -> Iterator[Index]:
    with connect("memory:", encoder=encoder) as index:
        index.add([Document(one["id"], one["text"], one.get("metadata", {})) for one in PLUMS])
        yield index


def _answer(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def _same(found: list[dict[str, Any]], direct: list[Any]) -> None:
    assert [hit["id"] for hit in found] == [hit.document.id for hit in direct]
    for ours, theirs in zip(found, direct, strict=True):
        assert ours["score"] == pytest.approx(theirs.score, abs=1e-6)
        assert ours["scores"] == pytest.approx(theirs.scores.to_dict(), abs=1e-6)
        assert ours["text"] == theirs.document.text
        assert ours["metadata"] == theirs.document.metadata


def test_encode_gives_the_vectors_of_the_encoder(web: httpx.Client, encoder: M3Encoder) -> None:
    direct = encoder.encode(TEXTS)
    found = _answer(web.post("/v1/encode", json={"texts": TEXTS}))
    np.testing.assert_allclose(np.array(found["dense"], np.float32), direct.dense, atol=1e-6)
    for i, sparse in enumerate(found["sparse"]):
        row = direct.sparse[[i]]
        assert sparse["indices"] == row.indices.tolist()
        np.testing.assert_allclose(sparse["values"], row.data, atol=1e-6)
    for rows, expected in zip(found["multivector"], direct.multivectors, strict=True):
        np.testing.assert_allclose(np.array(rows, np.float32), expected, atol=1e-6)
    assert found["token_counts"] == direct.token_counts.tolist()
    assert found["truncated"] == [False] * 3
    assert found["model"]["weights_fingerprint"] == encoder.info.weights_fingerprint


def test_encode_as_safetensors_and_arrow(web: httpx.Client, encoder: M3Encoder, tmp_path: Path) -> None:
    asked = {"texts": TEXTS, "components": ["dense", "multivector"]}
    answer = web.post("/v1/encode", json=asked, headers={"Accept": "application/x-safetensors"})
    (tmp_path / "vectors").write_bytes(answer.content)
    loaded = M3Embeddings.load(tmp_path / "vectors")
    direct = encoder.encode(TEXTS, components=["dense", "multivector"])
    assert loaded.components == ("dense", "multivector")
    np.testing.assert_allclose(loaded.dense, direct.dense, atol=1e-6)
    np.testing.assert_allclose(loaded.multivectors.rows, direct.multivectors.rows, atol=1e-6)
    assert loaded.model == encoder.info

    answer = web.post(
        "/v1/encode", json={"texts": TEXTS}, headers={"Accept": "application/vnd.apache.arrow.stream"}
    )
    table = pa.ipc.open_stream(io.BytesIO(answer.content)).read_all()
    whole = encoder.encode(TEXTS)
    np.testing.assert_allclose(table.column("dense").to_pylist(), whole.dense, atol=1e-6)
    assert [
        len(rows) for rows in table.column("multivectors").to_pylist()
    ] == whole.multivectors.counts.tolist()
    assert table.column("sparse_ids").to_pylist()[0] == whole.sparse[[0]].indices.tolist()
    assert json.loads(table.schema.metadata[b"model"])["name"] == encoder.info.name


def test_vectors_of_json_are_the_same_float32(web: httpx.Client) -> None:
    asked = {"texts": TEXTS, "components": ["dense"]}
    numbers = np.array(_answer(web.post("/v1/encode", json=asked))["dense"], np.float32)
    raw = web.post("/v1/encode", json=asked, headers={"Accept": "application/vnd.apache.arrow.stream"})
    table = pa.ipc.open_stream(io.BytesIO(raw.content)).read_all()
    flat = table.column("dense").combine_chunks().values.to_numpy()
    assert np.array_equal(flat.reshape(3, -1), numbers)


def test_score_gives_the_component_scores(web: httpx.Client, encoder: M3Encoder) -> None:
    pairs = [["snow", PLUMS[1]["text"]], ["plums", PLUMS[0]["text"]], ["snow", PLUMS[0]["text"]]]
    found = _answer(web.post("/v1/score", json={"pairs": pairs, "weights": [1, 2, 3]}))
    for (query, text), scores in zip(pairs, found["scores"], strict=True):
        both = encoder.encode([query, text])
        direct = {name: float(score(name, both[0], both[1])[0]) for name in COMPONENTS_}
        fused = direct["dense"] + 2 * direct["sparse"] + 3 * direct["multivector"]
        assert scores == pytest.approx({**direct, "fused": fused}, abs=1e-5)


COMPONENTS_ = ("dense", "sparse", "multivector")


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({"query": "When are plums ripe?"}, {}),
        ({"query": "snow", "method": "sparse", "k": 2}, {"method": "sparse", "k": 2}),
        ({"query": "snow", "weights": [1, 2, 3]}, {"method": ALL.weighted(1, 2, 3)}),
        ({"query": "snow", "filter": {"year": {"$gte": 2022}}}, {"filter": {"year": {"$gte": 2022}}}),
        ({"query": "snow", "offset": 1, "k": 1}, {"offset": 1, "k": 1}),
        ({"query": "snow", "min_score": 0.5}, {"min_score": 0.5}),
        ({"query": "snow", "group_by": "parent", "exact": True}, {"group_by": "parent", "exact": True}),
    ],
)
def test_search_gives_the_hits_of_the_index(
    web: httpx.Client, index: Index, asked: dict[str, Any], options: dict[str, Any]
) -> None:
    found = _answer(web.post("/v1/collections/fruit/search", json=asked))
    _same(found["hits"], index.search(asked["query"], **options))
    assert found["query_truncated"] is False


def test_search_with_the_vectors_of_encode(web: httpx.Client, index: Index) -> None:
    encoded = _answer(web.post("/v1/encode", json={"texts": ["snow"]}))
    vectors = {name: encoded[name][0] for name in COMPONENTS_} | {"model": encoded["model"]}
    found = _answer(web.post("/v1/collections/fruit/search", json={"vectors": vectors}))
    _same(found["hits"], index.search("snow"))


def test_explain_comes_with_each_hit(web: httpx.Client, index: Index) -> None:
    found = _answer(web.post("/v1/collections/fruit/search", json={"query": "snow", "explain": True, "k": 2}))
    for hit in found["hits"]:
        direct = index.explain("snow", hit["id"]).to_dict()
        assert hit["explanation"]["score"] == pytest.approx(direct["score"], abs=1e-6)
        assert [pair["query_token"] for pair in hit["explanation"]["pairs"]] == [
            pair["query_token"] for pair in direct["pairs"]
        ]


def test_documents_are_written_read_scanned_and_deleted(running: Running) -> None:
    with filled(running, "rows") as web:
        at = "/v1/collections/rows"
        got = _answer(web.post(f"{at}/documents/get", json={"ids": ["2", "no"]}))["documents"]
        assert got == [PLUMS[1], None]
        lines = web.post(f"{at}/documents/scan", json={"filter": {"year": 2024}}).text.splitlines()
        assert [json.loads(line) for line in lines] == [PLUMS[0], {"end": 1}]
        assert json.loads(web.post(f"{at}/documents/scan", json={}).text.splitlines()[-1]) == {"end": 3}
        report = _answer(web.post(f"{at}/documents", json={"documents": [PLUMS[0], PLUMS[0]]}))
        assert report["written"] == 1
        assert report["duplicates"] == ["1"]
        assert _answer(web.post(f"{at}/documents/delete", json={"ids": ["1", "no"]})) == {"removed": 1}
        assert _answer(web.post(f"{at}/documents/delete", json={"filter": {"year": 2021}})) == {"removed": 1}
        about = _answer(web.get(at))
        assert (about["count"], about["store"]) == (1, "memory")
        assert "rows" in _answer(web.get("/v1/collections"))["collections"]


def test_nothing_is_written_if_one_document_cannot_be(web: httpx.Client) -> None:
    bad = {"documents": [{"id": "new", "text": "x"}, {"id": "", "text": "y"}]}
    refused = web.post("/v1/collections/fruit/documents", json=bad)
    assert refused.status_code == 422
    assert "documents[1].id is empty" in refused.json()["detail"]
    assert _answer(web.post("/v1/collections/fruit/documents/get", json={"ids": ["new"]})) == {
        "documents": [None]
    }


def test_health_and_metrics(web: httpx.Client) -> None:
    assert _answer(web.get("/healthz"))["status"] == "ok"
    assert _answer(web.get("/readyz"))["status"] == "ready"
    web.post("/v1/encode", json={"texts": ["x"]})
    text = web.get("/metrics").text
    assert 'm3_requests_total{method="POST",route="/v1/encode",status="200"}' in text
    assert "m3_encoded_tokens_total" in text


def test_every_example_of_the_openapi_document_works(running: Running) -> None:
    with filled(running, "examples") as web:
        document = _answer(web.get("/openapi.json"))
        schemas = document["components"]["schemas"]
        tried = 0
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if "requestBody" not in operation:
                    continue
                content = operation["requestBody"]["content"]["application/json"]["schema"]
                examples = schemas[content["$ref"].rpartition("/")[2]]["examples"]
                for example in examples:
                    name = f"new-{tried}" if method == "put" else "examples"
                    answer = web.request(method, path.replace("{name}", name), json=example)
                    assert answer.status_code == 200, (path, example, answer.text)
                    tried += 1
        assert tried >= 20
    with client(running) as web:
        assert web.get("/docs").status_code == 404  # its page would load scripts from elsewhere
