"""A teacher: a model, such as a cross-encoder, whose scores of query and passage another model learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput


class Teacher(Protocol):
    """The parts of a teacher that are used; ``m3_connectors.CrossEncoder`` has them."""

    @property
    def fingerprint(self) -> str:
        """What changes with the weights."""

    def score(self, query: str, documents: Sequence[Document]) -> Sequence[float]:
        """Return one finite score for each document, higher for a better answer."""


def teacher_scores(teacher: Teacher, query: str, texts: Sequence[str]) -> list[float]:
    """Return the teacher's score of each text.

    Raises:
        InvalidInput: The teacher returned another number of scores, or a score that is not finite.
    """
    if not texts:
        return []
    scores = [
        float(score)
        for score in teacher.score(query, [Document(str(i), text) for i, text in enumerate(texts)])
    ]
    if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
        raise InvalidInput(
            f"the teacher returned {scores} for the {len(texts)} texts of the query {query!r:.60}.\n"
            "  It must return one finite number for each text; use another teacher."
        )
    return scores
