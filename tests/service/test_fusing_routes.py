"""What the page needs of the service: all candidates of a method with their scores, and every pair of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from serving import client, serving
from stub_encoder import StubEncoder

from m3_connectors import Document, Index, M3Encoder, connect
from m3_connectors.methods import METHODS
from m3_connectors.service.keys import Keys
from m3_connectors.service.routes.search import MOST_DOCUMENT_ROWS, MOST_QUERY_ROWS

QUERY = "When are plums ripe?"
TEXTS = [f"Plum {i} ripens in week {i % 7} of the season, {'early' if i % 3 else 'late'}." for i in range(40)]
LONG = "Rows of plum trees stand in the old garden behind the mill. " * 60


@pytest.fixture(scope="module")
def web(encoder: M3Encoder) -> Iterator[httpx.Client]:
    with serving(encoder) as running, client(running) as web:
        web.put("/v1/collections/fruit", json={}).raise_for_status()
        documents = [{"id": str(i), "text": text, "metadata": {"n": i}} for i, text in enumerate(TEXTS)]
        documents.append({"id": "long", "text": LONG})
        web.post("/v1/collections/fruit/documents", json={"documents": documents}).raise_for_status()
        yield web


@pytest.fixture(scope="module")
def index(encoder: M3Encoder) -> Iterator[Index]:
    with connect("memory:", encoder=encoder) as index:
        index.add([Document(str(i), text, {"n": i}) for i, text in enumerate(TEXTS)])
        index.add([Document("long", LONG)])
        yield index


def _answer(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def test_the_description_names_the_methods_and_what_they_lack(web: httpx.Client, index: Index) -> None:
    methods = _answer(web.get("/v1/collections/fruit"))["methods"]
    assert list(methods) == list(METHODS)
    for name, about in methods.items():
        assert about["weights"] == list(index.methods[name].weights)
        assert about["missing"] == []
    assert methods["dense_sparse"]["fuses"] == ["dense", "sparse"]
    made = _answer(web.put("/v1/collections/pairs", json={"components": ["dense", "sparse"]}))["methods"]
    assert {name: about["missing"] for name, about in made.items() if about["missing"]} == {
        "multi_vec": ["multivector"],
        "all": ["multivector"],
    }


@pytest.mark.parametrize("method", METHODS)
def test_candidates_are_all_hits_with_the_scores_that_the_method_fuses(
    web: httpx.Client, index: Index, method: str
) -> None:
    asked = {"query": QUERY, "method": method, "filter": {"n": {"$lt": 30}}}
    found = _answer(web.post("/v1/collections/fruit/candidates", json=asked))
    direct = index.search(QUERY, method=index.methods[method], k=1000, filter={"n": {"$lt": 30}})
    assert found["ids"] == [hit.document.id for hit in direct]
    assert found["complete"] is True
    assert list(found["scores"]) == list(METHODS[method].scored)
    for component, values in found["scores"].items():
        np.testing.assert_allclose(values, [getattr(hit.scores, component) for hit in direct], atol=1e-6)
    assert found["weights"] == list(index.methods[method].weights)


def test_candidates_beyond_the_longest_list_are_named_incomplete() -> None:
    texts = [f"text {i}" for i in range(1200)]
    with serving(StubEncoder()) as running, client(running) as web:
        web.put("/v1/collections/many", json={}).raise_for_status()
        documents = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
        web.post("/v1/collections/many/documents", json={"documents": documents}).raise_for_status()

        def ask(method: str) -> Any:
            return _answer(web.post("/v1/collections/many/candidates", json={"query": "x", "method": method}))

        both, dense = ask("dense_sparse"), ask("all")
        assert (both["complete"], len(both["ids"])) == (False, 1000)
        assert (dense["complete"], len(dense["ids"])) == (True, 200)


def test_an_unknown_method_of_candidates_is_refused(web: httpx.Client) -> None:
    refused = web.post("/v1/collections/fruit/candidates", json={"query": "x", "method": "bm25"})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("unknown method 'bm25'.")


def test_explain_has_every_pair_of_tokens(web: httpx.Client, index: Index) -> None:
    found = _answer(web.post("/v1/collections/fruit/explain", json={"query": QUERY, "id": "7"}))
    direct = index.explain(QUERY, "7")
    assert direct.similarities is not None
    assert found["score"] == pytest.approx(direct.score, abs=1e-6)
    assert found["pairs"] == [
        {**pair, "similarity": pytest.approx(pair["similarity"], abs=1e-6)}
        for pair in direct.to_dict()["pairs"]
    ]
    heat = found["similarities"]
    assert heat["query_tokens"] == list(direct.similarities.query_tokens)
    assert heat["document_tokens"] == list(direct.similarities.document_tokens)
    assert heat["document_positions"] == list(range(heat["document_rows"]))
    np.testing.assert_allclose(heat["values"], direct.similarities.values, atol=6e-5)
    assert np.mean(np.max(heat["values"], axis=1)) == pytest.approx(found["scores"]["multivector"], abs=1e-4)


def test_a_long_explanation_says_what_it_leaves_out_and_has_every_best_match(
    web: httpx.Client, index: Index
) -> None:
    query = " ".join(f"plum {i}" for i in range(200))
    heat = _answer(web.post("/v1/collections/fruit/explain", json={"query": query, "id": "long"}))[
        "similarities"
    ]
    whole = index.explain(query, "long").similarities
    assert whole is not None
    assert (heat["query_rows"], heat["document_rows"]) == whole.values.shape
    assert len(heat["query_tokens"]) == MOST_QUERY_ROWS < heat["query_rows"]
    positions = heat["document_positions"]
    assert positions[:MOST_DOCUMENT_ROWS] == list(range(MOST_DOCUMENT_ROWS))
    assert {*whole.best[:MOST_QUERY_ROWS]} <= {*positions}
    assert len(positions) < heat["document_rows"]
    expected = whole.values[:MOST_QUERY_ROWS, positions]
    np.testing.assert_allclose(heat["values"], expected, atol=6e-5)
    assert heat["document_tokens"] == [whole.document_tokens[j] for j in positions]


def test_explain_of_a_collection_without_multi_vectors_has_no_pairs(web: httpx.Client) -> None:
    web.put("/v1/collections/two", json={"components": ["dense", "sparse"]}).raise_for_status()
    one = {"documents": [{"id": "a", "text": "plums"}]}
    web.post("/v1/collections/two/documents", json=one).raise_for_status()
    asked = {"query": "plums", "id": "a", "method": "dense_sparse"}
    found = _answer(web.post("/v1/collections/two/explain", json=asked))
    assert found["similarities"] is None
    assert found["scores"]["multivector"] is None


def test_explain_of_a_document_that_does_not_exist(web: httpx.Client) -> None:
    refused = web.post("/v1/collections/fruit/explain", json={"query": "x", "id": "no"})
    assert refused.status_code == 404
    assert "there is no document 'no'" in refused.json()["detail"]


def test_the_page_is_read_without_a_key_and_nothing_else_is(encoder: M3Encoder) -> None:
    with serving(encoder, keys=Keys({"k" * 20: "read"})) as running, client(running) as web:
        page = web.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        assert web.get("/page/main.js").headers["content-type"].startswith("text/javascript")
        assert web.get("/page/..%2fapp.py").status_code in (401, 404)
        assert web.get("/page/none.js").status_code == 401
        assert web.post("/", json={"inputs": "x"}).status_code == 401  # that of TEI's clients
        assert web.get("/v1/collections").status_code == 401
        web.headers["Authorization"] = f"Bearer {'k' * 20}"
        assert web.get("/page/none.js").json()["detail"].startswith("the page has no file 'none.js'")
        assert web.get("/page/app.py").status_code == 404
        assert len(web.post("/", json={"inputs": "x"}).json()) == 1
        assert "/page/{name}" not in web.get("/openapi.json").json()["paths"]
