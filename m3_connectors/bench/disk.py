"""Measure the disk use of a collection by component, as far as its store reports it."""

from __future__ import annotations

from pathlib import Path

from m3_connectors.backends.base import Backend
from m3_connectors.backends.stores import store_of


async def disk_bytes(backend: Backend, directory: Path | None) -> dict[str, int] | None:
    """Return the bytes on disk by component, or None if the store does not report them.

    Args:
        backend: The open collection.
        directory: The data directory of a server that was started here.
    """
    store = store_of(type(backend))
    measure = store and store.offered("disk")
    found: dict[str, int] | None = await measure(backend, directory) if measure else None
    return found
