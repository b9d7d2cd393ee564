"""From a URL to a backend: the only list of adapters; each adapter is imported on first use."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

from m3_connectors.backends.base import Backend
from m3_connectors.backends.urls import split_url
from m3_connectors.errors import InvalidInput, MissingDependency

_ADAPTERS = {
    "memory": "m3_connectors.backends.memory:MemoryBackend",
    "qdrant": "m3_connectors.backends.qdrant.edge.backend:EdgeBackend",
    "qdrant+http": "m3_connectors.backends.qdrant.server.backend:QdrantBackend",
    "qdrant+https": "m3_connectors.backends.qdrant.server.backend:QdrantBackend",
    "milvus": "m3_connectors.backends.milvus.backend:MilvusBackend",
    "milvus+http": "m3_connectors.backends.milvus.backend:MilvusBackend",
    "milvus+https": "m3_connectors.backends.milvus.backend:MilvusBackend",
    "elasticsearch+http": "m3_connectors.backends.elasticsearch.backend:ElasticsearchBackend",
    "elasticsearch+https": "m3_connectors.backends.elasticsearch.backend:ElasticsearchBackend",
}
"""From URL scheme to ``module:class``; the class has ``from_url(url, collection, options)``."""

_COLLECTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,198}[A-Za-z0-9])?")

_DISTRIBUTIONS = {"qdrant_edge": "qdrant-edge-py", "qdrant_client": "qdrant-client"}
"""The distributions of modules that have another name than their distribution."""

DEFAULT_COLLECTION = "documents"


def backend_for(
    url: str, collection: str = DEFAULT_COLLECTION, options: Mapping[str, Any] | None = None
) -> Backend:
    """Return the backend that a URL names, without opening it.

    Args:
        url: ``memory:``, ``qdrant:DIRECTORY``, ``milvus:FILE.db``, or ``STORE+http(s)://HOST:PORT`` with
            qdrant, milvus or elasticsearch as STORE.
        collection: 1 to 200 letters, digits, ``-``, ``_`` or ``.``, the first a letter or digit.
        options: The adapter's own options.

    Raises:
        InvalidInput: The scheme is unknown, the collection name is not valid, or an option is unknown.
        Unsupported: The store does not support an option.
        MissingDependency: The client library of the store is not installed.
    """
    scheme, url = split_url(url, tuple(_ADAPTERS))
    _check_collection(collection)
    module, _, name = _ADAPTERS[scheme].partition(":")
    try:
        adapter = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.startswith("m3_connectors"):
            raise
        raise MissingDependency(_DISTRIBUTIONS.get(missing, missing), scheme.partition("+")[0]) from error
    backend: Backend = adapter.from_url(url, collection, dict(options or {}))
    return backend


def _check_collection(collection: str) -> None:
    if not isinstance(collection, str) or not _COLLECTION.fullmatch(collection):
        raise InvalidInput(
            f"collection name {collection!r} is not valid.\n"
            "  Use 1 to 200 ASCII letters, digits, '-', '_' or '.', starting and ending with a letter or "
            "digit."
        )
