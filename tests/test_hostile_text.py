"""No text of a user becomes syntax of a store: hostile ids, fields and values are found, counted, deleted exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_servers import own
from qdrant_fake import FakeQdrant

from m3_connectors.backends.base import Backend
from m3_connectors.backends.registry import backend_for
from m3_connectors.documents import Document, check_documents
from m3_connectors.errors import InvalidInput
from m3_connectors.filters import matches, parse_filter
from m3_connectors.testing.servers.start import Running
from m3_connectors.testing.worlds import make_world

HOSTILE = (
    '"', "'", "\\", '\\"', '" or key != "', "x'] or key in ['a','b", "*", "?", "a*", "%", "_", "\x00", "\n", "\r\n",
    '{"match_all":{}}', '{"delete":{"_id":"a"}}\n{"index":{}}', "_all", "_id", "/_bulk", "../..", "%2e%2e/",
    "a/b?c=d#e",
    "$meta", '$meta["a"]', "{ids}", "key", "true", "null", "]", ")", "--", "\ufeff", "\u2028", "AND", "OR NOT a:*",
    "[0 TO *]", "ctx._source", "doc['a']", "🇰🇪", "", " ", "a,b", "a b",
)  # fmt: skip
texts = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ids = texts.filter(lambda id: 1 <= len(id.encode()) <= 512)
fields = st.sampled_from(["a", "a.b", "_id", "text", "metadata", "terms", "key", "a key", "ключ"])
WORLD = make_world(61, documents=8, most_rows=2)


class Store:
    """A backend on an event loop of its own."""

    def __init__(self, portal: BlockingPortal, backend: Backend) -> None:
        self.call, self.backend = portal.call, backend


@pytest.fixture(scope="module", params=["memory", "edge", "qdrant", "milvus", "elasticsearch"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    options: dict[str, Any] = {}
    ended = contextlib.ExitStack()
    if request.param == "memory":
        url = "memory:"
    elif request.param == "edge":
        url = f"qdrant:{tmp_path_factory.mktemp('edge')}"
    elif request.param == "qdrant":
        fake = ended.enter_context(FakeQdrant())
        url, options = fake.url, {"grpc_port": fake.grpc_port}
    else:
        running: Running = request.getfixturevalue(f"{request.param}_store")
        url, options = running.url, dict(running.options)
    backend = backend_for(url, own("hostile"), options)
    with ended, start_blocking_portal() as portal:
        try:
            portal.call(backend.create, WORLD.schema)
            yield Store(portal, backend)
        finally:
            portal.call(backend.drop)
            portal.call(backend.close)


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    chosen=st.lists(ids, unique=True, min_size=2, max_size=8),
    values=st.lists(texts, min_size=8, max_size=8),
    field=fields,
    data=st.data(),
)
def test_hostile_text_is_only_ever_text(
    store: Store, chosen: list[str], values: list[str], field: str, data: st.DataObject
) -> None:
    call, backend = store.call, store.backend
    documents = [
        Document(id, f"{value} {id}", {field: value, "other": [value, id]})
        for id, value in zip(chosen, values, strict=False)
    ]
    wanted = values[data.draw(st.integers(0, len(chosen) - 1))]
    filter = parse_filter({field: wanted})
    assert filter is not None
    passing = {document.id for document in documents if matches(filter, document.metadata)}
    try:
        call(backend.upsert, documents, WORLD.embeddings[: len(chosen)])
        assert call(backend.fetch, chosen) == documents
        assert call(backend.count, filter) == len(passing)
        assert call(backend.delete_where, filter) == len(passing)
        left = [None if document.id in passing else document for document in documents]
        assert call(backend.fetch, chosen) == left
        rest = [document.id for document in documents if document.id not in passing]
        if rest:
            assert call(backend.delete, rest[:1]) == 1
            assert call(backend.count) == len(rest) - 1
    finally:
        call(backend.delete, chosen)
    assert call(backend.count) == 0


def test_what_cannot_be_an_id_is_refused_before_the_store_sees_it(store: Store) -> None:
    for bad in ("", "x" * 513, "\ud800", "é" * 257):
        with pytest.raises(InvalidInput):
            check_documents([Document(bad, "")])
        with pytest.raises(InvalidInput):
            store.call(store.backend.upsert, [Document(bad, "")], WORLD.embeddings[0])
        with pytest.raises(InvalidInput):
            store.call(store.backend.delete, [bad])
    assert store.call(store.backend.count) == 0
