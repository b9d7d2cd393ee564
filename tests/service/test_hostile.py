"""Hostile requests get a problem with the library's own message: no stack trace, no leak, nothing half written."""

from __future__ import annotations

import json
import logging
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Running, client, filled, serving
from stub_encoder import StubEncoder

from m3_connectors.errors import InvalidInput
from m3_connectors.service.keys import Keys

SEARCH = "/v1/collections/fruit/search"
WRITER, READER = "w" * 32, "r" * 32


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(StubEncoder(), max_body_bytes=100_000, max_texts=100) as running:
        yield running


@pytest.fixture(scope="module")
def web(running: Running) -> Iterator[httpx.Client]:
    with filled(running) as web:
        yield web


def _problem(answer: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["type"].startswith("urn:m3-connectors:problem:")
    assert "Traceback" not in answer.text
    for word in words:
        assert word in body["detail"]
    return body


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/collections/no/search", {"query": "x"}, 404, ['"no"', "GET /v1/collections"]),
        ("/v1/collections/..%2Fetc/search", {"query": "x"}, 404, []),
        ("/v1/collections/a%20b/search", {"query": "x"}, 422, ["collection name 'a b' is not valid"]),
        (SEARCH, {}, 422, ["either query or vectors, but got neither"]),
        (SEARCH, {"query": "x", "vectors": {"dense": [1.0] * 8}}, 422, ["but got both"]),
        (SEARCH, {"query": "x", "top_k": 3}, 422, ["top_k"]),
        (SEARCH, {"query": "x", "k": 0}, 422, ["body.k"]),
        (SEARCH, {"query": "x", "k": 10**30}, 422, ["body.k"]),
        (SEARCH, {"query": "x", "method": "bm25"}, 422, ["unknown method 'bm25'", "dense_sparse"]),
        (SEARCH, {"query": "x", "weights": [0, 0, 0]}, 422, ["all three weights are 0"]),
        (SEARCH, {"query": "x", "weights": [1e308, 1e308, 1e308]}, 422, ["the weight of dense is 1e+308"]),
        (SEARCH, {"query": "x", "weights": [-1, 0, 1]}, 422, ["the weight of dense is -1.0"]),
        (SEARCH, {"query": "x", "filter": {"year": {"$like": 1}}}, 422, ["unknown operator '$like'"]),
        (SEARCH, {"query": "\ud800"}, 422, ["unicode"]),
        (SEARCH, {"vectors": {"dense": [1.0] * 7}, "method": "dense"}, 422, ["has 7 values"]),
        (SEARCH, {"vectors": {"sparse": {"indices": [5, 5], "values": [1, 1]}}}, 422, ["each id once"]),
        (SEARCH, {"vectors": {"sparse": {"indices": [100], "values": [1]}}}, 422, ["the index 100"]),
        (SEARCH, {"vectors": {"multivector": [[1.0]]}}, 422, ["multivector[0] has 1 values"]),
        (SEARCH, {"vectors": {"dense": [1.0] * 8}, "explain": True}, 422, ["only vectors"]),
        (SEARCH, {"query": "x", "explain": True, "k": 101}, 422, ["k is 101", "at most 100"]),
        ("/v1/encode", {"texts": ["x"] * 101}, 413, ["101 texts", "at most 100"]),
        ("/v1/encode", {"texts": ["x"], "components": ["bm25"]}, 422, ["components"]),
        ("/v1/encode", {"texts": "x"}, 422, ["texts"]),
        ("/v1/score", {"pairs": [["x"]]}, 422, ["pairs"]),
        ("/v1/collections/fruit/documents/delete", {}, 422, ["either ids or a non-empty filter"]),
        ("/v1/collections/fruit/documents/scan", {"filter": {"a": {"$x": 1}}}, 422, ["'$x'"]),
        (
            "/v1/collections/fruit/documents",
            {"documents": [{"id": "n", "text": "x", "metadata": {"a": 10**20}}]},
            422,
            ["64 bits"],
        ),
        ("/nowhere", {}, 404, ["/openapi.json"]),
    ],
)
def test_bad_input(web: httpx.Client, path: str, body: Any, status: int, words: list[str]) -> None:
    answer = web.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    _problem(answer, status, *words)


