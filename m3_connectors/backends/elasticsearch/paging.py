"""All documents that match a query, counted or read page by page from a point in time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio

from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.errors import TooMuch
from m3_connectors.backends.elasticsearch.rows import Query, documents_only, page
from m3_connectors.errors import BackendError

_KEEP_ALIVE = "5m"


async def count(connection: Connection, alias: str, filter: Query | None) -> int:
    """Return the number of documents that pass."""
    body = {"size": 0, "track_total_hits": True, "query": documents_only(filter)}
    answer = await connection.request(
        "count", "POST", f"/{segment(alias)}/_search", body, allow_partial_search_results="false"
    )
    return int(answer["hits"]["total"]["value"])


async def pages(
    connection: Connection,
    alias: str,
    operation: str,
    query: Query,
    *,
    sort: Sequence[str] = (),
    size: int = 5000,
    fields: Sequence[str] = (),
) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield all hits once, as they were when the first page was requested."""
    opened = await connection.request(operation, "POST", f"/{segment(alias)}/_pit", keep_alive=_KEEP_ALIVE)
    pit, after = opened["id"], None
    try:
        while True:
            body = page(pit, _KEEP_ALIVE, size, after, query, sort, fields)
            try:
                answer = await connection.request(
                    operation,
                    "POST",
                    "/_search",
                    body,
                    divisible=size > 1,
                    allow_partial_search_results="false",
                )
            except TooMuch:
                if size == 1:
                    raise
                size //= 2
                continue
            hits = answer["hits"]["hits"]
            if hits:
                yield hits
            if len(hits) < size:
                return
            pit, after = answer["pit_id"], hits[-1]["sort"]
    finally:
        # The point in time would expire by itself. A server that is gone needs no such request, and a
        # cancelled caller should not wait. A scan that is abandoned may end when its event loop does, after
        # the connection is closed.
        if not connection.closed:
            with anyio.move_on_after(5, shield=True), contextlib.suppress(BackendError):
                await connection.once(operation, "DELETE", "/_pit", {"id": pit})
