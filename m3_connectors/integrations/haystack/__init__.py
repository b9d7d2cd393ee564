"""Haystack: a document store, a retriever and embedders; needs ``pip install "m3-connectors[haystack]"``."""

from m3_connectors.errors import MissingDependency

try:
    import haystack as _haystack  # noqa: F401
except ImportError:
    raise MissingDependency("haystack-ai", "haystack") from None

from m3_connectors.integrations.haystack.embedders import M3DocumentEmbedder, M3TextEmbedder
from m3_connectors.integrations.haystack.retriever import M3Retriever
from m3_connectors.integrations.haystack.store import M3DocumentStore

__all__ = ["M3DocumentEmbedder", "M3DocumentStore", "M3Retriever", "M3TextEmbedder"]
