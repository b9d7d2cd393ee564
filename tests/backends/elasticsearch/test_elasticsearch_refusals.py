"""What an Elasticsearch has no memory for, is too old for, or does not tell, and how long it asks to wait."""

from __future__ import annotations

import contextlib
import datetime
import email.utils

import orjson
import pytest
from aiohttp import web
from elasticsearch_stub import error, operations, reply, stub

from m3_connectors.backends.retry import asked_seconds
from m3_connectors.errors import NotFound, Rejected, Throttled, Unavailable, Unsupported
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.worlds import make_world

_BREAKER = ("circuit_breaking_exception", "[parent] Data too large")
_PRESSURE = (
    "es_rejected_execution_exception",
    "rejected execution of primary operation [primary_operation_bytes=251658272, max_primary_bytes=107374182]",
)


@pytest.mark.parametrize("said", [_BREAKER, _PRESSURE], ids=["breaker", "indexing pressure"])
@pytest.mark.parametrize("by_item", [True, False])
@runs
async def test_a_write_for_which_memory_is_short_is_halved_and_not_repeated(
    said: tuple[str, str], by_item: bool
) -> None:
    world = make_world(14, documents=8)
    sizes: list[int] = []

    def answer(request: web.Request, body: bytes) -> web.Response | None:
        if not request.path.endswith("_bulk"):
            return None
        ids = operations(body)
        sizes.append(len(ids))
        if len(ids) <= 2:
            return None
        short = {"status": 429, "error": {"type": said[0], "reason": said[1]}}
        return reply({"items": [{"index": short}] * len(ids)}) if by_item else error(429, *said)

    async with stub(world, answer) as backend:
        await backend.upsert(world.documents, world.embeddings)
    assert sizes == [8, 4, 2, 2, 4, 2, 2]


@runs
async def test_a_server_that_takes_nothing_is_not_asked_for_each_document() -> None:
    world = make_world(14, documents=8)
    sizes: list[int] = []

    def answer(request: web.Request, body: bytes) -> web.Response | None:
        if not request.path.endswith("_bulk"):
            return None
        sizes.append(len(operations(body)))
        return error(429, *_BREAKER)

    async with stub(world, answer, attempts=2) as backend:
        with pytest.raises(Throttled, match="Data too large"):
            await backend.upsert(world.documents, world.embeddings)
    assert sizes == [8, 4, 2, 1, 1]


@runs
async def test_answers_for_which_memory_is_short_are_asked_for_in_halves() -> None:
    world = make_world(15, documents=8)
    sizes: list[int] = []

    def answer(request: web.Request, body: bytes) -> web.Response | None:
        if request.path.endswith("_pit"):
            return reply({"id": "pit"})
        asked = orjson.loads(body) if body else {}
        ids = asked.get("ids") or asked.get("query", {}).get("ids", {}).get("values")
        sizes.append(len(ids) if ids else asked.get("size", 0))
        if request.path.endswith("_mget"):
            return error(429, *_BREAKER) if len(ids) > 2 else reply({"docs": []})
        if asked.get("pit") or (ids and "multivector_blob" not in asked["docvalue_fields"] and len(ids) > 2):
            return error(429, *_BREAKER) if sizes[-1] > 2 else reply({"hits": {"hits": []}, "pit_id": "pit"})
        return None

    ids = [document.id for document in world.documents]
    async with stub(world, answer) as backend:
        sizes.clear()
        assert await backend.fetch(ids) == [None] * 8
        assert sizes == [8, 4, 2, 2, 4, 2, 2]
        sizes.clear()
        with pytest.raises(NotFound):
            await backend.score("sparse", world.queries[0], ids)
        assert sizes == [8, 4, 2, 2, 4, 2, 2]
        sizes.clear()
        assert [id async for id in backend.scan_ids()] == []
        assert sizes[:3] == [1000, 500, 250]


@runs
async def test_a_document_that_the_server_could_not_read_is_not_taken_for_one_that_is_not_stored() -> None:
    world = make_world(15, documents=2)
    failed = {"type": "no_shard_available_action_exception", "reason": "no shard for this document"}

    def answer(request: web.Request, body: bytes) -> web.Response | None:
        if not request.path.endswith("_mget"):
            return None
        first, *others = orjson.loads(body)["ids"]
        unknown = [{"_id": id, "found": False} for id in others]
        return reply({"docs": [{"_id": first, "error": failed}, *unknown]})

    async with stub(world, answer, attempts=1) as backend:
        ids = [document.id for document in world.documents]
        for call in (
            backend.fetch(ids),
            backend._reads.versions(ids),
            # Without the names of the old parts, these would be left behind.
            backend.upsert(world.documents, world.embeddings),
            backend.delete(ids),
        ):
            with pytest.raises(Unavailable, match="no shard for this document"):
                await call
    left = 1

    def answer_later(request: web.Request, body: bytes) -> web.Response | None:
        nonlocal left
        if not request.path.endswith("_mget") or not left:
            return None
        left -= 1
        return answer(request, body)

    async with stub(world, answer_later) as backend:
        assert await backend.fetch(ids) == [None, None]  # as the stub says when it is asked again


def test_retry_after_may_be_a_date() -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    asked = asked_seconds(email.utils.format_datetime(soon, usegmt=True))
    assert asked == pytest.approx(100, abs=5)
    over = asked_seconds("Wed, 21 Oct 2015 07:28:00 GMT")
    assert [over, asked_seconds("soon"), asked_seconds(None), asked_seconds("7")] == [None, None, None, 7.0]


@pytest.mark.parametrize(
    ("version", "fits"), [("8.18.4", False), ("7.17.29", False), ("8.19.0", True), ("10.0.0", True)]
)
@runs
async def test_a_server_that_is_too_old_is_refused_by_its_version(version: str, fits: bool) -> None:
    world = make_world(16)
    asked = 0

    def answer(request: web.Request, body: bytes) -> web.Response | None:
        nonlocal asked
        if not request.path.startswith("/_nodes"):
            return None
        asked += 1
        return reply({"nodes": {"a": {"version": "9.2.4"}, "b": {"version": version}}})

    with contextlib.nullcontext() if fits else pytest.raises(Unsupported, match=rf"{version}.*\n  Update"):
        async with stub(world, answer) as backend:
            await backend.open()
    assert asked == 1


@pytest.mark.parametrize(
    "given",
    [
        error(410, "api_not_available_exception", "not available when running in serverless mode"),
        error(403, "security_exception", "this action is unauthorized"),
    ],
)
@runs
async def test_what_a_server_does_not_tell_stops_nothing(given: web.Response) -> None:
    world = make_world(17)
    body, status, headers = given.body, given.status, given.headers

    def answer(request: web.Request, _: bytes) -> web.Response | None:
        told = request.path == "/notes"
        return None if told else web.Response(body=body, status=status, headers=headers)

    async with stub(world, answer) as backend:
        info = await backend.server()
    assert info.version is None
    assert [remark.is_problem for remark in info.remarks] == [False]


@runs
async def test_a_server_that_is_no_elasticsearch_is_no_silent_one() -> None:
    world = make_world(17)

    def answer(request: web.Request, _: bytes) -> web.Response | None:
        return web.Response(status=404, text="not here") if request.path.startswith("/_") else None

    async with stub(world, answer) as backend:
        with pytest.raises(Rejected, match="not here"):
            await backend.server()
