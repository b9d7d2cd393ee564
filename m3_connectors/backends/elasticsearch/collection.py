"""Operations on a whole collection: create, open, drop, list, and merge its segments."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import anyio

from m3_connectors.backends.base import Schema
from m3_connectors.backends.elasticsearch.alterations import faults, has_own_dynamic_templates
from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.errors import from_status
from m3_connectors.backends.elasticsearch.health import check_version
from m3_connectors.backends.elasticsearch.layout import (
    BACKEND,
    alias_of,
    droppable_index,
    first_index_of,
    index_body,
    listed,
    meta_of,
    our_index,
    properties_of,
    read_schema,
)
from m3_connectors.backends.elasticsearch.writing import Refresh
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.errors import AlreadyExists, CollectionNotFound, Corrupt, Rejected

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 5.0


async def create(
    connection: Connection,
    collection: str,
    schema: Schema,
    refresh: Refresh,
    shards: int | None,
    replicas: int | None,
) -> None:
    """Create the index of a collection and its alias.

    Raises:
        AlreadyExists: The collection exists.
        Rejected: An index template of the server makes the collection unusable; nothing was created.
    """
    alias = alias_of(collection)
    if await _behind_alias(connection, collection, "create"):
        raise AlreadyExists(
            f'an index or alias "{alias}" already exists.\n'
            "  Open it, drop it, or use another collection name.",
            backend=BACKEND,
            operation="create",
        )
    path = f"/{segment(first_index_of(alias))}"
    body = index_body(schema, alias, shards, replicas)
    await connection.once("create", "PUT", path, body)
    # The index is read back because the server merges its index templates into the request.
    index = next(iter((await _behind_alias(connection, collection, "create")).values()))
    if not has_own_dynamic_templates(index["mappings"]):
        # The dynamic templates of an index template come first; an update replaces them by ours.
        ours = {"dynamic_templates": body["mappings"]["dynamic_templates"]}
        await connection.request("create", "PUT", f"{path}/_mapping", ours)
        index = next(iter((await _behind_alias(connection, collection, "create")).values()))
    try:
        _check_index(collection, refresh, schema, index, "create")
    except Rejected:
        await connection.request("create", "DELETE", path)
        raise


async def opened(connection: Connection, collection: str, refresh: Refresh) -> Schema:
    """Return the schema of a collection that can be used.

    Raises:
        CollectionNotFound: There is no such collection.
        Rejected: It belongs to another program, or would never show what is written.
        Corrupt: It was changed after its creation.
    """
    there = await _behind_alias(connection, collection, "open")
    schema = read_schema(there, collection)
    _check_index(collection, refresh, schema, next(iter(there.values())), "open")
    return schema


async def recorded(connection: Connection, collection: str) -> Schema:
    """Return the schema that a collection records now.

    Raises:
        CollectionNotFound: There is no such collection any more.
    """
    # Without the fields of all metadata, because every write of an index asks.
    only = "*.mappings._meta,*.aliases,*.data_stream"
    path = f"/{segment(alias_of(collection))}"
    return read_schema(await connection.request("add", "GET", path, filter_path=only), collection)


async def record(connection: Connection, collection: str, schema: Schema) -> None:
    """Create the fields of a schema that are missing, and replace the recorded schema, in one change."""
    there = await _behind_alias(connection, collection, "add a component")
    path = f"/{segment(our_index(there, collection, 'add a component'))}/_mapping"
    body = {"_meta": meta_of(schema), "properties": properties_of(schema)}
    await connection.request("add a component", "PUT", path, body)


def _check_index(
    collection: str, refresh: Refresh, schema: Schema, index: Mapping[str, Any], operation: str
) -> None:
    """Refuse an index that would return wrong results, or would never show what is written.

    Raises:
        Rejected: The index is new, and an index template of the server caused the fault.
        Corrupt: The index was changed after its creation.
    """
    where = {"backend": BACKEND, "operation": operation}
    fault = next(faults(index, properties_of(schema), alias_of(collection)), None)
    if fault is not None and operation == "create":
        raise Rejected(
            f"an index template of the server makes the new collection unusable: {fault.what}.\n"
            "  Exclude the collection from the template, or use another collection name. No index was "
            "created.",
            **where,
        )
    if fault is not None:
        raise Corrupt(f'collection "{collection}": {fault.what}.\n  {fault.remedy}', **where)
    never = index.get("settings", {}).get("index.refresh_interval", "").startswith("-")
    if never and refresh is not True:
        raise Rejected(
            f'index.refresh_interval of collection "{collection}" is -1, so with '
            f"refresh={refresh!r} searches would never see a write.\n"
            "  Connect with refresh=True, or set the interval.",
            **where,
        )


async def drop(connection: Connection, collection: str) -> None:
    """Remove a collection with its documents, if it exists."""
    there = await _behind_alias(connection, collection, "drop")
    if there:
        path = f"/{segment(droppable_index(there, collection))}"
        # A retry finds no index if the first try succeeded and its response was lost.
        with contextlib.suppress(CollectionNotFound):
            await connection.request("drop", "DELETE", path)


async def in_cluster(connection: Connection) -> list[CollectionInfo]:
    """Return all collections and indices of the cluster."""
    # Closed and hidden indices are listed too; an index of another program is listed by its own name.
    answer = await connection.request(
        "list",
        "GET",
        "/_all",
        None,
        expand_wildcards="open,closed",
        filter_path="*.aliases,*.mappings._meta",
    )
    return listed(answer)


async def _behind_alias(connection: Connection, collection: str, operation: str) -> dict[str, Any]:
    """Return the server's response about the alias; empty if there is no such alias.

    Raises:
        Unsupported: The server is too old.
    """
    if not connection.version_checked:
        await check_version(connection, operation)
        connection.version_checked = True
    try:
        answer: dict[str, Any] = await connection.request(
            operation, "GET", f"/{segment(alias_of(collection))}", flat_settings="true"
        )
    except CollectionNotFound:
        return {}
    return answer


async def merge(connection: Connection, alias: str) -> None:
    """Merge the segments, make searches use the result, and return when that is done, however long it takes.

    Raises:
        BackendError: The server failed, or refuses to merge; or these credentials may not read the state of
            the task, in which case the merge may have started.
    """
    path = f"/{segment(alias)}"
    # A merge keeps deleted documents that the last commit still refers to; a flush makes a newer commit.
    # Documents deleted in about the last 30 s remain in any case, for replicas that have to catch up.
    await connection.request("optimize", "POST", f"{path}/_flush")
    begun = await connection.request(
        "optimize", "POST", f"{path}/_forcemerge", max_num_segments="1", wait_for_completion="false"
    )
    pause = _FIRST_PAUSE_SECONDS
    while True:
        told = await connection.request("optimize", "GET", f"/_tasks/{segment(begun['task'])}")
        if told["completed"]:
            break
        await anyio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    failures = told.get("response", {}).get("_shards", {}).get("failures", [])
    error = told.get("error") or (failures[0]["reason"] if failures else None)
    if error:
        raise from_status(500, error, "optimize", connection.url)
    # Searches that still use the old segments keep their files on the disk.
    await connection.request("optimize", "POST", f"{path}/_refresh")
