"""The round trip: at which rank a question finds its own passage among the passages of all articles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from m3_connectors.documents import Document
from m3_connectors.evaluation.baselines.bm25 import BM25, words
from m3_connectors.evaluation.baselines.ranking import best

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder

_PASSAGES_AT_ONCE = 256


class Finder(Protocol):
    """Finds passages by a question."""

    def find(self, question: str, count: int) -> list[str]:
        """Return the ids of the best passages, best first."""


class WordFinder:
    """Finds passages by BM25.

    Args:
        passages: Ids and texts.

    Raises:
        MissingDependency: bm25s is not installed.
    """

    def __init__(self, passages: Iterable[tuple[str, str]]) -> None:
        self._bm25 = BM25(Document(id, text) for id, text in passages)

    def find(self, question: str, count: int) -> list[str]:
        """Return the ids of the best passages, best first."""
        return [id for id, _ in self._bm25.search(words(question), count)]


class DenseFinder:
    """Finds passages by the dense vectors of an encoder.

    Args:
        passages: Ids and texts.
        encoder: The encoder.
    """

    def __init__(self, passages: Iterable[tuple[str, str]], encoder: M3Encoder) -> None:
        ids, texts = zip(*passages, strict=True)
        self._ids: tuple[str, ...] = ids
        self._encoder = encoder
        self._vectors = np.concatenate(
            [
                encoder.encode(list(texts[start : start + _PASSAGES_AT_ONCE]), components=("dense",)).dense
                for start in range(0, len(texts), _PASSAGES_AT_ONCE)
            ]
        )

    def find(self, question: str, count: int) -> list[str]:
        """Return the ids of the best passages, best first."""
        query = self._encoder.encode([question], components=("dense",)).dense[0]
        return [id for id, _ in best(self._ids, self._vectors @ query, count)]
