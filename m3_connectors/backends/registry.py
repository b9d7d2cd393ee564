"""From a URL to a backend, whose adapter is imported on use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from m3_connectors.backends.base import Backend
from m3_connectors.backends.capabilities import Capability
from m3_connectors.backends.store import Store
from m3_connectors.backends.stores import STORES, Fault, other_stores
from m3_connectors.backends.urls import split_url
from m3_connectors.errors import InvalidInput, M3Error

_COLLECTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,198}[A-Za-z0-9])?")

DEFAULT_COLLECTION = "documents"


def backend_for(
    url: str, collection: str = DEFAULT_COLLECTION, options: Mapping[str, Any] | None = None
) -> Backend:
    """Return the backend that a URL names, without opening it.

    Args:
        url: ``memory:``, ``qdrant:DIRECTORY``, ``milvus:FILE.db``, or ``STORE+http(s)://HOST:PORT`` with
            qdrant, milvus or elasticsearch as STORE, or the URL of an installed store.
        collection: 1 to 200 letters, digits, ``-``, ``_`` or ``.``, the first a letter or digit.
        options: The adapter's own options.

    Raises:
        InvalidInput: The scheme is unknown, the collection name is not valid, or an option is unknown, or the
            distribution of the store is at fault.
        Unsupported: The store does not support an option.
        MissingDependency: The client library of the store is not installed.
    """
    store, url = store_for(url)
    _check_collection(collection)
    backend: Backend = store.load().from_url(url, collection, dict(options or {}))  # type: ignore[attr-defined]
    return backend


def store_for(url: str) -> tuple[Store, str]:
    """Return the store that a URL names, and the URL with its scheme in lower case.

    Raises:
        InvalidInput: The scheme is unknown, or the distribution of the store is at fault.
    """
    stores, faults = _by_scheme(STORES), list[Fault]()
    scheme = url.partition(":")[0].lower() if isinstance(url, str) else ""
    if scheme not in stores:
        others, faults = other_stores()
        stores = _by_scheme([*STORES, *others])
        for fault in faults:
            if scheme not in stores and scheme.partition("+")[0] == fault.name:
                raise InvalidInput(str(fault))
    paths = [store.name for store in stores.values() if store.takes_path]
    try:
        scheme, url = split_url(url, tuple(stores), paths)
    except InvalidInput as error:
        raise InvalidInput("\n  ".join([str(error), *(f"{fault}" for fault in faults)])) from None
    return stores[scheme], url


def is_persistent(url: str) -> bool:
    """Whether the store of a URL keeps data after the program; True if this is not known."""
    try:
        return Capability.PERSISTENT in store_for(url)[0].load().capabilities
    except M3Error:
        return True


def _by_scheme(stores: Iterable[Store]) -> dict[str, Store]:
    return {scheme: store for store in stores for scheme in store.schemes}


def _check_collection(collection: str) -> None:
    if not isinstance(collection, str) or not _COLLECTION.fullmatch(collection):
        raise InvalidInput(
            f"collection name {collection!r} is not valid.\n"
            "  Use 1 to 200 ASCII letters, digits, '-', '_' or '.', starting and ending with a letter or "
            "digit."
        )
