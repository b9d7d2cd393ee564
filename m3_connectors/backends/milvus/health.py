"""Describe a Milvus server or the embedded milvus-lite and a collection, and find their problems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m3_connectors.backends.capabilities import Remark, ServerInfo
from m3_connectors.backends.endpoint import Endpoint
from m3_connectors.backends.milvus.alterations import faults, notes
from m3_connectors.backends.milvus.collection import vector_indexes
from m3_connectors.backends.milvus.connection import Connection, release
from m3_connectors.backends.milvus.layout import is_ours, named_by
from m3_connectors.backends.milvus.lite import installed
from m3_connectors.backends.milvus.naming import stored_name
from m3_connectors.errors import BackendError

OLDEST = (2, 5)

_LITE_DOCUMENTS = 10_000


def nothing_there(where: Endpoint | Path) -> ServerInfo:
    """Return the report for an embedded engine without a data directory; the engine is not started."""
    return ServerInfo(str(where), f"milvus_lite-{installed()}", {"engine": "milvus-lite, no data yet"})


async def server_info(connection: Connection, where: Endpoint | Path, collection: str) -> ServerInfo:
    """Return the report.

    Args:
        connection: A connection to the server or engine.
        where: A server, or a data directory.
        collection: The user's name of the collection.
    """
    details = {"engine": "Milvus"}
    remarks = []
    if connection.is_lite:
        details["engine"] = "milvus-lite" + ("" if isinstance(where, Endpoint) else " in this process")
    elif release(connection.version) < OLDEST:
        remarks.append(
            Remark(
                f"Milvus {connection.version} is older than {OLDEST[0]}.{OLDEST[1]}",
                f"Update it to {OLDEST[0]}.{OLDEST[1]} or later.",
            )
        )
    if isinstance(where, Endpoint):
        details["transport"] = "gRPC, TLS" if where.tls else "gRPC, not encrypted"
        details["database"] = where.path.strip("/") or "default"
    name = stored_name(collection)
    if await connection.call("describe", "has_collection", name):
        described = await connection.call("describe", "describe_collection", name)
        owner = named_by(collection, described)
        if owner != collection:
            details["alias of"] = owner
            name = stored_name(owner)
        state = await connection.call("describe", "get_load_state", name)
        details["state"] = str(getattr(state.get("state"), "name", state.get("state")))
        indexes = await vector_indexes(connection, name, "describe")
        if "dense" in indexes:
            details["dense index"] = indexes["dense"]["index_type"]
        if is_ours(described):
            remarks += [*faults(indexes), *notes(described, indexes)]
        rows = await _rows(connection, name)
        if connection.is_lite and rows > _LITE_DOCUMENTS:
            remarks.append(
                Remark(
                    f"milvus-lite keeps {rows:,} documents in memory and searches them in Python, which is "
                    "slow",
                    f"Use a server for more than about {_LITE_DOCUMENTS:,} documents.",
                    is_problem=False,
                )
            )
    return ServerInfo(connection.where, connection.version, details, tuple(remarks))


async def _rows(connection: Connection, collection: str) -> int:
    try:
        stats: Any = await connection.call("describe", "get_collection_stats", collection)
    except BackendError:
        return 0  # a user may lack this privilege
    return int(stats.get("row_count", 0))
