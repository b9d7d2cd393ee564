"""Helpers for tests on real servers: collections have names of this run, and none of them is left behind.

A server that is not available is reported at the end of the run, and is an error if it is required.
"""

from __future__ import annotations

import os
import uuid
from typing import Any, NoReturn

import anyio
import pytest

from m3_connectors.backends.registry import backend_for
from m3_connectors.testing.servers import CannotStart
from m3_connectors.testing.servers.start import Running

RUN = uuid.uuid4().hex[:12]
"""Part of the name of every collection that this run creates, because others may use the same server."""

NOT_RUN: dict[str, str] = {}
"""The reason why each store was not available; conftest.py prints it in full at the end of the run."""

_MUST_RUN_IN_CI: tuple[str, ...] = ("milvus", "elasticsearch")


def do_without(store: str, reason: CannotStart) -> NoReturn:
    """Skip the test and report the reason at the end of the run.

    Raises:
        CannotStart: ``CI=true`` is set and Milvus or Elasticsearch is missing: both run on any machine.
    """
    if os.environ.get("CI") == "true" and store in _MUST_RUN_IN_CI:
        raise reason
    NOT_RUN[store] = str(reason)
    pytest.skip(str(reason).partition("\n")[0])


def own(name: str) -> str:
    """Return the name of this run's collection of this name."""
    return f"{RUN}-{name}"  # a prefix, because stores that limit names keep their beginning


async def drop(url: str, collection: str, **options: Any) -> None:
    """Remove a collection if it exists."""
    backend = backend_for(url, collection, options)
    try:
        await backend.drop()
    finally:
        await backend.close()


def left_behind(running: Running, before: set[str]) -> set[str]:
    """Return collections that tests did not remove; on a server given by the user, only those of this run."""
    new = collections_of(running) - before
    return {name for name in new if RUN in name} if running.how == "environment" else new


def collections_of(running: Running) -> set[str]:
    """Return the names of all collections of a server, as reported by its vendor's client."""
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
