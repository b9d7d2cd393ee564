"""The Elasticsearch adapter where no server is needed: names, bodies, and a stub that answers as told."""

from __future__ import annotations

import base64
import time
from typing import Any

import anyio
import cbor2
import numpy as np
import orjson
import pytest
from aiohttp import web
from elasticsearch_stub import error, operations, reply, stub

from m3_connectors.backends.base import Storage
from m3_connectors.backends.blobs import pack_multivector
from m3_connectors.backends.elasticsearch.backend import ElasticsearchBackend
from m3_connectors.backends.elasticsearch.filters import indexed
from m3_connectors.backends.elasticsearch.layout import alias_of, first_index_of
from m3_connectors.backends.elasticsearch.rows import dense_scores, index_operation
from m3_connectors.backends.elasticsearch.writing import write
from m3_connectors.backends.precision import PrecisionName
from m3_connectors.backends.registry import backend_for
from m3_connectors.documents import Document
from m3_connectors.errors import (
    BackendError,
    CollectionNotFound,
    Corrupt,
    DocumentNotFound,
    InvalidInput,
    PartialWrite,
    Rejected,
    StorageFull,
    Throttled,
    TimedOut,
    Unauthorised,
    Unavailable,
)
from m3_connectors.methods import ALL
from m3_connectors.scoring import multivector_scores
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.worlds import make_world

# -- names and options


