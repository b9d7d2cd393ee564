"""Client code as one would write it by hand for one store: the measure of ``benchmarks/stores.py``.

Each module has a class with ``write``, ``finish`` and ``search``. They read what the adapters stored, know the answer's
form and nothing else: no checks, no retries, no deadlines, no filters, no long documents, one caller at a time.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings

WEIGHTS = {"dense_sparse": (1.0, 0.3, 0.0), "all": (1.0, 0.3, 1.0)}
"""The paper's, of s_dense, s_lex and s_mul."""


@dataclasses.dataclass(frozen=True)
class Found:
    """One hit: what ``Index.search`` answers, as a row."""

    id: str
    text: str
    metadata: dict[str, Any]
    score: float
    scores: dict[str, float]


class Handwritten(Protocol):
    """What the benchmark calls; ``search`` reads the adapter's collection."""

    def write(self, documents: list[Document], embeddings: M3Embeddings) -> None:
        """Store documents in a collection of this client's own; when it returns, they can be searched."""

    def finish(self) -> None:
        """What makes all that was written fast to search; it can be searched before."""

    def drop(self) -> None:
        """Remove what was written."""

    def search(self, query: M3Embeddings, method: str, k: int) -> list[Found]:
        """The k best documents of the adapter's collection, with the scores of all components of the query."""

    def close(self) -> None:
        """Give back connections."""
