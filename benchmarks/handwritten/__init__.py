"""Client code as a user would write it by hand for one store; ``benchmarks/stores.py`` compares with it.

Each module has a class with ``write``, ``finish`` and ``search``. They read what the adapters stored and support only
what the benchmark needs: no checks, no retries, no timeouts, no filters, no long documents, one caller at a time.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings

WEIGHTS = {"dense_sparse": (1.0, 0.3, 0.0), "all": (1.0, 0.3, 1.0)}
"""The paper's weights of s_dense, s_lex and s_mul."""


@dataclasses.dataclass(frozen=True)
class Found:
    """One hit: the result of ``Index.search``, as a row."""

    id: str
    text: str
    metadata: dict[str, Any]
    score: float
    scores: dict[str, float]


class Handwritten(Protocol):
    """The interface that the benchmark calls; ``search`` reads the adapter's collection."""

    def write(self, documents: list[Document], embeddings: M3Embeddings) -> None:
        """Store documents in this client's own collection; when the call returns, they can be searched."""

    def finish(self) -> None:
        """Make searches of the written documents fast; they can be searched before this call too."""

    def drop(self) -> None:
        """Remove what was written."""

    def search(self, query: M3Embeddings, method: str, k: int) -> list[Found]:
        """Return the k best documents of the adapter's collection, with the scores of all components of the query."""

    def close(self) -> None:
        """Close connections."""