def test_collections_never_share_an_alias() -> None:
    names = [
        "notes",
        "Notes",
        "nOtes",
        "NOTES",
        "n-otes",
        "n.otes",
        "N",
        "n",
        "n1",
        "N1",
        "logs-a-b",
        "Logs-a-b",
    ]
    aliases = [alias_of(name) for name in names]
    indices = [first_index_of(alias) for alias in aliases]
    assert len({*aliases, *indices}) == 2 * len(names)
    assert all(alias == alias.lower() for alias in aliases)
    with pytest.raises(InvalidInput, match="too long"):
        alias_of("N" * 200)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"refresh": "later"}, "refresh is 'later'"),
        ({"shards": 0}, "shards is 0"),
        ({"replicas": True}, "replicas is True"),
        ({"shard": 1}, "'shard' is not an option of "),
        ({"ca_certs": "/nowhere.pem"}, "ca_certs"),
        ({"username": "me"}, "username is set and password is not"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        backend_for("elasticsearch+https://localhost", "notes", options)


def test_secrets_are_in_no_repr_and_no_error() -> None:
    backend = backend_for("elasticsearch+http://me:hunter2@localhost", "notes", {})
    assert isinstance(backend, ElasticsearchBackend)
    assert "hunter2" not in repr(backend._connection.endpoint) + backend._connection.url
    with pytest.raises(InvalidInput) as caught:
        backend_for("elasticsearch+https://me:hunter2@localhost", "notes", {"api_key": "hunter3"})
    assert "hunter" not in str(caught.value)


# -- bodies


def test_metadata_are_indexed_by_type() -> None:
    metadata = {
        "a": [1, "1", True, 1.5, None, {"b": 2}],
        "o": {"d": "2024-01-01"},
        "x.y": 1,
        "": 1,
        "n": None,
    }
    assert indexed(metadata) == {
        "terms": [
            '["a"]', '["a",1]', '["a","1"]', '["a",true]', '["a",1.5]', '["a.b"]', '["a.b",2]', '["o"]', '["o.d"]',
            '["o.d","2024-01-01"]', '["x"]', '["x.y"]', '["x.y",1]',
        ],
        "numbers": {"a": [1.0, 1.5], "a/b": [2.0], "x/y": [1.0]},
        "dates": {"o/d": [1704067200000000]},
    }  # fmt: skip


def test_whole_numbers_beyond_the_doubles_keep_their_side_of_every_bound() -> None:
    numbers = indexed({"a": [2**53 + 1, -(2**53) - 1, 2**63 - 1, -0.0]})["numbers"]["a"]
    assert numbers == [2.0**53, -(2.0**53) - 4096, 2.0**63 - 4096, 0.0]
    assert str(numbers[3]) == "0.0"


def test_scores_below_zero_are_inner_products_again() -> None:
    # What the server makes of 0.75, 0, -0.25 and -1.
    scores = dense_scores([{"_score": 1.75}, {"_score": 1.0}, {"_score": 0.8}, {"_score": 0.5}])
    np.testing.assert_allclose(scores, [0.75, 0.0, -0.25, -1.0], atol=1e-7)


def test_user_text_cannot_become_a_second_operation() -> None:
    world = make_world(1, documents=1)
    nasty = 'x"}}\n{"delete":{"_id":"y"}}\n'
    lines = index_operation(world.schema, Document(nasty, nasty, {nasty: nasty}), world.embeddings)
    first, second, rest = lines.split(b"\n")
    assert rest == b""
    assert orjson.loads(first) == {"index": {"_id": nasty}}
    assert orjson.loads(second)["text"] == nasty


# -- faults, by a stub


@runs
async def test_items_that_are_refused_for_now_are_sent_again_alone() -> None:
    world = make_world(2, documents=6)
    sent: list[list[str]] = []

    def answer(request: web.Request, body: bytes) -> web.Response | None:
        if not request.path.endswith("_bulk"):
            return None
        ids = operations(body)
        sent.append(ids)
        busy = {
            "status": 429,
            "error": {"type": "es_rejected_execution_exception", "reason": "queue is full"},
        }
        fine = {"status": 201, "result": "created"}
        first_try = len(sent) == 1
        return reply({"items": [{"index": busy if first_try and i % 2 else fine} for i in range(len(ids))]})

    async with stub(world, answer) as backend:
        await backend.upsert(world.documents, world.embeddings)
    ids = [document.id for document in world.documents]
    assert sent == [ids, ids[1::2]]


@runs
async def test_a_partial_write_names_each_failed_id_and_writes_the_rest() -> None:
    world = make_world(3, documents=5)
    bad = {world.documents[1].id, world.documents[4].id}

    def answer(request: web.Request, body: bytes) -> web.Response | None:
        if not request.path.endswith("_bulk"):
            return None
        mapping = {"status": 400, "error": {"type": "document_parsing_exception", "reason": "no such day"}}
        fine = {"status": 201, "result": "created"}
        return reply({"items": [{"index": mapping if id in bad else fine} for id in operations(body)]})

    async with stub(world, answer) as backend:
        with pytest.raises(PartialWrite, match="2 documents were not written") as caught:
            await backend.upsert(world.documents, world.embeddings)
    assert set(caught.value.failed) == bad
    assert all("no such day" in reason for reason in caught.value.failed.values())


@runs
async def test_items_that_stay_refused_are_named_when_patience_ends() -> None:
    world = make_world(4, documents=3)
    tries = 0

    def answer(request: web.Request, body: bytes) -> web.Response | None:
        nonlocal tries
        if not request.path.endswith("_bulk"):
            return None
        tries += 1
        busy = {
            "status": 429,
            "error": {"type": "es_rejected_execution_exception", "reason": "queue is full"},
        }
        fine = {"status": 201, "result": "created"}
        return reply(
            {"items": [{"index": fine if id == world.documents[0].id else busy} for id in operations(body)]}
        )

    async with stub(world, answer, attempts=2) as backend:
        with pytest.raises(PartialWrite) as caught:
            await backend.upsert(world.documents, world.embeddings)
    assert set(caught.value.failed) == {document.id for document in world.documents[1:]}
    assert tries == 2


@runs
async def test_messages_that_are_too_large_are_halved_down_to_the_one_that_is() -> None:
    world = make_world(5, documents=9)
    giant = world.documents[6].id
    accepted: list[str] = []

    def answer(request: web.Request, body: bytes) -> web.Response | None:
        if not request.path.endswith("_bulk"):
            return None
        ids = operations(body)
        if len(ids) > 2 or giant in ids:
            return web.Response(status=413, text="<html>413 Request Entity Too Large</html>")
        accepted.extend(ids)
        return None

    async with stub(world, answer) as backend:
        with pytest.raises(PartialWrite) as caught:
            await backend.upsert(world.documents, world.embeddings)
    assert set(caught.value.failed) == {giant}
    assert sorted(accepted) == sorted(document.id for document in world.documents if document.id != giant)


@runs
async def test_what_a_first_try_did_stands_when_the_second_is_too_large() -> None:
    world = make_world(12, documents=4)
    stored, bad, *busy = (document.id for document in world.documents)
    tries = 0

    def answer(request: web.Request, body: bytes) -> web.Response | None:
        nonlocal tries
        if not request.path.endswith("_bulk"):
            return None
        tries += 1
        if tries == 2:
            return web.Response(status=413, text="too large")
        kinds = {bad: (400, "document_parsing_exception")} | dict.fromkeys(busy, (429, "queue is full"))
        fine = {"status": 201, "result": "created"}
        said = [
            {"status": kinds[id][0], "error": {"type": kinds[id][1], "reason": kinds[id][1]}}
            if tries == 1 and id in kinds
            else fine
            for id in operations(body)
        ]
        return reply({"items": [{"index": item} for item in said]})

    async with stub(world, answer) as backend:
        lines = {
            document.id: index_operation(world.schema, document, world.embeddings[i])
            for i, document in enumerate(world.documents)
        }
        outcome = await write(backend._connection, "notes", lines, "upsert", {})
    assert set(outcome.results) == {stored, *busy}
    assert set(outcome.failed) == {bad}


@runs
async def test_a_request_of_large_metadata_is_bounded() -> None:
    world = make_world(13, documents=6)
    sent: list[int] = []

    def answer(request: web.Request, body: bytes) -> web.Response | None:
        if request.path.endswith("_bulk"):
            sent.append(len(body))
        return None

    heavy = {"words": [f"{i:07d} of a long list" for i in range(40_000)]}
    documents = [Document(document.id, "", heavy) for document in world.documents]
    async with stub(world, answer) as backend:
        await backend.upsert(documents, world.embeddings)
    assert sum(sent) > 12 * 2**20
    assert max(sent) < 9 * 2**20


@runs
async def test_retry_after_is_obeyed() -> None:
    world = make_world(6)
    asked: list[float] = []

    def answer(request: web.Request, body: bytes) -> web.Response | None:
        if not request.path.endswith("_search"):
            return None
        asked.append(time.monotonic())
        if len(asked) == 1:
            return error(429, "circuit_breaking_exception", "too much", **{"retry-after": "1"})
        return None

    async with stub(world, answer) as backend:
        assert await backend.count() == 0
    assert len(asked) == 2
    assert 0.95 <= asked[1] - asked[0] < 5


@pytest.mark.parametrize(
    ("given", "expected", "says"),
    [
        (error(401, "security_exception", "missing credentials"), Unauthorised, "missing credentials"),
        (error(403, "security_exception", "not yours"), Unauthorised, "not yours"),
        (error(404, "index_not_found_exception", "no such index [notes]"), CollectionNotFound, "no such index"),
        (error(429, "circuit_breaking_exception", "too much"), Throttled, "too much"),
        (error(400, "illegal_argument_exception", "it creates data streams only"), Rejected, "another"),
        (error(503, "search_phase_execution_exception", "all shards failed"), Unavailable, "all shards failed"),
        (error(400, "media_type_header_exception", "Accept is not valid"), Rejected, "8.19"),
        (error(500, "exception", "No space left on device"), StorageFull, "No space left"),
        (reply({}, **{"x-elastic-product": "Other"}), Rejected, "not Elasticsearch"),
        (web.Response(text='{"hits": {"hits": [', content_type="application/json"), Unavailable, "cannot be read"),
        (web.Response(status=502, text="<html>bad gateway</html>"), Unavailable, "bad gateway"),
    ],
)  # fmt: skip
@runs
async def test_answers_become_typed_errors(given: web.Response, expected: type[Exception], says: str) -> None:
    world = make_world(7)
    answers = False
    body, status, headers = given.body, given.status, given.headers

    def answer(request: web.Request, _: bytes) -> web.Response | None:
        return web.Response(body=body, status=status, headers=headers) if answers else None

    async with stub(world, answer, attempts=1) as backend:
        answers = True
        backend._connection._client._verified_elasticsearch = False
        with pytest.raises(expected, match=says):
            await backend.search(world.queries[0], ALL, 3)


@runs
async def test_a_server_that_hangs_times_out() -> None:
    world = make_world(8)
    hanging = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = hanging.extra(anyio.abc.SocketAttribute.local_port)
    backend = backend_for(
        f"elasticsearch+http://127.0.0.1:{port}", "notes", {"timeout_seconds": 0.3, "attempts": 2}
    )
    started = time.monotonic()
    with pytest.raises(TimedOut, match="after 2 tries"):
        await backend.open()
    assert time.monotonic() - started < 5
    await backend.close()
    await hanging.aclose()
    nobody = backend_for(f"elasticsearch+http://127.0.0.1:{port}", "notes", {"attempts": 1})
    with pytest.raises(Unavailable, match="no connection"):
        await nobody.create(world.schema)
    await nobody.close()


@runs
async def test_vectors_that_cannot_be_read_say_so() -> None:
    world = make_world(9, documents=1)
    hit = {
        "_id": "a",
        "_score": 1.5,
        "fields": {"rows": [3], "sparse_blob": ["bm8gYmxvYg=="], "multivector_blob": ["***"]},
    }

    def answer(request: web.Request, _: bytes) -> web.Response | None:
        return reply({"hits": {"hits": [hit]}}) if request.path.endswith("_search") else None

    async with stub(world, answer) as backend:
        with pytest.raises(Corrupt, match="sparse vector of document 'a' cannot be read"):
            await backend.score("sparse", world.queries[0], ["a"])
        with pytest.raises(Corrupt, match="multi-vector of document 'a' cannot be read"):
            await backend.score("multivector", world.queries[0], ["a"])


@pytest.mark.parametrize(
    ("dtype", "field", "way"),
    [("float16", "multivector_blob", "docvalue_fields"), ("int2", "multivector", "stored_fields")],
)
@runs
async def test_compact_vectors_arrive_as_bytes_and_others_as_text(
    dtype: PrecisionName, field: str, way: str
) -> None:
    """Compact ones are in a stored field, whose values need no base64 in CBOR; others where they always were."""
    world = make_world(9, documents=1, storage=Storage(multivector_dtype=dtype))
    blob = pack_multivector(world.embeddings.multivectors[0], world.schema.precision)
    asked: list[Any] = []
    accepted: list[str] = []

    def answer(request: web.Request, body: bytes) -> web.Response | None:
        if not request.path.endswith("_search"):
            return None
        asked.append(orjson.loads(body))
        accepted.append(request.headers["accept"])
        value = blob if way == "stored_fields" else base64.b64encode(blob).decode()
        hit = {"_id": world.documents[0].id, "_score": 1.0, "fields": {"rows": [3], field: [value]}}
        kind = {"content-type": "application/vnd.elasticsearch+cbor;compatible-with=8"}
        found = cbor2.dumps({"hits": {"hits": [hit]}})
        return web.Response(body=found, headers={"x-elastic-product": "Elasticsearch", **kind})

    async with stub(world, answer) as backend:
        (score,) = await backend.score("multivector", world.queries[0], [world.documents[0].id])
    rounded = world.schema.precision.rounded(world.embeddings)
    query = world.schema.precision.rounded_query(world.queries[0])
    assert score == pytest.approx(
        multivector_scores(query.multivectors[0], rounded.multivectors)[0], abs=1e-6
    )
    assert field in asked[-1][way]
    assert "cbor" in accepted[-1]


@runs
async def test_other_vectors_are_asked_for_in_json() -> None:
    world = make_world(9, documents=1)
    accepted: list[str] = []

    def answer(request: web.Request, _: bytes) -> web.Response | None:
        if not request.path.endswith("_search"):
            return None
        accepted.append(request.headers["accept"])
        return web.json_response({"hits": {"hits": []}}, headers={"x-elastic-product": "Elasticsearch"})

    async with stub(world, answer, attempts=1) as backend:
        with pytest.raises(DocumentNotFound):
            await backend.score("sparse", world.queries[0], ["a"])
    assert ["cbor" in one for one in accepted] == [False]


@runs
async def test_an_answer_that_is_not_cbor_is_an_error_of_the_server() -> None:
    world = make_world(9, documents=1)
    kind = {"content-type": "application/vnd.elasticsearch+cbor;compatible-with=8"}

    def answer(request: web.Request, _: bytes) -> web.Response | None:
        cut = cbor2.dumps({"hits": {"hits": []}})[:-3]
        headers = {"x-elastic-product": "Elasticsearch", **kind}
        return web.Response(body=cut, headers=headers) if request.path.endswith("_search") else None

    async with stub(world, answer, attempts=1) as backend:
        with pytest.raises(BackendError, match="CBOR"):
            await backend.score("multivector", world.queries[0], ["a"])


@runs
async def test_credentials_are_sent_as_asked() -> None:
    world = make_world(10)
    seen: list[str | None] = []

    def answer(request: web.Request, _: bytes) -> web.Response | None:
        if request.path == "/notes":
            seen.append(request.headers.get("authorization"))
        return None

    for options in ({"api_key": "bXkta2V5"}, {"username": "me", "password": "pässword"}, {}):
        async with stub(world, answer, **options):
            pass
    assert seen == ["ApiKey bXkta2V5", "Basic bWU6cMOkc3N3b3Jk", None]
