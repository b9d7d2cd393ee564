"""From a URL to a backend: the stores of this package, and those of other distributions.

Another distribution declares a store with an entry point, whose name is the store's name:

    [project.entry-points."m3_connectors.stores"]
    toy = "m3_toy:STORE"  # a backends.store.Store

A distribution that is at fault does not affect other stores: it is named where its scheme is used, where a
scheme is unknown, and by ``m3 doctor``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from m3_connectors.backends.base import Backend
from m3_connectors.backends.elasticsearch.store import STORE as _ELASTICSEARCH
from m3_connectors.backends.memory import STORE as _MEMORY
from m3_connectors.backends.milvus.store import STORE as _MILVUS
from m3_connectors.backends.qdrant.edge.store import STORE as _QDRANT_EDGE
from m3_connectors.backends.qdrant.server.store import STORE as _QDRANT
from m3_connectors.backends.store import OURS, Store
from m3_connectors.backends.urls import split_url
from m3_connectors.errors import InvalidInput

STORES = (_MEMORY, _QDRANT_EDGE, _QDRANT, _MILVUS, _ELASTICSEARCH)
"""The stores of this package; they keep their schemes, whatever else is installed."""

GROUP = "m3_connectors.stores"
"""The group of the entry points by which other distributions declare stores."""

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


def store_of(adapter: type[Backend]) -> Store | None:
    """Return the store of an adapter's class or of its nearest base; None if no store names it."""
    names = [f"{one.__module__}:{one.__qualname__}" for one in adapter.__mro__]
    stores = [*STORES, *other_stores()[0]]
    return next((store for name in names for store in stores if store.adapter == name), None)


def _by_scheme(stores: Iterable[Store]) -> dict[str, Store]:
    return {scheme: store for store in stores for scheme in store.schemes}


@dataclasses.dataclass(frozen=True)
class Fault:
    """A store of another distribution that cannot be used.

    Attributes:
        name: The name of its entry point.
        distribution: The distribution that declares it.
        what: What is wrong.
        remedy: What to do.
    """

    name: str
    distribution: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"the store {self.name}: of {self.distribution} {self.what}.\n  {self.remedy}"


def other_stores() -> tuple[list[Store], list[Fault]]:
    """Return the stores of other distributions, and those that cannot be used.

    Entry points are read each time, so that a distribution can be installed while a program runs. If two
    distributions have a store of the same name, the first in alphabetical order keeps the name.
    """
    providers = dict.fromkeys((store.name for store in STORES), OURS)
    stores: list[Store] = []
    faults: list[Fault] = []
    entries = [
        ((entry.dist and entry.dist.name) or entry.module, entry)
        for entry in metadata.entry_points(group=GROUP)
    ]
    for distribution, entry in sorted(entries, key=lambda one: (one[0], one[1].name)):
        store: Any = None
        what: str | None = None
        remedy = f"Update or uninstall {distribution}, or report this to its authors."
        if entry.name in providers:
            what = f"uses a name that {providers[entry.name]} already has"
            remedy = f"Uninstall {distribution}" + (
                "." if providers[entry.name] == OURS else f" or {providers[entry.name]}."
            )
        else:
            try:
                store = entry.load()
            except (Exception, SystemExit) as error:  # noqa: BLE001 (it is another distribution's code)
                what = f"cannot be imported: {type(error).__name__}: {error}"
            else:
                what = _fault(entry.name, store)
        if what is None:
            providers[entry.name] = distribution
            stores.append(dataclasses.replace(store, distribution=distribution))
        else:
            faults.append(Fault(entry.name, distribution, what, remedy))
    return stores, faults


def _fault(name: str, store: Any) -> str | None:
    """Return what is wrong with the descriptor of an entry point, or None."""
    if not isinstance(store, Store):
        return f"is {store!r}, which is not a {Store.__module__}.Store"
    if store.name != name:
        return f"calls itself {store.name!r}, unlike its entry point"
    return store.fault()


def _check_collection(collection: str) -> None:
    if not isinstance(collection, str) or not _COLLECTION.fullmatch(collection):
        raise InvalidInput(
            f"collection name {collection!r} is not valid.\n"
            "  Use 1 to 200 ASCII letters, digits, '-', '_' or '.', starting and ending with a letter or "
            "digit."
        )
