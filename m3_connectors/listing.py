"""alist_collections: the collections of a store, given its URL."""

from __future__ import annotations

import dataclasses
from typing import Any

import anyio

from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.registry import backend_for
from m3_connectors.errors import BackendError


async def alist_collections(url: str, **options: Any) -> list[CollectionInfo]:
    """Return the collections of a store, by name.

    The collections of m3-connectors are opened one after the other to count their documents. One that cannot
    be opened (for example, because another process has it open) is listed with its problem. The collections
    of other programs are listed, but never opened.

    Args:
        url: The URL of the store, as for ``connect``. ``memory:`` has no collections to list: they exist only
            as long as their index.
        **options: The options of the store, as for ``connect``.

    Raises:
        NotFound: The directory does not exist.
        InvalidInput: The URL or an option is not valid.
        Unsupported: An option belongs to other stores, or the store cannot list its collections.
        MissingDependency: The store's client is not installed.
        BackendError: The store failed, or the credentials do not permit listing.
    """
    backend = backend_for(url, options=options)
    try:
        found = await backend.collections()
    finally:
        with anyio.CancelScope(shield=True):
            await backend.close()
    return [await _counted(url, one, options) for one in sorted(found, key=lambda one: one.name)]


async def _counted(url: str, info: CollectionInfo, options: dict[str, Any]) -> CollectionInfo:
    if info.schema is None:
        return info
    backend = backend_for(url, info.name, options)
    try:
        await backend.open()
        return dataclasses.replace(info, count=await backend.count())
    except BackendError as error:
        return dataclasses.replace(info, problem=str(error).splitlines()[0])
    finally:
        with anyio.CancelScope(shield=True):
            await backend.close()
