"""Operations on a whole collection: create, open, drop, and wait for its indexes after many writes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any

import anyio
from pymilvus.milvus_client.index import IndexParams

from m3_connectors.backends.base import Schema
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.milvus import layout as layouts
from m3_connectors.backends.milvus.alterations import faults
from m3_connectors.backends.milvus.connection import Connection
from m3_connectors.backends.milvus.errors import BACKEND
from m3_connectors.backends.milvus.layout import Layout
from m3_connectors.backends.milvus.naming import stored_name
from m3_connectors.errors import AlreadyExists, CollectionNotFound, Corrupt, Rejected, TimedOut

_LOOK_SECONDS = 0.5
"""The pause between two checks of something that is being created."""

_LOOKS = 10
"""The number of checks of a collection that another call is creating."""


async def create(connection: Connection, collection: str, schema: Schema, dense_index: str) -> None:
    """Create a collection without its indexes; ``opened`` creates the missing ones.

    Raises:
        AlreadyExists: The collection exists.
        Rejected: The name of the collection for its parts is used by another collection.
    """
    name = stored_name(collection)
    if await connection.call("create", "has_collection", name):
        described = await connection.call("create", "describe_collection", name)
        owner = layouts.named_by(collection, described)
        what = "already exists" if owner == collection else f'is an alias of collection "{owner}"'
        raise AlreadyExists(
            f'collection "{collection}" {what}.\n  Open it, or use another collection name.',
            backend=BACKEND,
            operation="create",
        )
    layout = Layout(schema, name, not connection.is_lite, dense_index)
    if layout.has_parts:
        await _create_parts(connection, collection, layout)
    try:
        await connection.call(
            "create",
            "create_collection",
            name,
            write=True,
            schema=layouts.document_fields(layout, collection),
            properties=layouts.properties(schema, collection) if connection.is_lite else None,
            consistency_level="Strong",
        )
    except AlreadyExists:
        # milvus-lite refuses a second creation before it lists the first: after this loop ``open`` finds it.
        for _ in range(_LOOKS):
            if await connection.call("create", "has_collection", name):
                break
            await anyio.sleep(_LOOK_SECONDS)
        raise


async def _create_parts(connection: Connection, collection: str, layout: Layout) -> None:
    # The parts may exist: from a drop that did not complete, or from another process that creates the same
    # collection now. Dropping them would delete its documents; old parts are never read, and are removed by
    # ``optimize``.
    with contextlib.suppress(AlreadyExists):
        await connection.call(
            "create",
            "create_collection",
            layout.parts_name,
            write=True,
            schema=layouts.part_fields(collection, on_server=not connection.is_lite),
            properties=layouts.parts_properties(collection) if connection.is_lite else None,
            consistency_level="Strong",
        )
    # Checked in any case: a server that already has an equal collection does not report an error.
    own = await _has_own_parts(connection, collection, layout.parts_name, "create")
    for _ in range(_LOOKS):
        if own is not None:
            break
        # Another creation is running: milvus-lite refuses a second one before it lists the first.
        await anyio.sleep(_LOOK_SECONDS)
        own = await _has_own_parts(connection, collection, layout.parts_name, "create")
    if not own:
        raise Rejected(
            f'the parts of long documents of "{collection}" need the name "{layout.parts_name}", which is '
            "already used by another collection.\n  Use another collection name.",
            backend=BACKEND,
            operation="create",
        )


async def opened(connection: Connection, collection: str, dense_index: str) -> Layout:
    """Return the layout of a collection, loaded and with all its indexes.

    Args:
        connection: A connection to its server.
        collection: The user's name of the collection.
        dense_index: The type of the dense index to create if it is missing.

    Raises:
        CollectionNotFound: The collection does not exist.
        Rejected: The collection does not belong to this package.
        Corrupt: A part of it is missing, or an index would give wrong results.
    """
    name = stored_name(collection)
    if not await connection.call("open", "has_collection", name):
        raise CollectionNotFound(
            f'there is no collection "{collection}" at {connection.where}.\n'
            "  Create it, or list the collections with m3 collections URL.",
            backend=BACKEND,
            operation="open",
        )
    described = await connection.call("open", "describe_collection", name)
    # If the name is an alias, all calls use the collection itself, because its parts have no alias.
    collection = layouts.named_by(collection, described)
    name = stored_name(collection)
    layout = layouts.read_layout(collection, described, dense_index)
    if layout.has_parts and not await _has_own_parts(connection, collection, layout.parts_name, "open"):
        raise Corrupt(
            f'the collection "{layout.parts_name}", which holds the parts of long documents of '
            f'"{collection}", is '
            "missing or belongs to another collection.\n  Index into another collection.",
            backend=BACKEND,
            operation="open",
        )
    await _make_indexes(connection, layout.name, layouts.document_indexes(layout))
    there = await vector_indexes(connection, layout.name, "open")
    fault = next(faults(there), None)
    if fault is not None:
        raise Corrupt(
            f'collection "{collection}": {fault.what}.\n  {fault.remedy}', backend=BACKEND, operation="open"
        )
    if "dense" in there:
        layout = dataclasses.replace(layout, dense_index=there["dense"]["index_type"])
    await connection.call("open", "load_collection", name)
    if layout.has_parts:
        await _make_indexes(connection, layout.parts_name, layouts.part_indexes())
        await connection.call("open", "load_collection", layout.parts_name)
    return layout


async def listed(connection: Connection) -> list[CollectionInfo]:
    """Return all collections of the database, without those that hold parts of long documents."""
    found = []
    for name in await connection.call("list", "list_collections"):
        with contextlib.suppress(CollectionNotFound):  # dropped in the meantime
            described = await connection.call("list", "describe_collection", name)
            info = layouts.listed(name, described)
            if info is not None:
                found.append(info)
    return found


async def drop(connection: Connection, collection: str) -> None:
    """Remove a collection and its parts, but nothing of another program or of another collection.

    Raises:
        Rejected: The collection does not belong to this package, or the name is an alias of another
        collection.
    """
    name = stored_name(collection)
    if await connection.call("drop", "has_collection", name):
        described = await connection.call("drop", "describe_collection", name)
        owner = layouts.named_by(collection, described)
        if owner != collection:
            # milvus-lite would remove the collection that the alias refers to.
            raise Rejected(
                f'"{collection}" is an alias of collection "{owner}"; nothing was removed.\n'
                f'  Drop "{owner}", or only the alias: drop_alias("{name}").',
                backend=BACKEND,
                operation="drop",
            )
        layouts.read_schema(collection, described)
        await connection.call("drop", "drop_collection", name)
    parts = layouts.parts_name(name)
    if await _has_own_parts(connection, collection, parts, "drop"):
        await connection.call("drop", "drop_collection", parts)


async def built(connection: Connection, layout: Layout) -> None:
    """Make a server seal what was written, and wait for its indexes as long as they grow.

    Raises:
        Rejected: An index cannot be built.
        TimedOut: An index has not grown for ``total_seconds``.
    """
    for name in (layout.name, *([layout.parts_name] if layout.has_parts else ())):
        await connection.call("optimize", "flush", name, write=True)
    for index in layouts.document_indexes(layout):
        for named in await connection.call(
            "optimize", "list_indexes", layout.name, field_name=index.field_name
        ):
            await _index_built(connection, layout.name, named)


async def _index_built(connection: Connection, name: str, index: str) -> None:
    rows, grown = -1, time.monotonic()
    while True:
        said = await connection.call("optimize", "describe_index", name, index_name=index)
        if said["state"] == "Finished" and not said["pending_index_rows"]:
            return
        if said["state"] == "Failed":
            raise Rejected(
                f'{connection.where} cannot build the index "{index}".\n  See the log of the server.',
                backend=BACKEND,
                operation="optimize",
            )
        if said["indexed_rows"] != rows:
            rows, grown = said["indexed_rows"], time.monotonic()
        elif time.monotonic() - grown > connection.patience.total_seconds:
            raise TimedOut(
                f'the index "{index}" at {connection.where} has not grown for '
                f"{connection.patience.total_seconds:g} s: "
                f"it holds {rows} rows, and {said['pending_index_rows']} are waiting.\n"
                "  Check the load of the server, and call optimize again.",
                backend=BACKEND,
                operation="optimize",
            )
        await anyio.sleep(_LOOK_SECONDS)


async def _has_own_parts(connection: Connection, collection: str, parts: str, operation: str) -> bool | None:
    """Whether the parts' collection belongs to this collection; None if it does not exist."""
    try:
        described = await connection.call(operation, "describe_collection", parts)
    except CollectionNotFound:
        return None
    return layouts.are_parts_of(collection, described)


async def vector_indexes(connection: Connection, name: str, operation: str) -> dict[str, dict[str, Any]]:
    """Return the responses of ``describe_index`` for the indexes of dense and sparse vectors, by field."""
    found: dict[str, dict[str, Any]] = {}
    for field in ("dense", "sparse"):
        for index in (await connection.call(operation, "list_indexes", name, field_name=field))[:1]:
            found[field] = await connection.call(operation, "describe_index", name, index_name=index)
    return found


async def _make_indexes(connection: Connection, name: str, indexes: IndexParams) -> None:
    """Create missing indexes: all for a new collection, the rest if a creation was interrupted."""
    for index in indexes:
        if await connection.call("open", "list_indexes", name, field_name=index.field_name):
            continue
        alone: Any = IndexParams()
        alone.append(index)
        # Without waiting: the collection is empty, and pymilvus would sleep half a second for each index.
        with contextlib.suppress(AlreadyExists):
            await connection.call("create", "create_index", name, write=True, index_params=alone, sync=False)
