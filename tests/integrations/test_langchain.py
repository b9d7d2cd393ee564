"""LangChain: its own standard suites over an index in memory, and what they do not ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from stub_encoder import StubEncoder

from m3_connectors import ALL, Index, connect
from m3_connectors import Document as Ours
from m3_connectors.errors import InvalidInput, Unsupported

pytest.importorskip("langchain_core", reason="langchain-core is not installed: pip install -e '.[langchain]'")
suites = pytest.importorskip(
    "langchain_tests.integration_tests", reason="langchain-tests is not installed: pip install -e '.[dev]'"
)

from langchain_core.documents import Document  # noqa: E402
from langchain_core.indexing import InMemoryRecordManager  # noqa: E402
from langchain_core.indexing import index as index_documents  # noqa: E402

from m3_connectors.integrations.langchain import M3Embeddings, M3Retriever, M3VectorStore  # noqa: E402

FRUIT = [
    Ours("a", "red apples grow on trees", {"year": 2020, "tag": ["x", "y"]}),
    Ours("b", "yellow bananas grow on plants", {"year": 2022}),
    Ours("c", "blue plums", {"year": 2024}),
    Ours("d", "green pears"),
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def fruit() -> Iterator[Index]:
    with connect("memory:", encoder=StubEncoder()) as index:
        index.add(FRUIT)
        yield index


@pytest.mark.anyio
class TestVectorStoreStandard(suites.VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Iterator[M3VectorStore]:
        with connect("memory:", encoder=StubEncoder()) as index:
            yield M3VectorStore(index)


@pytest.mark.anyio
class TestRetrieverStandard(suites.RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _index(self, fruit: Index) -> None:
        self.index = fruit

    retriever_constructor = M3Retriever
    retriever_query_example = "red apples"

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": self.index, "k": 2}


@pytest.mark.anyio
class TestEmbeddingsStandard(suites.EmbeddingsIntegrationTests):
    embeddings_class = M3Embeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"encoder": StubEncoder()}


def test_hits_scores_and_order_are_those_of_the_index(fruit: Index) -> None:
    asked: dict[str, Any] = {"k": 2, "filter": {"year": {"$gte": 2021}}, "min_score": -1.0}
    direct = fruit.search("blue plums", method=ALL.weighted(1, 2, 3), **asked)
    found = M3VectorStore(fruit).similarity_search_with_score("blue plums", weights=(1, 2, 3), **asked)
    assert [(d.id, s) for d, s in found] == [(hit.document.id, hit.score) for hit in direct]
    assert found[0][0] == Document(id="c", page_content="blue plums", metadata={"year": 2024})
    retriever = M3Retriever(index=fruit, weights=(1, 2, 3), scores_as="m3", **asked)
    told = retriever.invoke("blue plums")
    assert [d.metadata["m3"] for d in told] == [{"score": h.score, **h.scores.to_dict()} for h in direct]
    assert [d.id for d in retriever.invoke("blue plums", offset=1)] == [d.id for d in told[1:]]


def test_a_re_ranker_orders_the_hits(fruit: Index) -> None:
    class ByLength:
        def score(self, query: str, documents: list[Ours]) -> list[float]:
            return [float(len(document.text)) for document in documents]

    store = M3VectorStore(fruit, rerank=ByLength())
    assert [d.id for d in store.similarity_search("green pears", k=2)] == ["b", "a"]
    with pytest.raises(InvalidInput, match="rerank is ByLength, and relevance scores are not defined"):
        store.similarity_search_with_relevance_scores("green pears")


@pytest.mark.parametrize("method", ["dense", "sparse", "multi_vec", "dense_sparse", "all"])
def test_relevance_scores_are_between_0_and_1(fruit: Index, method: str) -> None:
    """LangChain warns otherwise, and warnings are errors here."""
    found = M3VectorStore(fruit, method=method).similarity_search_with_relevance_scores("blue plums", k=4)
    assert found[0][0].id == "c"
    assert found[0][1] == pytest.approx(1, abs=1e-6)
    threshold = M3VectorStore(fruit, method=method).as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.99}
    )
    assert [d.id for d in threshold.invoke("blue plums")] == ["c"]


def test_a_dense_vector_finds_what_its_text_finds(fruit: Index) -> None:
    store = M3VectorStore(fruit)
    assert store.embeddings is not None
    found = store.similarity_search_by_vector(store.embeddings.embed_query("blue plums"), k=3)
    assert [d.id for d in found] == [
        hit.document.id for hit in fruit.search("blue plums", method="dense", k=3)
    ]
    assert store.embeddings.embed_documents([]) == []


def test_langchain_s_index_adds_skips_replaces_and_deletes() -> None:
    records = InMemoryRecordManager("test")
    records.create_schema()
    old = [Document(page_content=f"text {i}", metadata={"source": f"{i}"}) for i in range(5)]
    new = [*old[:3], Document(page_content="text 3 changed", metadata={"source": "3"})]
    with connect("memory:", encoder=StubEncoder()) as index:
        store = M3VectorStore(index)

        def run(documents: list[Document]) -> tuple[int, ...]:
            done = index_documents(
                documents, records, store, cleanup="full", source_id_key="source", key_encoder="sha256"
            )
            return done["num_added"], done["num_skipped"], done["num_deleted"]

        assert run(old) == (5, 0, 0)
        assert run(old) == (0, 5, 0)
        assert run(new) == (1, 3, 2)
        assert sorted(document.text for document in index.scan()) == [
            "text 0",
            "text 1",
            "text 2",
            "text 3 changed",
        ]
        assert [document.metadata for document in old] == [{"source": f"{i}"} for i in range(5)]


def test_delete_by_filter_and_of_everything(fruit: Index) -> None:
    store = M3VectorStore(fruit)
    assert store.delete(filter={"year": {"$lt": 2021}}) is True
    assert sorted(fruit.scan_ids()) == ["b", "c", "d"]
    assert store.delete([]) is True
    assert fruit.count() == 3
    assert store.delete() is True
    assert fruit.count() == 0


def test_from_texts_opens_a_store_and_needs_an_encoder_of_three_representations(tmp_path: Path) -> None:
    embedding = M3Embeddings(StubEncoder())
    store = M3VectorStore.from_texts(["one", "two"], embedding, [{"n": 1}, {"n": 2}], ids=["1", "2"])
    with store.index as index:
        assert isinstance(index, Index)
        assert store.similarity_search("two", k=1) == [
            Document(id="2", page_content="two", metadata={"n": 2})
        ]
    with pytest.raises(
        InvalidInput, match="embedding is DeterministicFakeEmbedding, which has dense vectors only"
    ):
        M3VectorStore.from_texts(["one"], suites.VectorStoreIntegrationTests.get_embeddings())


def test_asynchronous_calls_work_on_both_kinds_of_index_and_blocking_ones_on_an_index() -> None:
    async def main() -> None:
        embedding = M3Embeddings(StubEncoder())
        store = await M3VectorStore.afrom_texts(["one", "two"], embedding, ids=["1", "2"])
        async with store.index as index:  # type: ignore[union-attr]
            retriever = M3Retriever(index=index, k=1)
            assert [d.id for d in await retriever.ainvoke("two")] == ["2"]
            assert await store.asimilarity_search_with_relevance_scores("two", k=1)
            for call in (lambda: store.similarity_search("two"), lambda: retriever.invoke("two")):
                with pytest.raises(InvalidInput, match="a blocking call was made on an AsyncIndex"):
                    call()

    anyio.run(main)


def test_a_cancelled_call_on_an_index_is_cancelled_there(fruit: Index) -> None:
    """And the index goes on to answer."""

    async def main() -> None:
        with anyio.move_on_after(0.0) as scope:
            await M3VectorStore(fruit).asimilarity_search("blue plums")
        assert scope.cancelled_caught
        assert await M3VectorStore(fruit).asimilarity_search("blue plums", k=1)

    anyio.run(main)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.similarity_search("x", top_k=3), InvalidInput, "'top_k' is not an option of a search"),
        (
            lambda s: s.similarity_search("x", filter={"a": {"$like": 1}}),
            InvalidInput,
            "unknown operator '\\$like'",
        ),
        (lambda s: s.similarity_search("x", method="bm25"), InvalidInput, "unknown method 'bm25'"),
        (lambda s: s.similarity_search("x", weights=(1,)), InvalidInput, "weights is \\(1,\\)"),
        (lambda s: s.search("x", "mmr"), Unsupported, '"mmr" is not supported'),
        (lambda s: s.delete(["1"], drop=True), InvalidInput, "delete has no argument 'drop'"),
        (
            lambda s: s.add_documents([], namespace="n"),
            InvalidInput,
            "add_documents has no argument 'namespace'",
        ),
        (
            lambda s: s.add_documents([Document(page_content="x")], ids=["1", "2"]),
            InvalidInput,
            "ids has 2 entries for 1 documents",
        ),
        (
            lambda s: s.add_documents([Document(page_content="x", metadata={"a": {1}})]),
            InvalidInput,
            "is set, which JSON cannot represent",
        ),
        (
            lambda s: M3VectorStore("memory:"),
            InvalidInput,
            "index is str; it must be an Index or an AsyncIndex",
        ),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(
    fruit: Index, call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(M3VectorStore(fruit))
    assert fruit.count() == 4
