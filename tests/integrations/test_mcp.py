"""MCP: the tools of an index, called by the SDK's own client in this process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from stub_encoder import StubEncoder

from m3_connectors import ALL, Document, Index, M3Encoder, connect
from m3_connectors.errors import InvalidInput

pytest.importorskip("mcp", reason="mcp is not installed: pip install -e '.[mcp]'")

from mcp.client import Client
from mcp.client.stdio import StdioServerParameters

from m3_connectors.integrations.mcp import server


@pytest.fixture
def index() -> Iterator[Index]:
    with connect("memory:", encoder=StubEncoder()) as index:
        index.add(
            [
                Document("a", "red apples", {"year": 2020}),
                Document("b", "yellow bananas", {"year": 2022}),
                Document("c", "blue plums", {"year": 2024}),
            ]
        )
        yield index


def _with_client(index: Index, use: Callable[[Client], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        async with Client(server(index, **options)) as client:
            return await use(client)

    return anyio.run(main)


def _call(index: Index, tool: str, arguments: dict[str, Any], **options: Any) -> Any:
    result = _with_client(index, lambda client: client.call_tool(tool, arguments), **options)
    assert not result.is_error, result.content
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


def test_the_client_lists_three_tools_that_only_read(index: Index) -> None:
    listed = _with_client(index, lambda client: client.list_tools()).tools
    assert [tool.name for tool in listed] == ["search", "explain", "get"]
    assert all(tool.annotations.read_only_hint for tool in listed)
    assert listed[0].input_schema["required"] == ["query"]
    assert "$gte" in listed[0].description


def test_search_gives_the_hits_of_the_index(index: Index) -> None:
    weighted = ALL.weighted(1, 2, 3)
    direct = index.search("blue plums", method=weighted, k=2, filter={"year": {"$gte": 2021}})
    found = _call(
        index, "search", {"query": "blue plums", "k": 2, "filter": {"year": {"$gte": 2021}}}, method=weighted
    )
    assert found == {"hits": [hit.to_dict() for hit in direct]}
    dense = _call(index, "search", {"query": "blue plums", "method": "dense", "offset": 1}, weights=(1, 2, 3))
    assert dense == {"hits": [hit.to_dict() for hit in index.search("blue plums", method="dense", offset=1)]}
    one = {"query": "blue plums", "min_score": 2.0, "one_per_document": True}
    assert [hit["id"] for hit in _call(index, "search", one)["hits"]] == ["c"]


def test_a_client_cannot_leave_the_filter_of_the_server(index: Index) -> None:
    for filter in (None, {"year": 2024}, {"$or": [{"year": 2020}, {"year": 2024}]}):
        found = _call(index, "search", {"query": "x", "filter": filter}, filter={"year": {"$lt": 2023}})
        assert "c" not in [hit["id"] for hit in found["hits"]]
    hidden = {"filter": {"year": {"$lt": 2023}}}
    assert [
        found and found["id"] for found in _call(index, "get", {"ids": ["a", "c"]}, **hidden)["documents"]
    ] == ["a", None]
    asked = {"query": "x", "id": "c"}
    refused = _with_client(index, lambda client: client.call_tool("explain", asked), **hidden)
    assert "there is no document 'c' here" in refused.content[0].text


def test_get_and_explain(index: Index) -> None:
    assert _call(index, "get", {"ids": ["b", "no"]}) == {
        "documents": [{"id": "b", "text": "yellow bananas", "metadata": {"year": 2022}}, None]
    }
    told = _call(index, "explain", {"query": "red apples", "id": "a", "method": "dense_sparse"})
    assert told == index.explain("red apples", "a", method="dense_sparse").to_dict()


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        (
            "search",
            {"query": "x", "filter": {"year": {"$like": 1}}},
            "has the unknown operator '$like'",
        ),
        ("search", {"query": "x", "k": 0}, "InvalidInput: k is 0; it must be a whole number >= 1"),
        ("search", {"query": "x", "method": "bm25"}, "bm25"),
        (
            "explain",
            {"query": "x", "id": "no"},
            "DocumentNotFound: memory explain: there is no document 'no'",
        ),
    ],
)
def test_errors_reach_the_client_with_their_message(
    index: Index, tool: str, arguments: dict[str, Any], message: str
) -> None:
    result = _with_client(index, lambda client: client.call_tool(tool, arguments))
    assert result.is_error
    assert message in result.content[0].text
    assert "Traceback" not in result.content[0].text


def test_m3_mcp_serves_a_collection_to_a_client_that_starts_it(checkpoint: Path, tmp_path: Path) -> None:
    url = f"qdrant:{tmp_path / 'data'}"
    with connect(url, encoder=M3Encoder(str(checkpoint), precision="float32")) as index:
        index.add([Document("a", "red apples"), Document("b", "blue plums")])
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "m3_connectors", "mcp", url, "--model", str(checkpoint), "--method", "dense"],
        env=dict(os.environ),
    )

    async def main() -> Any:
        async with Client(command) as client:
            return await client.call_tool("search", {"query": "blue plums", "k": 1})

    found = anyio.run(main).structured_content
    assert [hit["id"] for hit in found["hits"]] == ["b"]
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-3)


def test_a_wrong_option_is_refused_when_the_server_is_made(index: Index) -> None:
    with pytest.raises(InvalidInput, match="'top' is not an option of a search"):
        server(index, top=3)
