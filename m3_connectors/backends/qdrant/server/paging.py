"""Read the points of a Qdrant collection page by page."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator
from typing import Any

from qdrant_client import models

from m3_connectors.backends.qdrant.payload import ID
from m3_connectors.backends.qdrant.server.collection import Limits
from m3_connectors.backends.qdrant.server.connection import Connection

_PAGE = 1000


async def pages(
    connection: Connection,
    collection: str,
    limits: Limits,
    *,
    filter: models.Filter | None = None,
    with_id: bool,
) -> AsyncGenerator[list[models.Record], None]:
    """Yield every point once, without vectors; with ``with_id`` also the caller's own id."""
    client = connection.client
    offset: Any = None
    while True:
        call = functools.partial(
            client.scroll,
            collection,
            scroll_filter=filter,
            limit=min(_PAGE, limits.query or _PAGE),
            offset=offset,
            with_payload=[ID] if with_id else False,
            with_vectors=False,
        )
        records, offset = await connection.call("scan", call)
        yield records
        if offset is None:
            return
