"""Maintenance of a collection on a Qdrant server: create payload indexes, and wait for the optimiser."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping

import anyio
from qdrant_client import models

from m3_connectors.backends.qdrant.payload import keys_of
from m3_connectors.backends.qdrant.server.collection import IndexType, indexes_of
from m3_connectors.backends.qdrant.server.connection import Connection
from m3_connectors.backends.qdrant.server.errors import BACKEND, optimiser_failed
from m3_connectors.backends.qdrant.server.wire import applied
from m3_connectors.errors import TimedOut

_OPTIMIZE_SECONDS = 3600.0
_LOOK_EVERY_SECONDS = 0.5


async def make_indexes(
    connection: Connection, collection: str, info: models.CollectionInfo, indexes: Mapping[str, IndexType]
) -> None:
    """Create the declared payload indexes that are missing; a read-only key fails only if one is missing."""
    there = {tuple(keys_of(path)): index.data_type for path, index in info.payload_schema.items()}
    client = connection.client
    wanted = [index for field, kind in indexes.items() for index in indexes_of(field, kind)]
    for key, type_ in wanted:
        if there.get(tuple(keys_of(key))) != type_:
            make = functools.partial(client.create_payload_index, collection, key, type_, wait=True)
            await connection.call("index", functools.partial(applied, "index", make))


async def wait_optimized(connection: Connection, collection: str) -> None:
    """Wait until the server has optimised all writes: green twice, because it starts a moment after a write.

    Raises:
        Rejected: The optimiser failed, or the collection is red.
        StorageFull: The optimiser failed for lack of space.
        TimedOut: It takes more than an hour; the server continues.
    """
    client = connection.client
    wake = functools.partial(
        client.update_collection, collection, optimizers_config=models.OptimizersConfigDiff()
    )
    began, greens, woken = time.monotonic(), 0, False
    while True:
        info = await connection.call("optimize", lambda: client.get_collection(collection))
        if isinstance(info.optimizer_status, models.OptimizersStatusOneOf1):
            raise optimiser_failed(info.optimizer_status.error, connection.url)
        if info.status is models.CollectionStatus.RED:
            raise optimiser_failed(f'collection "{collection}" is red', connection.url)
        greens = greens + 1 if info.status is models.CollectionStatus.GREEN else 0
        if greens == 2:
            return
        if info.status is models.CollectionStatus.GREY and not woken:
            # The server has seen no write since its start; an update without changes starts the optimiser.
            await connection.call("optimize", wake)
            woken = True
        if time.monotonic() - began > _OPTIMIZE_SECONDS:
            raise TimedOut(
                f'collection "{collection}" at {connection.url} is not optimised after '
                f"{_OPTIMIZE_SECONDS / 60:.0f} minutes; the server continues.\n"
                "  Call optimize again to wait longer; searches are correct in the meantime.",
                backend=BACKEND,
                operation="optimize",
            )
        await anyio.sleep(_LOOK_EVERY_SECONDS)
