"""The stores of this package, and those of other distributions.

Another distribution declares a store with an entry point, whose name is the store's name:

    [project.entry-points."m3_connectors.stores"]
    toy = "m3_toy:STORE"  # a backends.store.Store

A distribution that is at fault does not affect other stores: it is named where its scheme is used, where a
scheme is unknown, and by ``m3 doctor``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from m3_connectors.backends.base import Backend
from m3_connectors.backends.elasticsearch.store import STORE as _ELASTICSEARCH
from m3_connectors.backends.memory import STORE as _MEMORY
from m3_connectors.backends.milvus.store import STORE as _MILVUS
from m3_connectors.backends.qdrant.edge.store import STORE as _QDRANT_EDGE
from m3_connectors.backends.qdrant.server.store import STORE as _QDRANT
from m3_connectors.backends.store import OURS, Store

STORES = (_MEMORY, _QDRANT_EDGE, _QDRANT, _MILVUS, _ELASTICSEARCH)
"""The stores of this package; they keep their schemes, whatever else is installed."""

GROUP = "m3_connectors.stores"
"""The group of the entry points by which other distributions declare stores."""


def store_of(adapter: type[Backend]) -> Store | None:
    """Return the store of an adapter's class or of its nearest base; None if no store names it."""
    names = [f"{one.__module__}:{one.__qualname__}" for one in adapter.__mro__]
    stores = list(all_stores())
    return next((store for name in names for store in stores if store.adapter == name), None)


def stores_with(*fields: str) -> dict[str, Store]:
    """Return the stores whose descriptor has at least one of these fields, by name."""
    found: dict[str, Store] = {}
    for store in all_stores():
        if any(getattr(store, field) for field in fields):
            found.setdefault(store.name, store)
    return found


def takes_path(scheme: str) -> bool:
    """Whether the URL ``SCHEME:…`` takes a path on this machine."""
    return any(store.takes_path and store.name == scheme for store in all_stores())


def all_stores() -> Iterator[Store]:
    """Yield the stores of this package, and then those of other distributions that can be used."""
    yield from STORES
    yield from other_stores()[0]


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