def test_vectors_of_another_model(web: httpx.Client) -> None:
    encoded = web.post("/v1/encode", json={"texts": ["x"]}).json()
    model = encoded["model"] | {"name": "other", "weights_fingerprint": "0" * 64}
    vectors = {"dense": encoded["dense"][0], "model": model}
    body = _problem(web.post(SEARCH, json={"vectors": vectors, "method": "dense"}), 409, "other")
    assert body["title"] == "ModelMismatch"


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b'{"query": "\xc3\x28"}',
        b"",
        b"{",
        b"[" * 50_000,
        b"null",
        b'"x"',
        b'{"query": NaN}',
        b"1e999",
    ],
    ids=["binary", "not-utf-8", "empty", "cut", "nested", "null", "string", "nan", "inf"],
)
def test_bodies_that_are_no_request(web: httpx.Client, content: bytes) -> None:
    answer = web.post(SEARCH, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    _problem(answer, answer.status_code)


def test_large_bodies_are_refused_by_their_length_and_while_they_come(web: httpx.Client) -> None:
    body = _problem(web.post(SEARCH, content=b" " * 100_001), 413, "100,001 bytes", "at most 100,000")
    assert body["title"] == "BodyTooLarge"

    def chunks() -> Iterator[bytes]:
        for _ in range(1000):
            yield b" " * 1000

    try:
        answer = web.post(SEARCH, content=chunks())
    except httpx.TransportError:
        return  # the server closed the connection while the client was still sending
    _problem(answer, 413, "more than 100,000")


def test_compressed_bodies_wrong_methods_and_timeouts(web: httpx.Client) -> None:
    _problem(web.post(SEARCH, content=b"x", headers={"Content-Encoding": "gzip"}), 415, "gzip")
    wrong = web.get(SEARCH)
    _problem(wrong, 405)
    assert wrong.headers["allow"] == "POST"
    _problem(web.post("/v1/encode", json={"texts": ["x"]}, headers={"Accept": "image/png"}), 406, "image/png")
    for value in ("0", "-1", "soon", "nan"):
        _problem(web.get("/healthz", headers={"X-Timeout-Seconds": value}), 400, value)


def test_keys(caplog: pytest.LogCaptureFixture) -> None:
    for logger in ("m3_connectors", "uvicorn"):  # the client of the test logs URLs
        caplog.set_level(logging.DEBUG, logger=logger)
    keys = Keys({WRITER: "write", READER: "read"})
    with serving(StubEncoder(), keys=keys) as running:
        with filled(running, headers={"Authorization": f"Bearer {WRITER}"}) as web:
            assert web.get("/v1/collections/fruit").json()["count"] == 3
        with client(running, headers={"X-API-Key": READER}) as web:
            assert web.post(SEARCH, json={"query": "snow"}).status_code == 200
            new = {"documents": [{"id": "new", "text": "x"}]}
            _problem(web.post("/v1/collections/fruit/documents", json=new), 403, "only reads")
            _problem(web.put("/v1/collections/new", json={}), 403, "only reads")
            _problem(web.post("/v1/collections/fruit/documents/delete", json={"ids": ["1"]}), 403)
            assert web.get("/v1/collections/fruit").json()["count"] == 3
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic eDp5"},
            {"X-API-Key": ""},
        ):
            with client(running, headers=headers) as web:
                answer = web.post(SEARCH, json={"query": "secret words"})
                _problem(answer, 401, "Authorization: Bearer KEY")
                assert answer.headers["www-authenticate"] == "Bearer"
                _problem(web.get("/metrics"), 401)
                assert web.get("/healthz").status_code == 200
        with client(running) as web:
            _problem(web.get(f"/v1/collections?api_key={WRITER}"), 400, "'api_key'")
    assert WRITER not in caplog.text
    assert READER not in caplog.text
    assert "secret words" not in caplog.text


def test_keys_of_files_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{WRITER}\n{READER} read  # the page\n\n")
    keys = Keys.load(file, {"M3_SERVE_READ_KEYS": f"{'e' * 16}, {'f' * 16}", "M3_SERVE_API_KEYS": "g" * 16})
    assert [keys.access_of(key) for key in (WRITER, READER, "e" * 16, "f" * 16, "g" * 16)] == [
        "write", "read", "read", "read", "write",
    ]  # fmt: skip
    assert keys.access_of("wrong") is None
    assert keys.access_of(None) is None
    assert Keys({}).access_of(None) == "write"
    assert WRITER not in repr(keys)
    for text, words in (("", "has no API keys"), (f"{WRITER} all", "line 1"), ("short", "has 5 characters")):
        file.write_text(text)
        with pytest.raises(InvalidInput, match=words):
            Keys.load(file, {})


