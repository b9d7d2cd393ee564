"""What tests do to real servers: their collections have names of this run, and none of them is left behind.

A server that cannot be had is said loudly, and is an error where it must be had.
"""

from __future__ import annotations

import os
import uuid
from typing import Any, NoReturn

import anyio
import pytest

from m3_connectors.backends.registry import backend_for
from m3_connectors.testing.servers import CannotStart
from m3_connectors.testing.servers.start import Running, StoreName

RUN = uuid.uuid4().hex[:12]
"""In the name of every collection that this run makes on a server: others may be working with it."""

NOT_RUN: dict[StoreName, str] = {}
"""Why each store could not be had; conftest.py prints it, whole, at the end of the run."""

_MUST_RUN_IN_CI: tuple[StoreName, ...] = ("milvus", "elasticsearch")


def do_without(store: StoreName, reason: CannotStart) -> NoReturn:
    """Skip, and have it said at the end of the run.

    Raises:
        CannotStart: With ``CI=true``, Milvus or Elasticsearch is missing: both run on any machine.
    """
    if os.environ.get("CI") == "true" and store in _MUST_RUN_IN_CI:
        raise reason
    NOT_RUN[store] = str(reason)
    pytest.skip(str(reason).partition("\n")[0])


def own(name: str) -> str:
    """The collection of this name that belongs to this run."""
    return f"{RUN}-{name}"  # in front: a store that bounds names keeps their beginning


async def drop(url: str, collection: str, **options: Any) -> None:
    """Remove a collection, whether it is there or not."""
    backend = backend_for(url, collection, options)
    try:
        await backend.drop()
    finally:
        await backend.close()


def left_behind(running: Running, before: set[str]) -> set[str]:
    """Collections that tests made on a server and did not remove; where others work, those of this run only."""
    new = collections_of(running) - before
    return {name for name in new if RUN in name} if running.how == "environment" else new


def collections_of(running: Running) -> set[str]:
    """The names of everything that is stored on a server, as its vendor's client tells them."""
    return anyio.run(_collections, running)


async def _collections(running: Running) -> set[str]:
    backend: Any = backend_for(running.url, own("listing"), running.options)
    try:
        if running.store == "qdrant":
            await backend._connection.connect()
            return {one.name for one in (await backend._connection.client.get_collections()).collections}
        if running.store == "milvus":
            return set(await (await backend._connection()).call("list", "list_collections"))
        return set(await backend._connection.once("list", "GET", "/_all"))
    finally:
        await backend.close()
