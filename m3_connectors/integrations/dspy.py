"""DSPy: a retriever that a program calls with a question and that returns passages."""

from __future__ import annotations

from typing import Any

from m3_connectors.documents import Hit
from m3_connectors.errors import MissingDependency
from m3_connectors.integrations.access import Access, AnyIndex, SearchOptions

try:
    import dspy
except ImportError:
    raise MissingDependency("dspy", "dspy") from None


class M3Retriever(dspy.Module):  # type: ignore[misc]
    """A module with the exact fusion of all three scores, called as ``retriever("question", k=3)``.

    The prediction has ``passages`` (texts), ``ids``, ``scores``, ``component_scores`` and ``metadata``, best first.

    Args:
        index: What ``connect`` or ``aconnect`` returns. With the latter, only ``acall`` works.
        **options: The arguments of ``Index.search``, such as ``k``, ``method``, ``filter``, ``min_score`` and
            ``rerank``, and ``weights``.

    Raises:
        InvalidInput: The index or an option is not valid.
    """

    def __init__(self, index: AnyIndex, **options: Any) -> None:
        super().__init__()
        self._access = Access(index)
        self._options = SearchOptions().changed(options)

    def forward(self, query: str, **options: Any) -> dspy.Prediction:
        """Return the best passages; options replace those of the retriever for this call."""
        return _prediction(self._access.run(self._options.changed(options).of(query)))

    async def aforward(self, query: str, **options: Any) -> dspy.Prediction:
        """As ``forward``."""
        return _prediction(await self._access.await_(self._options.changed(options).of(query)))

    def __deepcopy__(self, memo: dict[int, Any]) -> M3Retriever:
        """Return a retriever of the same index: DSPy's optimisers copy programs, and an index cannot be copied."""
        copy = type(self)(self._access.index, **vars(self._options))
        memo[id(self)] = copy
        return copy


def _prediction(hits: list[Hit]) -> dspy.Prediction:
    return dspy.Prediction(
        passages=[hit.document.text for hit in hits],
        ids=[hit.document.id for hit in hits],
        scores=[hit.score for hit in hits],
        component_scores=[hit.scores.to_dict() for hit in hits],
        metadata=[dict(hit.document.metadata) for hit in hits],
    )
