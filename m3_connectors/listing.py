"""alist_collections: what a store holds, from its URL."""

from __future__ import annotations

import dataclasses
from typing import Any

import anyio

from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.registry import backend_for
from m3_connectors.errors import BackendError


async def alist_collections(url: str, **options: Any) -> list[CollectionInfo]:
    """The collections of a store, by name.

    Those of m3-connectors are opened one after the other to count their documents; one that cannot be opened (it is
    open in another process, say) is listed with its problem. Those of other programs are listed and never opened.

    Args:
        url: The store, as ``connect`` takes it. ``memory:`` holds nothing: it lives as long as its index.
        **options: The store's own, as ``connect`` takes them.

    Raises:
        NotFound: There is no such directory.
        InvalidInput: An unusable URL or option.
        Unsupported: An option that only other stores take, or a store that cannot list.
        MissingDependency: The store's client is not installed.
        BackendError: The store failed, or the credentials do not allow listing.
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
