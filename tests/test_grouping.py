"""Search by parent: the ranking without groups, of which the best chunk of each parent is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stub_encoder import StubEncoder

from m3_connectors import Document, Hit, Index, connect
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.errors import InvalidInput
from m3_connectors.filters import matches, parse_filter
from m3_connectors.methods import DENSE, METHODS
from m3_connectors.passages import Passage
from m3_connectors.testing.agreement import oracle_of
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.worlds import World, make_world


def chunk_of(document: Document, parent: str | None) -> Document:
    if parent is None:
        return document
    return dataclasses.replace(document, metadata={**document.metadata, "chunk": {"parent": parent}})


def world_of(seed: int, parents: Sequence[str | None]) -> World:
    world = make_world(seed, documents=len(parents), most_rows=2)
    chunks = [chunk_of(document, parent) for document, parent in zip(world.documents, parents, strict=True)]
    return dataclasses.replace(world, documents=chunks)


def firsts(ranking: Sequence[Any]) -> list[str]:
    """The id of the first hit of each parent."""
    best: dict[str, str] = {}
    for hit in ranking:
        best.setdefault(hit.document.parent, hit.id)
    return list(best.values())


@given(
    st.integers(0, 10**6),
    st.lists(st.sampled_from([None, "a", "b", "c", "document-3"]), min_size=1, max_size=40),
    st.integers(1, 8),
    st.sampled_from(list(METHODS.values())),
    st.booleans(),
)
@runs
async def test_the_first_hit_of_each_parent_is_kept(
    seed: int, parents: list[str | None], k: int, method: Any, filtered: bool
) -> None:
    world = world_of(seed, parents)
    raw = world.filters[0] if filtered and world.filters else None
    passing = parse_filter(raw)
    oracle = await oracle_of(world)
    for query in world.queries:
        # Everything is a candidate here, except by sparse lists, which hold only what shares a token.
        ranking = await oracle.search(query, method, len(parents), filter=passing)
        documents = await oracle.fetch([hit.id for hit in ranking])
        full = [dataclasses.replace(hit, document=d) for hit, d in zip(ranking, documents, strict=True)]
        got = await oracle.search(query, method, k, filter=passing, group_by="parent")
        assert [hit.id for hit in got] == firsts(full)[:k]
        assert all(hit.document and matches(passing, hit.document.metadata) for hit in got)


@runs
async def test_a_parent_with_more_chunks_than_candidates_does_not_hide_the_others() -> None:
    world = world_of(1, ["long"] * 900 + [f"p{i // 3}" for i in range(60)] + [None] * 40)
    oracle = await oracle_of(world)
    for method in METHODS.values():
        for query in world.queries[:2]:
            got = await oracle.search(query, method, 30, group_by="parent")
            parents = {hit.document.parent for hit in got if hit.document}
            shares = len(oracle._sharing_a_token(query)) if method.name == "sparse" else 1000
            assert len(got) == len(parents)
            assert len(got) == 30 or shares < 200
            assert [hit.score for hit in got] == sorted((hit.score for hit in got), reverse=True)
    # A list that is ordered by the score itself is exact, however long the parents are.
    exact = await oracle.search(world.queries[0], DENSE, 1000)
    documents = await oracle.fetch([hit.id for hit in exact])
    full = [dataclasses.replace(hit, document=d) for hit, d in zip(exact, documents, strict=True)]
    got = await oracle.search(world.queries[0], DENSE, 61, group_by="parent")
    assert [hit.id for hit in got] == firsts(full)[:61]


@pytest.mark.parametrize(("chunks", "most"), [(10, 1), (100, 2), (900, 3), (5000, 3)])
@runs
async def test_few_searches_are_enough(chunks: int, most: int) -> None:
    world = world_of(2, ["long"] * chunks + [f"p{i}" for i in range(50)])
    counted = _Counting("counted")
    await counted.create(world.schema)
    await counted.upsert(world.documents, world.embeddings)
    assert len(await counted.search(world.queries[0], METHODS["all"], 10, group_by="parent")) == 10
    assert counted.searches <= most


class _Counting(MemoryBackend):
    searches = 0

    async def _search(self, *given: Any) -> Any:
        self.searches += 1
        return await super()._search(*given)


# -- from an index


@pytest.fixture
def index() -> Iterator[Index]:
    with connect("memory:", encoder=StubEncoder()) as index:
        index.add(
            [Document(f"p{i // 4}#{i % 4}", f"text {i}", _place(f"p{i // 4}", i % 4)) for i in range(80)]
        )
        index.add([Document("whole", "not cut", {"n": 1}), Document("odd", "not ours", {"chunk": "mine"})])
        yield index


def _place(parent: str, position: int) -> dict[str, Any]:
    place = {"parent": parent, "position": position, "count": 4, "start": 10, "end": 20, "titles": ["A", "B"]}
    return {"chunk": place, "page": 7, "even": position % 2 == 0}


def parents(hits: Sequence[Hit]) -> list[str]:
    return [hit.document.parent for hit in hits]


def test_pages_filters_and_thresholds_apply_to_parents(index: Index) -> None:
    whole = index.search("query", k=30, group_by="parent")
    assert sorted(parents(whole)) == sorted([*(f"p{i}" for i in range(20)), "odd", "whole"])
    pages = [index.search("query", k=8, offset=offset, group_by="parent") for offset in (0, 8, 16)]
    assert [hit for page in pages for hit in page] == whole
    assert index.search("query", k=30, min_score=whole[4].score, group_by="parent") == whole[:5]
    even = index.search("query", k=30, filter={"even": True}, group_by="parent")
    assert len(even) == 20
    assert all(hit.document.metadata["even"] for hit in even)
    assert index.search_many(["query", "other"], k=3, group_by="parent") == [
        whole[:3],
        index.search("other", k=3, group_by="parent"),
    ]


def test_the_best_chunk_of_each_parent_is_reranked(index: Index) -> None:
    class Backwards:
        asked: list[str]

        def score(self, query: str, documents: Sequence[Document]) -> Sequence[float]:
            self.asked = [document.id for document in documents]
            return range(len(documents))

    best = index.search("query", k=6, group_by="parent")
    reranker = Backwards()
    hits = index.search("query", k=4, rerank=reranker, rerank_depth=6, group_by="parent")
    assert reranker.asked == [hit.document.id for hit in best]
    assert [hit.document.id for hit in hits] == reranker.asked[::-1][:4]


def test_a_hit_says_where_it_is(index: Index) -> None:
    documents = index.get(["p3#2", "whole", "odd"])
    chunk, whole, odd = (document for document in documents if document)
    assert chunk.passage == Passage("p3", 2, 4, 10, 20, ("A", "B"), 7)
    assert (whole.passage, whole.parent) == (None, "whole")
    assert (odd.passage, odd.parent) == (None, "odd")


@pytest.mark.parametrize(
    ("metadata", "passage"),
    [
        ({"chunk": {"parent": "a.pdf"}, "page": 3}, Passage("a.pdf", 0, 1, 0, 4, (), 3)),
        ({"chunk": {"parent": "a"}, "page": "iv"}, Passage("a", 0, 1, 0, 4)),
        ({"chunk": {"parent": "a", "position": "x", "end": True, "titles": "T"}}, Passage("a", 0, 1, 0, 4)),
        ({"chunk": {"parent": 1}}, None),
        ({"chunk": ["a"]}, None),
        ({"page": 3}, None),
    ],
)
def test_what_is_a_chunk(metadata: dict[str, Any], passage: Passage | None) -> None:
    assert Document("d", "text", metadata).passage == passage


def test_other_groups_are_refused(index: Index) -> None:
    with pytest.raises(InvalidInput, match="group_by is 'file'; hits can be grouped only by \"parent\""):
        index.search("query", group_by="file")  # type: ignore[arg-type]
