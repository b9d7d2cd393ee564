"""Long documents in Elasticsearch, kept in parts: nobody loses them to another call, and nothing is left behind.

A dict stands for the index, so that calls meet exactly where they would do harm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import anyio
import numpy as np
import orjson
import pytest

from m3_connectors.backends.base import Schema, Storage
from m3_connectors.backends.elasticsearch import rows as bodies
from m3_connectors.backends.elasticsearch import writing
from m3_connectors.backends.elasticsearch.errors import TooMuch
from m3_connectors.backends.elasticsearch.reading import Reader
from m3_connectors.backends.elasticsearch.writing import Writer
from m3_connectors.backends.retry import RetryPolicy
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings, ModelInfo
from m3_connectors.errors import Corrupt, NotFound, PartialWrite, Throttled, Unavailable
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.worlds import join, unit_rows

MODEL = ModelInfo("parts", None, 8, 50, "vocabulary")
SCHEMA = Schema(MODEL, storage=Storage("float32"))
LONG = Document("long", "text")


def embeddings(seed: int, rows: int = 6) -> M3Embeddings:
    vectors = unit_rows(np.random.default_rng(seed).standard_normal((rows, 8), dtype=np.float32))
    return join([(vectors[0], {1: 0.5}, vectors)], MODEL)


def join_two(*of: M3Embeddings) -> M3Embeddings:
    rows = [one.multivectors[0] for one in of if "multivector" in one.components]
    return join([(some[0], {1: 0.5}, some) for some in rows], MODEL)


class Index:
    """The documents of an index; what is stored is searched at once."""

    def __init__(self) -> None:
        self.documents: dict[str, dict[str, Any]] = {}
        self.searched: Callable[[], Awaitable[None]] | None = None

    def writer(
        self, before: Callable[[bytes], Awaitable[None]] | None = None, refused: str | None = None
    ) -> Writer:
        """A writer of parts of 2 rows, whose bulk requests wait for ``before``; the index refuses one id."""
        writer = Writer(_Connection(self, before, refused), "notes", SCHEMA, True)  # type: ignore[arg-type]
        writer._rows_per_part = 2
        return writer

    def reader(self) -> Reader:
        return Reader(_Connection(self), "notes", SCHEMA)  # type: ignore[arg-type]

    @property
    def parts(self) -> set[str]:
        return {id for id, source in self.documents.items() if "part_of" in source}

    async def check_whole(self, *versions: M3Embeddings) -> None:
        """The document is one of these versions, and there are no other parts than its own."""
        found = (await self.reader().embeddings(["long"])).multivectors
        assert found is not None
        assert any(np.array_equal(found.rows, v.multivectors.rows) for v in versions if v.multivectors)


class _Connection:
    url = "http://localhost"
    endpoint = SimpleNamespace(patience=RetryPolicy(attempts=1))

    def __init__(
        self,
        index: Index,
        before: Callable[[bytes], Awaitable[None]] | None = None,
        refused: str | None = None,
    ) -> None:
        self._index = index
        self._before = before
        self._refused = refused

    async def once(self, operation: str, method: str, path: str, body: bytes, **params: str) -> Any:
        if self._before:
            await self._before(body)
        stored, items = self._index.documents, []
        lines = iter(body.splitlines())
        for line in lines:
            ((action, of),) = orjson.loads(line).items()
            if of["_id"] == self._refused:
                next(lines)
                items.append({action: {"status": 400, "error": {"type": "refused", "reason": "not this"}}})
                continue
            if action == "index":
                result = "updated" if of["_id"] in stored else "created"
                stored[of["_id"]] = orjson.loads(next(lines))
            else:
                result = "deleted" if stored.pop(of["_id"], None) else "not_found"
            items.append({action: {"result": result, "status": 200}})
        return {"items": items}

    async def request(self, operation: str, method: str, path: str, body: Any = None, **params: str) -> Any:
        if not path.endswith("_mget"):
            return {}
        stored = self._index.documents
        return {
            "docs": [{"_id": id, "found": id in stored, "_source": stored.get(id, {})} for id in body["ids"]]
        }

    async def stored(
        self, operation: str, alias: str, ids: Any, fields: str, *, divisible: bool = False
    ) -> list[Any]:
        answer = await self.request(operation, "POST", "_mget", {"ids": ids})
        return [one for one in answer["docs"] if one["found"]]

    async def search(self, operation: str, alias: str, body: Any, *, divisible: bool = False) -> list[Any]:
        stored, query = self._index.documents, body["query"]
        if "bool" in query:
            of = query["bool"]["filter"][0]["terms"]["part_of"]
            but = query["bool"]["must_not"][0]["ids"]["values"]
            ids = [id for id, source in stored.items() if source.get("part_of") in of and id not in but]
        else:
            ids = [id for id in query["ids"]["values"] if id in stored]
        hits = [{"_id": id, "fields": {}} for id in ids]
        for hit in hits:
            for name in (*body.get("docvalue_fields", ()), *body.get("fields", ())):
                if name in stored[hit["_id"]]:
                    value = stored[hit["_id"]][name]
                    hit["fields"][name] = value if isinstance(value, list) else [value]
        if self._index.searched:
            await self._index.searched()
        return hits


@runs
async def test_two_writes_of_one_long_document_leave_one_of_them_whole() -> None:
    index, versions = Index(), [embeddings(1), embeddings(2)]
    other_is_through = anyio.Event()

    async def wait(body: bytes) -> None:
        if b"part_of" not in body:  # its parts are there, the document that names them is not
            await other_is_through.wait()

    async def other() -> None:
        await index.writer().upsert([LONG], versions[1])
        other_is_through.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(index.writer(wait).upsert, [LONG], versions[0])
        await anyio.sleep(0)
        tasks.start_soon(other)
    await index.check_whole(*versions)


@pytest.mark.parametrize("stored", [True, False])
@runs
async def test_parts_stay_if_the_document_that_names_them_was_stored_by_a_request_whose_answer_was_lost(
    stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, once = Index(), _Connection.once
    conflict = {"type": "version_conflict_engine_exception", "reason": "it is another version"}

    async def answer_lost(
        self: Any, operation: str, method: str, path: str, body: bytes, **params: str
    ) -> Any:
        if b"if_seq_no" not in body:
            return await once(self, operation, method, path, body, **params)
        if stored:
            await once(self, operation, method, path, body, **params)
        return {"items": [{"index": {"status": 409, "error": conflict}}]}

    monkeypatch.setattr(_Connection, "once", answer_lost)
    await index.writer().upsert([LONG], embeddings(1), {"long": bodies.Version(1, 1)})
    if stored:
        await index.check_whole(embeddings(1))
    assert len(index.parts) == (3 if stored else 0)


@runs
async def test_a_delete_beside_a_write_leaves_the_document_whole_or_gone() -> None:
    index, versions = Index(), [embeddings(1), embeddings(2)]
    await index.writer().upsert([LONG], versions[0])
    deleted = anyio.Event()

    async def wait(body: bytes) -> None:
        if b"part_of" not in body:
            await deleted.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(index.writer(wait).upsert, [LONG], versions[1])
        await anyio.wait_all_tasks_blocked()
        assert await index.writer().delete(["long"]) == 1
        deleted.set()
    await index.check_whole(versions[1])


@runs
async def test_parts_are_replaced_and_go_with_their_document() -> None:
    index = Index()
    for seed, rows in ((1, 6), (2, 10), (3, 2)):
        await index.writer().upsert([LONG], embeddings(seed, rows))
        assert len(index.parts) == (rows // 2 if rows > 2 else 0)
        await index.check_whole(embeddings(seed, rows))
    await index.writer().upsert([LONG], embeddings(4))
    assert await index.writer().delete(["long", "unknown"]) == 1
    assert not index.documents


@runs
async def test_what_failed_calls_left_goes_with_the_document_once_it_is_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = Index()

    async def fail(body: bytes) -> None:
        if b"part_of" not in body:
            raise Unavailable("gone.", backend="elasticsearch", operation="upsert")

    await index.writer().upsert([LONG], embeddings(1))
    with contextlib.suppress(Unavailable):
        await index.writer(fail).upsert([LONG], embeddings(2))
    assert len(index.parts) == 6
    now = writing.time.time()
    monkeypatch.setattr(bodies.time, "time", lambda: now + 2 * writing.ORPHANED_SECONDS)
    await index.writer().delete(["long"])
    assert not index.documents


async def _no_deletes_of_parts(body: bytes) -> None:
    if body.startswith(b'{"delete"') and b"-0000" in body:
        raise Throttled("busy.", backend="elasticsearch", operation="upsert")


@runs
async def test_a_write_whose_clean_up_fails_is_done_and_says_what_was_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    index, both = Index(), join_two(embeddings(2), embeddings(3, rows=1))
    documents = [LONG, Document("short", "text")]
    await index.writer().upsert([LONG], embeddings(1))
    await index.writer(_no_deletes_of_parts).upsert(documents, both)
    await index.check_whole(embeddings(2))
    assert "remain in the index" in caplog.text
    with pytest.raises(PartialWrite) as caught:
        await index.writer(_no_deletes_of_parts, refused="short").upsert(documents, both)
    assert set(caught.value.failed) == {"short"}


@runs
async def test_a_delete_whose_clean_up_failed_is_finished_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = Index()
    await index.writer().upsert([LONG], embeddings(1))
    assert await index.writer(_no_deletes_of_parts).delete(["long"]) == 1
    assert index.parts
    now = writing.time.time()
    monkeypatch.setattr(bodies.time, "time", lambda: now + 2 * writing.ORPHANED_SECONDS)
    assert await index.writer().delete(["long"]) == 0
    assert not index.documents


@runs
async def test_what_was_refused_is_told_though_the_refresh_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index()

    async def fail(self: Any, operation: str, method: str, path: str, *_: Any, **params: str) -> Any:
        if path.endswith("_refresh"):
            raise Throttled("busy.", backend="elasticsearch", operation=operation)
        return {"docs": []}

    monkeypatch.setattr(_Connection, "request", fail)
    both = join_two(embeddings(2), embeddings(3, rows=1))
    documents = [LONG, Document("short", "text")]
    with pytest.raises(Throttled):
        await index.writer().upsert(documents, both)
    with pytest.raises(PartialWrite, match="short"):
        await index.writer(refused="short").upsert(documents, both)


@runs
async def test_a_document_that_is_replaced_while_it_is_read_is_read_again() -> None:
    index = Index()
    await index.writer().upsert([LONG], embeddings(1))
    searches = 0

    async def replace() -> None:
        nonlocal searches
        searches += 1
        if searches == 2:  # the document was read, its parts are next
            await index.writer().upsert([LONG], embeddings(2))

    index.searched = replace
    await index.check_whole(embeddings(2))


@runs
async def test_a_document_that_is_deleted_while_it_is_read_is_not_found() -> None:
    index = Index()
    await index.writer().upsert([LONG], embeddings(1))
    searches = 0

    async def delete() -> None:
        nonlocal searches
        searches += 1
        if searches == 2:
            await index.writer().delete(["long"])

    index.searched = delete
    with pytest.raises(NotFound, match="'long'"):
        await index.reader().embeddings(["long"])


@runs
async def test_a_document_that_lacks_parts_is_corrupt_by_its_own_id(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index()
    await index.writer().upsert([LONG], embeddings(1))
    del index.documents[min(index.parts)]
    monkeypatch.setattr(Reader, "pauses_seconds", (0.0, 0.0))
    with pytest.raises(
        Corrupt,
        match=r"parts of the multi-vectors of document 'long' are missing\.\n  Index the document again\.",
    ):
        await index.reader().embeddings(["long"])


@runs
async def test_parts_are_read_in_halves_where_the_server_lacks_memory_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index, search = Index(), _Connection.search
    await index.writer().upsert([LONG], embeddings(1, rows=8))
    sizes = []

    async def short_of_memory(
        self: Any, operation: str, alias: str, body: Any, *, divisible: bool = False
    ) -> list[Any]:
        sizes.append(body.get("size"))
        if len(body["query"].get("ids", {}).get("values", ())) > 1:
            raise TooMuch("no memory.", backend="elasticsearch", operation=operation)
        return await search(self, operation, alias, body, divisible=divisible)

    monkeypatch.setattr(_Connection, "search", short_of_memory)
    await index.check_whole(embeddings(1, rows=8))
    assert len(index.parts) == 4
    assert (sizes.count(2), sizes.count(1)) == (2, 2 + 4)
