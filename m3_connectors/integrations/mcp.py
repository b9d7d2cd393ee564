"""MCP: an index as the tools ``search``, ``explain`` and ``get`` of a server, which assistants call."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Literal, ParamSpec, TypeVar

from m3_connectors import __version__
from m3_connectors.errors import InvalidInput, M3Error, MissingDependency
from m3_connectors.filters import matches, parse_filter
from m3_connectors.integrations.access import Access, AnyIndex, SearchOptions

try:
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations
except ImportError:
    raise MissingDependency("mcp", "mcp") from None

P = ParamSpec("P")
T = TypeVar("T")

Name = Literal["dense", "sparse", "multi_vec", "dense_sparse", "all"]

_INSTRUCTIONS = (
    "Search a collection of documents. search ranks by meaning and by words at once; get returns documents whose ids "
    "are known; explain says why a document has its score."
)
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)


def server(index: AnyIndex, *, name: str = "m3", **options: Any) -> MCPServer:
    """Return a server whose tools read an index: ``server(index).run()`` serves it on standard input and output.

    Args:
        index: What ``connect`` or ``aconnect`` returns, with an encoder. It is not closed here.
        name: The name under which clients list the server.
        **options: The arguments of ``Index.search`` that all searches use, and ``weights``. A filter given here
            restricts all tools: the filter of a client is joined with it, and other documents do not exist for it.

    Raises:
        InvalidInput: The index or an option is not valid.
    """
    access, defaults = Access(index), SearchOptions().changed(options)
    allowed = parse_filter(defaults.filter)
    made = MCPServer(name, version=__version__, instructions=_INSTRUCTIONS)

    @made.tool(annotations=_READS)
    @_told
    async def search(
        query: str,
        k: int = 10,
        filter: dict[str, Any] | None = None,
        method: Name | None = None,
        offset: int = 0,
        min_score: float | None = None,
        one_per_document: bool = False,
    ) -> dict[str, Any]:
        """Find the documents that answer a query best.

        Args:
            query: The question or the words to look for, in any language.
            k: The maximum number of hits.
            filter: Only documents whose metadata match, such as {"year": {"$gte": 2020}, "lang": {"$in": ["en"]}};
                operators: $eq, $ne, $in, $nin, $gt, $gte, $lt, $lte, $exists, $and, $or, $not.
            method: How documents are ranked; by default by all three scores.
            offset: The number of hits to skip first, for further pages.
            min_score: Leave out hits with a lower score.
            one_per_document: Return only the best passage of each document.
        """
        changes: dict[str, Any] = {"k": k, "offset": offset}
        if filter:
            changes["filter"] = {"$and": [defaults.filter, filter]} if defaults.filter else filter
        if method is not None:
            changes |= {"method": method, "weights": None}
        if min_score is not None:
            changes["min_score"] = min_score
        if one_per_document:
            changes["group_by"] = "parent"
        hits = await access.await_(defaults.changed(changes).of(query))
        return {"hits": [hit.to_dict() for hit in hits]}

    @made.tool(annotations=_READS)
    @_told
    async def explain(query: str, id: str, method: Name | None = None) -> dict[str, Any]:
        """Explain the score of one document for a query: the three scores, the shared tokens and the token pairs.

        Args:
            query: The query.
            id: The id of the document, as search returns it.
            method: The method whose weights are used.
        """
        (document,) = await access.await_(lambda opened: opened.get([id]))
        if document is not None and not matches(allowed, document.metadata):
            raise InvalidInput(f"there is no document {id!r} here.\n  Use an id that search returned.")
        chosen = defaults if method is None else defaults.changed({"method": method, "weights": None})
        weighted = chosen.method_of(index)
        return (await access.await_(lambda opened: opened.explain(query, id, method=weighted))).to_dict()

    @made.tool(annotations=_READS)
    @_told
    async def get(ids: list[str]) -> dict[str, Any]:
        """Return documents by id, in the order of the ids; null for an id that does not exist.

        Args:
            ids: The ids, as search returns them.
        """
        found = await access.await_(lambda opened: opened.get(ids))
        return {
            "documents": [
                None
                if document is None or not matches(allowed, document.metadata)
                else {"id": document.id, "text": document.text, "metadata": dict(document.metadata)}
                for document in found
            ]
        }

    return made


def _told(tool: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Return the tool with errors of this package as results that the client can read; it hides all others."""

    @functools.wraps(tool)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await tool(*args, **kwargs)
        except M3Error as error:
            raise ToolError(f"{type(error).__name__}: {error}") from error

    return run
