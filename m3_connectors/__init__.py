"""BGE-M3 in production: one encoding, three representations, exact fusion, in the store of your choice.

Names are imported on first use, so that ``import m3_connectors`` is quick and needs neither torch nor a
database client.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m3_connectors.adding import AddReport
    from m3_connectors.backends.base import Storage
    from m3_connectors.backends.listing import CollectionInfo
    from m3_connectors.blocking import Index, connect, list_collections
    from m3_connectors.cross_encoder import CrossEncoder
    from m3_connectors.documents import Document, Hit, Scores
    from m3_connectors.embeddings import M3Embeddings, ModelInfo, MultiVectors
    from m3_connectors.encoder.encoder import M3Encoder
    from m3_connectors.errors import BackendError, InvalidInput, M3Error, ModelMismatch
    from m3_connectors.explanation import Explanation
    from m3_connectors.index import AsyncIndex
    from m3_connectors.listing import alist_collections
    from m3_connectors.methods import (
        ALL,
        DENSE,
        DENSE_SPARSE,
        LONG_DOCUMENTS,
        MIRACL,
        MULTI_VEC,
        SPARSE,
        Method,
        Weights,
    )
    from m3_connectors.opening import aconnect
    from m3_connectors.passages import Passage
    from m3_connectors.remote_encoder import RemoteEncoder
    from m3_connectors.reranking import Reranker
    from m3_connectors.writing import CutDocument

__version__ = "0.1.0"

_HOMES = {
    "adding": ("AddReport",),
    "backends.base": ("Storage",),
    "backends.listing": ("CollectionInfo",),
    "blocking": ("Index", "connect", "list_collections"),
    "cross_encoder": ("CrossEncoder",),
    "documents": ("Document", "Hit", "Scores"),
    "embeddings": ("M3Embeddings", "ModelInfo", "MultiVectors"),
    "encoder.encoder": ("M3Encoder",),
    "errors": ("BackendError", "InvalidInput", "M3Error", "ModelMismatch"),
    "explanation": ("Explanation",),
    "index": ("AsyncIndex",),
    "listing": ("alist_collections",),
    "remote_encoder": ("RemoteEncoder",),
    "reranking": ("Reranker",),
    "opening": ("aconnect",),
    "passages": ("Passage",),
    "methods": (
        "ALL",
        "DENSE",
        "DENSE_SPARSE",
        "LONG_DOCUMENTS",
        "MIRACL",
        "MULTI_VEC",
        "SPARSE",
        "Method",
        "Weights",
    ),
    "writing": ("CutDocument",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ALL",
    "DENSE",
    "DENSE_SPARSE",
    "LONG_DOCUMENTS",
    "MIRACL",
    "MULTI_VEC",
    "SPARSE",
    "AddReport",
    "AsyncIndex",
    "BackendError",
    "CollectionInfo",
    "CrossEncoder",
    "CutDocument",
    "Document",
    "Explanation",
    "Hit",
    "Index",
    "InvalidInput",
    "M3Embeddings",
    "M3Encoder",
    "M3Error",
    "Method",
    "ModelInfo",
    "ModelMismatch",
    "MultiVectors",
    "Passage",
    "RemoteEncoder",
    "Reranker",
    "Scores",
    "Storage",
    "Weights",
    "aconnect",
    "alist_collections",
    "connect",
    "list_collections",
]


# A library does not print. An application that wants the log configures logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
