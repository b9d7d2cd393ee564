"""The stages after fusion: a re-ranker over the best hits, then the page that the caller asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from m3_connectors.documents import Document, Hit
from m3_connectors.errors import InvalidInput
from m3_connectors.methods import rank


class Reranker(Protocol):
    """A model that scores documents for a query; ``CrossEncoder`` is one."""

    def score(self, query: str, documents: Sequence[Document]) -> Sequence[float]:
        """Return one finite score for each document, higher for a better answer."""


@dataclasses.dataclass(frozen=True)
class Page:
    """The part of a ranking that a search returns.

    Attributes:
        k: Maximum number of hits, >= 1.
        offset: Number of hits to skip first, >= 0.
        min_score: Hits with a lower score are left out; None keeps all.

    Raises:
        InvalidInput: A value is out of range.
    """

    k: int
    offset: int = 0
    min_score: float | None = None

    def __post_init__(self) -> None:
        check_count("k", self.k, least=1)
        check_count("offset", self.offset, least=0)
        if self.min_score is not None and not _is_finite_number(self.min_score):
            raise InvalidInput(
                f"min_score is {self.min_score!r}; it must be a finite number.\n  Pass None for no threshold."
            )

    @property
    def depth(self) -> int:
        """The number of hits that have to be ranked."""
        return self.offset + self.k

    def cut(self, hits: Sequence[Hit]) -> list[Hit]:
        """Return the hits of this page, of a ranking that is at least ``depth`` long where so many exist."""
        page = hits[self.offset : self.depth]
        return [hit for hit in page if self.min_score is None or hit.score >= self.min_score]


def check_rerank_depth(depth: int) -> None:
    """Raise InvalidInput unless ``depth`` is a whole number >= 1."""
    check_count("rerank_depth", depth, least=1)


def rerank(reranker: Reranker, query: str, hits: Sequence[Hit]) -> list[Hit]:
    """Order hits by a re-ranker's scores; equal scores are ordered by id.

    Returns:
        The same hits with the re-ranker's score as ``score`` and the fused score as ``fused_score``.

    Raises:
        InvalidInput: The re-ranker returned another number of scores, or a score that is not finite.
    """
    if not hits:
        return []
    scores = np.asarray(reranker.score(query, [hit.document for hit in hits]), dtype=np.float64)
    name = type(reranker).__name__
    if scores.shape != (len(hits),):
        raise InvalidInput(
            f"the re-ranker {name} returned scores of shape {scores.shape} for {len(hits)} documents.\n"
            "  It must return one number for each document."
        )
    if not np.isfinite(scores).all():
        worst = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise InvalidInput(
            f"the re-ranker {name} returned {scores[worst]} for document {hits[worst].document.id!r}.\n"
            "  It must return finite numbers."
        )
    order = rank([hit.document.id for hit in hits], scores, len(hits))
    return [dataclasses.replace(hits[i], score=float(scores[i]), fused_score=hits[i].score) for i in order]


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return math.isfinite(value)


def check_count(name: str, value: object, *, least: int) -> int:
    """Return a number that a search is given; InvalidInput unless it is whole and at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InvalidInput(
            f"{name} is {value!r}; it must be a whole number >= {least}.\n  Pass {name}=10, for example."
        )
    return int(value)
