"""A collection as the SOURCE of a command."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from m3_connectors.backends.registry import DEFAULT_COLLECTION, store_for
from m3_connectors.backends.stores import STORES, other_stores
from m3_connectors.backends.urls import redacted


@dataclasses.dataclass(frozen=True)
class CollectionSource:
    """A collection that is copied.

    Attributes:
        url: The URL of its store.
        collection: Its name.
    """

    url: str
    collection: str = DEFAULT_COLLECTION

    @classmethod
    def parse(cls, text: str) -> CollectionSource | None:
        """Read ``URL#COLLECTION``, or ``URL`` for the collection ``documents``; None if this is no URL of a store.

        Raises:
            InvalidInput: The scheme is that of a store, but the URL is not valid.
        """
        scheme = text.partition(":")[0].lower()
        if ":" not in text or scheme == "memory":  # a store that is empty when a command starts
            return None
        if not any(scheme in store.schemes for store in (*STORES, *other_stores()[0])):
            return None
        url, mark, collection = text.rpartition("#")
        if not mark:
            url, collection = text, DEFAULT_COLLECTION
        store, url = store_for(url)
        scheme, _, rest = url.partition(":")
        if store.takes_path and not rest.startswith("//"):
            url = f"{scheme}:{Path(rest).expanduser().resolve()}"  # the same name from every folder
        return cls(url, collection)

    def __str__(self) -> str:
        """Its name without credentials, as messages and the ledger use it."""
        return f"{redacted(self.url).rstrip('/')}#{self.collection}"