def test_an_unknown_error_tells_and_logs_no_text(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(StubEncoder):
        def encode(self, texts: Any, *, components: Any = ()) -> Any:
            raise RuntimeError(f"cannot encode {texts}")

    with serving(Failing()) as running, client(running) as web:
        _problem(web.post("/v1/encode", json={"texts": ["secret words"]}), 500, "RuntimeError in the service")
        assert "secret" not in web.post("/v1/encode", json={"texts": ["secret words"]}).text
    assert "RuntimeError in a request" in caplog.text
    assert "test_hostile.py" in caplog.text
    assert "secret" not in caplog.text


def test_slow_clients_do_not_hold_up_others(running: Running) -> None:
    """1,000 clients that never finish their requests, or as many as this process may have open files for."""
    count = min(1000, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200) // 2)
    host, _, port = running.url.removeprefix("http://").partition(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(count)]
    try:
        for one in slow:
            one.sendall(b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        with client(running) as web:
            assert web.post("/v1/encode", json={"texts": ["x"]}).status_code == 200
    finally:
        for one in slow:
            one.close()


def test_a_request_that_comes_too_slowly_is_given_up() -> None:
    with serving(StubEncoder(), deadline_seconds=0.2) as running:
        host, _, port = running.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as slow:
            slow.sendall(b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
            answer = slow.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 504 ")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def operations(web: httpx.Client) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, path and an example of each route that takes a body."""
    document = web.get("/openapi.json").json()
    found = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                example = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["examples"][-1]
                found.append((method, path.replace("{name}", "fruit"), example))
    return found


@settings(max_examples=100)
@given(data=st.data())
def test_no_body_makes_the_service_fail(
    web: httpx.Client, operations: list[tuple[str, str, dict[str, Any]]], data: st.DataObject
) -> None:
    method, path, example = data.draw(st.sampled_from(operations))
    body = dict(example)
    names = st.sampled_from([*example, "filter", "weights", "extra"])
    for name in data.draw(st.lists(names, min_size=1, max_size=2)):
        body[name] = data.draw(_JSON)
    content = json.dumps(body).encode()
    answer = web.request(method, path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code < 500, (path, body, answer.text)
    assert "Traceback" not in answer.text
    if answer.status_code >= 400:
        _problem(answer, answer.status_code)


MANY = 200_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/encode", {"texts": [1] * MANY}),
        ("/v1/encode", {"texts": ["x"], "components": ["x"] * MANY}),
        ("/v1/encode", {f"field{i}": 1 for i in range(MANY // 20)}),
        ("/v1/score", {"pairs": [[1, 1]] * MANY}),
        ("/v1/embeddings", {"input": [None] * MANY}),
        ("/pooling", {"input": [[None] * MANY]}),
        ("/embed", {"inputs": [1] * MANY}),
        ("/rerank", {"query": "x", "texts": [1] * MANY}),
        ("/v1/rerank", {"query": "x", "documents": [1] * MANY}),
        ("/similarity", {"inputs": {"source_sentence": "x", "sentences": [1] * MANY}}),
        (SEARCH, {"vectors": {"dense": ["x"] * MANY}}),
        (SEARCH, {"vectors": {"sparse": {"indices": [-1] * MANY, "values": []}}}),
        (SEARCH, {"vectors": {"multivector": [["x"]] * MANY}}),
        ("/v1/collections/fruit/documents", {"documents": [1] * MANY}),
        ("/v1/collections/fruit/documents/get", {"ids": [1] * MANY}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value)[:20],
)
def test_a_body_of_countless_mistakes_has_few_errors(path: str, body: Any) -> None:
    """Each error costs 0.1 ms, during which no other request is answered."""
    with serving(StubEncoder()) as running, filled(running) as web:
        problem = _problem(web.post(path, json=body), 422)
    assert 0 < len(problem["errors"]) < 20


@pytest.mark.parametrize(
    "query", [f"x={WRITER}", f"X-API-Key={WRITER}", WRITER, f"a[]=1&b={READER}", "authorization=x"]
)
def test_a_key_anywhere_in_the_query_of_a_url_is_refused(query: str) -> None:
    with (
        serving(StubEncoder(), keys=Keys({WRITER: "write", READER: "read"})) as running,
        client(running) as web,
    ):
        answer = web.get(f"/v1/collections?{query}", headers={"X-API-Key": WRITER})
        assert _problem(answer, 400)["title"] == "KeyInUrl"
        assert WRITER not in answer.text
        assert READER not in answer.text
        assert web.get("/v1/collections?x=y", headers={"X-API-Key": WRITER}).status_code == 200


def test_head_is_answered_as_get_without_the_body(web: httpx.Client) -> None:
    for path in ("/", "/healthz", "/readyz", "/v1/collections/fruit"):
        answer = web.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == web.get(path).headers["content-length"] != "0"


def test_no_answer_leads_to_the_host_that_a_client_names(web: httpx.Client) -> None:
    answer = web.post(
        "/v1/collections/fruit/documents/", json={"documents": []}, headers={"Host": "elsewhere"}
    )
    _problem(answer, 404)
    assert "elsewhere" not in f"{answer.text}{answer.headers}"


def test_no_path_of_the_machine_is_named(tmp_path: Path) -> None:
    with serving(StubEncoder(), f"qdrant:{tmp_path}") as running, client(running) as web:
        web.put("/v1/collections/fruit", json={}).raise_for_status()
        problem = _problem(web.get("/v1/collections/none"), 404, 'there is no collection "none"')
    assert str(tmp_path) not in problem["detail"]
