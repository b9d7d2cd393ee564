"""Everything that passes a query, counted or page by page over a point in time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio

from m3_connectors.backends.elasticsearch.bodies import Query, documents_only, page
from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.errors import TooMuch
from m3_connectors.errors import BackendError

_KEEP_ALIVE = "5m"


async def count(connection: Connection, alias: str, filter: Query | None) -> int:
    """How many documents pass."""
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
    """All hits, as they were when the first page was asked for; each once."""
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
        # It would end by itself; a server that has gone needs no such request, and a cancelled caller no wait. A scan
        # that is left in its middle may end as late as its event loop, after the connection.
        if not connection.closed:
            with anyio.move_on_after(5, shield=True), contextlib.suppress(BackendError):
                await connection.once(operation, "DELETE", "/_pit", {"id": pit})
