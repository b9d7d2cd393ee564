"""Haystack: its own suites for document stores over an index in memory, and what they do not ask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from stub_encoder import StubEncoder

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before it is imported: it would report to its makers

pytest.importorskip("haystack", reason="haystack-ai is not installed: pip install -e '.[haystack]'")

from haystack import Pipeline
from haystack.components.writers import DocumentWriter
from haystack.dataclasses import ByteStream, Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
from haystack.errors import FilterError
from haystack.testing import document_store as suite
from haystack.testing import document_store_async as async_suite
from haystack.utils import Secret

from m3_connectors import ALL, connect
from m3_connectors.errors import InvalidInput
from m3_connectors.integrations.haystack import (
    M3DocumentEmbedder,
    M3DocumentStore,
    M3Retriever,
    M3TextEmbedder,
)

FRUIT = [
    Document(id="a", content="red apples", meta={"year": 2020}),
    Document(id="b", content="yellow bananas", meta={"year": 2022, "origin": {"country": "ec"}}),
    Document(id="c", content="blue plums", meta={"year": 2024}),
    Document(id="d", content="green pears"),
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def document_store() -> Iterator[M3DocumentStore]:
    store = M3DocumentStore(model=StubEncoder())
    yield store
    store.close()


def _without_embeddings(documents: list[Document]) -> list[dict[str, Any]]:
    rows = [document.to_dict(flatten=False) | {"embedding": None} for document in documents]
    return sorted(rows, key=lambda row: str(row["id"]))


class _Equal:
    """The store returns documents in any order, and without embeddings that it did not compute."""

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        assert _without_embeddings(received) == _without_embeddings(expected)


class TestDocumentStoreStandard(
    _Equal, suite.DocumentStoreBaseExtendedTests, suite.CountDocumentsByFilterTest
):
    @pytest.fixture
    def document_store(self, document_store: M3DocumentStore) -> M3DocumentStore:
        return document_store

    def test_write_documents(self, document_store: M3DocumentStore) -> None:
        assert document_store.write_documents([Document(id="1", content="x")]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([Document(id="1", content="y")])


@pytest.mark.anyio
class TestDocumentStoreStandardAsync(
    _Equal,
    async_suite.CountDocumentsAsyncTest,
    async_suite.CountDocumentsByFilterAsyncTest,
    async_suite.DeleteAllAsyncTest,
    async_suite.DeleteByFilterAsyncTest,
    async_suite.DeleteDocumentsAsyncTest,
    async_suite.FilterDocumentsAsyncTest,
    async_suite.UpdateByFilterAsyncTest,
    async_suite.WriteDocumentsAsyncTest,
):
    async def test_write_documents_async(self, document_store: M3DocumentStore) -> None:
        assert await document_store.write_documents_async([Document(id="1", content="x")]) == 1
        with pytest.raises(DuplicateDocumentError):
            await document_store.write_documents_async([Document(id="1", content="y")])


def test_a_pipeline_returns_the_hits_and_scores_of_the_index() -> None:
    with connect("memory:", encoder=StubEncoder()) as index:
        store = M3DocumentStore(index=index)
        writing, searching = Pipeline(), Pipeline()
        writing.add_component("writer", DocumentWriter(store))
        assert writing.run({"writer": {"documents": FRUIT}})["writer"] == {"documents_written": 4}
        retriever = M3Retriever(store, top_k=2, weights=(1, 2, 3), min_score=-1.0, scores_as="m3")
        searching.add_component("retriever", retriever)
        filters = {"field": "meta.year", "operator": ">=", "value": 2021}
        found = searching.run({"retriever": {"query": "blue plums", "filters": filters}})["retriever"][
            "documents"
        ]
        direct = index.search(
            "blue plums", method=ALL.weighted(1, 2, 3), k=2, filter={"year": {"$gte": 2021}}
        )
        assert [(d.id, d.score) for d in found] == [(hit.document.id, hit.score) for hit in direct]
        assert [d.meta["m3"] for d in found] == [hit.scores.to_dict() for hit in direct]
        assert found[0].content == "blue plums"

        async def main() -> Any:
            pipeline = Pipeline()
            pipeline.add_component("retriever", M3Retriever(store, top_k=1))
            return await pipeline.run_async({"retriever": {"query": "blue plums"}})

        assert [d.id for d in anyio.run(main)["retriever"]["documents"]] == ["c"]


def test_filters_of_a_run_replace_or_join_those_of_the_retriever(document_store: M3DocumentStore) -> None:
    document_store.write_documents(FRUIT)
    since = {"field": "meta.year", "operator": ">=", "value": 2022}
    elsewhere = {"field": "meta.origin.country", "operator": "!=", "value": "ec"}
    for policy, expected in ((FilterPolicy.REPLACE, {"a", "c", "d"}), (FilterPolicy.MERGE, {"c"})):
        retriever = M3Retriever(document_store, filters=since, filter_policy=policy)
        assert {d.id for d in retriever.run("x", filters=elsewhere)["documents"]} == expected
        assert {d.id for d in retriever.run("x")["documents"]} == {"b", "c"}


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({"field": "meta.origin.country", "operator": "==", "value": "ec"}, "b"),
        ({"field": "year", "operator": "==", "value": 2020}, "a"),
        ({"field": "meta.year", "operator": "in", "value": [2020, None]}, "ad"),
        ({"field": "meta.year", "operator": "not in", "value": [2020, None]}, "bc"),
        ({"field": "meta.year", "operator": "in", "value": []}, ""),
        ({"field": "meta.year", "operator": "not in", "value": []}, "abcd"),
        (
            {
                "operator": "OR",
                "conditions": [
                    {"field": "meta.year", "operator": "<", "value": 2021},
                    {
                        "operator": "NOT",
                        "conditions": [{"field": "meta.year", "operator": "!=", "value": None}],
                    },
                ],
            },
            "ad",
        ),
    ],
)
def test_filters_select_the_same_documents_as_haystack_s_own(
    document_store: M3DocumentStore, filters: dict[str, Any], ids: str
) -> None:
    from haystack.utils.filters import document_matches_filter

    document_store.write_documents(FRUIT)
    assert sorted(d.id for d in document_store.filter_documents(filters)) == list(ids)
    assert [d.id for d in FRUIT if document_matches_filter(filters, d)] == list(ids)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"field": "id", "operator": "==", "value": "a"}, "field 'id' is not metadata"),
        ({"field": "meta.year", "operator": "like", "value": "a"}, "unknown comparison operator 'like'"),
        ({"operator": "XOR", "conditions": [{}]}, "unknown logical operator 'XOR'"),
        ({"operator": "AND", "conditions": []}, "conditions is \\[\\]"),
        ({"field": "meta.tags", "operator": "==", "value": ["a"]}, "is list, which cannot be compared"),
        ({"field": "meta.a[0]", "operator": "==", "value": 1}, "without quotes, backslashes"),
    ],
)
def test_filters_without_a_meaning_are_refused_by_name(
    document_store: M3DocumentStore, filters: dict[str, Any], message: str
) -> None:
    for call in (document_store.filter_documents, document_store.delete_by_filter):
        with pytest.raises(FilterError, match=message):
            call(filters)
    with pytest.raises(FilterError, match=message):
        M3Retriever(document_store, filters=filters)


def test_documents_that_cannot_be_stored_are_refused_and_embeddings_are_reported(
    document_store: M3DocumentStore, caplog: pytest.LogCaptureFixture
) -> None:
    for document, message in (
        (Document(id="x", meta={"a": 1}), "has no content"),
        (Document(id="x", content="t", blob=ByteStream(b"1")), "has a blob"),
        (Document(id="x", content="t", meta={"a": {1}}), "JSON cannot represent"),
    ):
        with pytest.raises(InvalidInput, match=message):
            document_store.write_documents([FRUIT[0], document])
    assert document_store.count_documents() == 0
    with pytest.raises(InvalidInput, match="delete needs either ids or a non-empty filter"):
        document_store.delete_by_filter({})
    document_store.write_documents([Document(id="x", content="t", embedding=[1.0])])
    assert "1 documents have embeddings that are not stored" in caplog.text


def test_a_repeated_id_in_one_call_follows_the_policy(document_store: M3DocumentStore) -> None:
    twice = [Document(id="1", content="first"), Document(id="1", content="second")]
    with pytest.raises(DuplicateDocumentError, match="'1' exists already"):
        document_store.write_documents(twice)
    assert document_store.count_documents() == 0
    assert document_store.write_documents(twice, DuplicatePolicy.SKIP) == 1
    assert document_store.filter_documents()[0].content == "first"
    assert document_store.write_documents(twice, DuplicatePolicy.OVERWRITE) == 2
    assert document_store.filter_documents()[0].content == "second"


def test_a_saved_pipeline_is_loaded_as_it_was(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_KEY", "secret-value")
    store = M3DocumentStore(
        "qdrant+http://localhost:1",
        "fruit",
        str(checkpoint),
        encoder_options={"precision": "float32"},
        components=["dense", "sparse"],
        api_key=Secret.from_env_var("STORE_KEY"),
        store_options={"timeout_seconds": 5.0},
    )
    pipeline = Pipeline()
    retriever = M3Retriever(
        store, {"field": "meta.a", "operator": "==", "value": 1}, 3, "dense_sparse", [1, 2, 0], 1, 0.5,
        filter_policy=FilterPolicy.MERGE,
    )  # fmt: skip
    pipeline.add_component("retriever", retriever)
    pipeline.add_component("text", M3TextEmbedder(str(checkpoint), {"precision": "float32"}, ["dense"]))
    pipeline.add_component("documents", M3DocumentEmbedder(str(checkpoint)))
    dumped = pipeline.dumps()
    assert "secret-value" not in dumped
    assert Pipeline.loads(dumped, allowed_modules=["m3_connectors.*"]).dumps() == dumped


def test_what_was_given_an_object_is_not_saved(document_store: M3DocumentStore) -> None:
    with connect("memory:", encoder=StubEncoder()) as index:
        for made in (document_store, M3DocumentStore(index=index), M3TextEmbedder(StubEncoder())):
            with pytest.raises(InvalidInput, match="cannot be saved"):
                made.to_dict()


def test_embedders_give_all_three_representations_and_change_no_document(checkpoint: Any) -> None:
    text = M3TextEmbedder(str(checkpoint))
    text.warm_up()
    told = text.run("red apples")
    encoded = text._encoder.get().encode(["red apples"])
    assert told["embedding"] == encoded.dense[0].tolist()
    assert told["sparse_embedding"].values == encoded.sparse.data.tolist()
    assert told["multivector_embedding"] == encoded.multivectors[0].tolist()
    documents = M3DocumentEmbedder(str(checkpoint))
    (embedded,) = documents.run([FRUIT[0]])["documents"]
    assert (embedded.id, embedded.embedding, embedded.sparse_embedding) == (
        "a",
        told["embedding"],
        told["sparse_embedding"],
    )
    assert (
        getattr(embedded, "multivector_embedding", told["multivector_embedding"])
        == told["multivector_embedding"]
    )
    assert FRUIT[0].embedding is None
    assert documents._encoder.get() is text._encoder.get(), "one model is loaded once"
    assert documents.run([]) == {"documents": []}
    with pytest.raises(InvalidInput, match="'e'\\) has no content"):
        documents.run([Document(id="e")])
