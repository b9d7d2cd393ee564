"""LlamaIndex: nodes, queries, filters and ingestion through an index in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from stub_encoder import StubEncoder

from m3_connectors import ALL, Index, connect
from m3_connectors import Document as Ours
from m3_connectors.errors import InvalidInput, Unsupported

pytest.importorskip(
    "llama_index.core", reason="llama-index-core is not installed: pip install -e '.[llama-index]'"
)

from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from m3_connectors.integrations.llama_index import (
    EncodedByStore,
    M3Embedding,
    M3Retriever,
    M3VectorStore,
)


def _node(id: str, text: str, parent: str | None = None, **metadata: Any) -> TextNode:
    node = TextNode(id_=id, text=text, metadata=metadata)
    if parent is not None:
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=parent)
    return node


NODES = [
    _node("a", "red apples", "doc-1", year=2020, tags=["x", "y"]),
    _node("b", "yellow bananas", "doc-1", year=2022, tags=["y"], note=""),
    _node("c", "blue plums", "doc-2", year=2024),
    _node("d", "green pears", tags=["x"]),
]


@pytest.fixture
def index() -> Iterator[Index]:
    with connect("memory:", encoder=StubEncoder()) as index:
        yield index


@pytest.fixture
def store(index: Index) -> M3VectorStore:
    made = M3VectorStore(index)
    before = [node.model_dump() for node in NODES]
    assert made.add(NODES) == ["a", "b", "c", "d"]
    assert [node.model_dump() for node in NODES] == before
    return made


def test_nodes_come_back_as_they_were(store: M3VectorStore) -> None:
    assert (store.stores_text, store.is_embedding_query) == (True, False)
    found = store.query(VectorStoreQuery(query_str="red apples", similarity_top_k=4))
    assert found.ids is not None
    assert found.nodes is not None
    by_id = {node.node_id: node for node in found.nodes}
    assert [by_id[node.node_id].model_dump() for node in NODES] == [node.model_dump() for node in NODES]
    assert found.ids[0] == "a"


def test_hits_and_scores_are_those_of_the_index(index: Index, store: M3VectorStore) -> None:
    direct = index.search("blue plums", method=ALL.weighted(1, 2, 3), k=2, filter={"year": {"$gte": 2021}})
    expected = [(hit.document.id, hit.score) for hit in direct]
    since = MetadataFilters(filters=[MetadataFilter(key="year", value=2021, operator=FilterOperator.GTE)])
    retriever = M3Retriever(index, filters=since, weights=(1, 2, 3), k=2, scores_as="m3")
    found = retriever.retrieve("blue plums")
    assert [(item.node.node_id, item.score) for item in found] == expected
    assert [item.metadata["m3"] for item in found] == [hit.scores.to_dict() for hit in direct]
    own = VectorStoreIndex.from_vector_store(store, embed_model=M3Embedding(StubEncoder())).as_retriever(
        similarity_top_k=2, filters=since, vector_store_kwargs={"weights": (1, 2, 3)}
    )
    assert [(item.node.node_id, item.score) for item in own.retrieve("blue plums")] == expected

    async def main() -> list[Any]:
        return [await retriever.aretrieve("blue plums"), await own.aretrieve("blue plums")]

    for again in anyio.run(main):
        assert [(item.node.node_id, item.score) for item in again] == expected


@pytest.mark.parametrize(
    ("mode", "alpha", "method"),
    [
        (VectorStoreQueryMode.DEFAULT, None, "all"),
        (VectorStoreQueryMode.SPARSE, None, "sparse"),
        (VectorStoreQueryMode.HYBRID, None, "dense_sparse"),
        (VectorStoreQueryMode.HYBRID, 0.25, (0.25, 0.75)),
    ],
)
def test_modes_are_methods(
    index: Index, store: M3VectorStore, mode: VectorStoreQueryMode, alpha: float | None, method: Any
) -> None:
    chosen = index.methods["dense_sparse"].weighted(*method) if isinstance(method, tuple) else method
    direct = index.search("red apples", method=chosen, k=3)
    found = store.query(VectorStoreQuery(query_str="red apples", similarity_top_k=3, mode=mode, alpha=alpha))
    assert found.similarities == [hit.score for hit in direct]


def test_an_embedding_searches_by_dense_and_no_query_is_refused(index: Index, store: M3VectorStore) -> None:
    vector = M3Embedding(StubEncoder()).get_query_embedding("blue plums")
    found = store.query(VectorStoreQuery(query_embedding=vector, similarity_top_k=2))
    assert found.ids == [hit.document.id for hit in index.search("blue plums", method="dense", k=2)]
    with pytest.raises(InvalidInput, match="neither query_str nor query_embedding"):
        store.query(VectorStoreQuery())
    with pytest.raises(Unsupported, match="query mode 'mmr' is not supported"):
        store.query(VectorStoreQuery(query_str="x", mode=VectorStoreQueryMode.MMR))
    with pytest.raises(InvalidInput, match="'top' is not an option"):
        store.query(VectorStoreQuery(query_str="x"), top=1)


def _ids(store: M3VectorStore, filters: MetadataFilters) -> str:
    return "".join(sorted(node.node_id for node in store.get_nodes(filters=filters)))


@pytest.mark.parametrize(
    ("key", "operator", "value", "ids"),
    [
        ("year", "==", 2020, "a"),
        ("year", "!=", 2020, "bcd"),
        ("year", ">", 2020, "bc"),
        ("year", ">=", 2022, "bc"),
        ("year", "<", 2022, "a"),
        ("year", "<=", 2022, "ab"),
        ("year", "in", [2020, 2024], "ac"),
        ("year", "nin", [2020, 2024], "bd"),
        ("tags", "contains", "x", "ad"),
        ("tags", "any", ["x", "z"], "ad"),
        ("tags", "all", ["x", "y"], "a"),
        ("note", "is_empty", None, "abcd"),
        ("year", "is_empty", None, "d"),
    ],
)
def test_filters_select_what_llama_index_s_own_store_selects(
    store: M3VectorStore, key: str, operator: str, value: Any, ids: str
) -> None:
    one = MetadataFilters(filters=[MetadataFilter(key=key, operator=FilterOperator(operator), value=value)])
    assert _ids(store, one) == ids
    theirs = SimpleVectorStore()
    theirs.add([node.model_copy(update={"embedding": [1.0]}) for node in NODES])
    found = theirs.query(VectorStoreQuery(query_embedding=[1.0], similarity_top_k=4, filters=one))
    assert "".join(sorted(found.ids or [])) == ids
    none = MetadataFilters(filters=one.filters, condition=FilterCondition.NOT)
    assert _ids(store, none) == "".join(id for id in "abcd" if id not in ids)


def test_nested_filters_and_ids_are_joined(store: M3VectorStore) -> None:
    year = MetadataFilter(key="year", operator=FilterOperator.GT, value=2023)
    tag = MetadataFilter(key="tags", operator=FilterOperator.CONTAINS, value="y")
    either = MetadataFilters(filters=[year, MetadataFilters(filters=[tag])], condition=FilterCondition.OR)
    assert _ids(store, either) == "abc"
    query = VectorStoreQuery(query_str="x", similarity_top_k=4, filters=either, doc_ids=["doc-1"])
    assert sorted(store.query(query).ids or []) == ["a", "b"]
    query.node_ids = ["b", "c"]
    assert store.query(query).ids == ["b"]
    query.node_ids = []
    assert sorted(store.query(query).ids or []) == ["a", "b"], (
        "LlamaIndex's own retriever passes [] for all nodes"
    )
    assert store.get_nodes([]) == []
    query = VectorStoreQuery(query_str="x", similarity_top_k=4, doc_ids=["doc-1"])
    assert store.query(query, filter={"year": 2022}).ids == ["b"]


@pytest.mark.parametrize(
    ("key", "operator", "value", "message"),
    [
        ("note", "text_match", "x", "operator 'text_match' on 'note' is not supported"),
        ("note", "text_match_insensitive", "x", "operator 'text_match_insensitive'"),
        ("note", "==", None, "compares with None"),
        ("tags", "all", "x", "it must be a list that is not empty"),
        ("tags", "==", ["x"], "is list, which cannot be compared"),
        ("a'b", "==", 1, "without quotes"),
    ],
)
def test_filters_without_a_meaning_are_refused_by_name(
    store: M3VectorStore, key: str, operator: str, value: Any, message: str
) -> None:
    one = MetadataFilters(filters=[MetadataFilter(key=key, operator=FilterOperator(operator), value=value)])
    with pytest.raises(InvalidInput, match=message):
        store.query(VectorStoreQuery(query_str="x", filters=one))
    with pytest.raises(InvalidInput, match=message):
        store.delete_nodes(filters=one)
    assert len(store.get_nodes()) == 4


def test_deletes_by_document_id_filter_and_all(store: M3VectorStore) -> None:
    store.delete("doc-1")
    assert sorted(node.node_id for node in store.get_nodes()) == ["c", "d"]
    store.delete_nodes(["d"])
    assert [node.node_id for node in store.get_nodes(["c", "d"])] == ["c"]
    with pytest.raises(InvalidInput, match="delete needs either ids or a non-empty filter"):
        store.delete_nodes()
    store.clear()
    assert store.get_nodes() == []


def test_nodes_that_cannot_be_stored_are_refused(store: M3VectorStore) -> None:
    for node, message in (
        (ImageNode(id_="i", image="aGk="), "is ImageNode; this store keeps texts"),
        (_node("r", "x", **{"_node_id": 1}), "has the metadata key '_node_id'"),
        (_node("j", "x", when={1}), "JSON cannot represent|set"),
    ):
        with pytest.raises(Exception, match=message):
            store.add([_node("ok", "x"), node])
    assert len(store.get_nodes()) == 4


def test_an_ingestion_pipeline_upserts(index: Index) -> None:
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), EncodedByStore()],
        docstore=SimpleDocumentStore(),
        vector_store=M3VectorStore(index),
        docstore_strategy=DocstoreStrategy.UPSERTS,
    )
    first = [Document(id_="1", text="red apples"), Document(id_="2", text="blue plums")]
    assert len(pipeline.run(documents=first)) == 2
    assert len(pipeline.run(documents=first)) == 0
    changed = [Document(id_="1", text="red apples and pears"), first[1]]
    assert len(pipeline.run(documents=changed)) == 1
    assert sorted(document.text for document in index.scan()) == ["blue plums", "red apples and pears"]

    async def main() -> None:
        await pipeline.arun(documents=[Document(id_="2", text="yellow plums")])

    anyio.run(main)
    assert sorted(document.text for document in index.scan()) == ["red apples and pears", "yellow plums"]


def test_an_index_of_llama_index_inserts_and_deletes(index: Index) -> None:
    context = StorageContext.from_defaults(vector_store=M3VectorStore(index))
    theirs = VectorStoreIndex(
        NODES, storage_context=context, embed_model=M3Embedding(StubEncoder()), show_progress=False
    )
    assert index.count() == 4
    theirs.insert_nodes([_node("e", "orange oranges", "doc-3")])
    theirs.delete_ref_doc("doc-1")
    assert sorted(index.scan_ids()) == ["c", "d", "e"]


def test_documents_that_others_stored_become_text_nodes(index: Index) -> None:
    index.add([Ours("m", "plain text", {"lang": "en"})])
    (found,) = M3Retriever(index).retrieve("plain text")
    assert (found.node.node_id, found.text, found.metadata) == ("m", "plain text", {"lang": "en"})
