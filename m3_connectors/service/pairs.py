"""The scores of texts for queries that are in no collection."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import anyio.to_thread

from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings
from m3_connectors.methods import Method, fuse
from m3_connectors.scoring import score
from m3_connectors.service.batching import check_whole
from m3_connectors.service.state import Service


@dataclasses.dataclass(frozen=True)
class PairScores:
    """The scores of one text for one query, and the number of tokens that the model read for them all.

    Attributes:
        dense, sparse, multivector: The component scores.
        fused: Their weighted sum.
    """

    dense: float
    sparse: float
    multivector: float
    fused: float


async def score_pairs(
    service: Service, pairs: Sequence[tuple[str, str]], method: Method, *, truncate: bool = True
) -> tuple[list[PairScores], M3Embeddings | None]:
    """Return the scores of ``(query, text)`` pairs, and the embeddings of the different texts in them.

    Each text is encoded once, in how many pairs it may be.

    Raises:
        InvalidInput: A text is not valid, or too long and not to be cut.
        Refused: The service is overloaded.
    """
    if not pairs:
        return [], None
    places: dict[str, int] = {}
    for pair in pairs:
        for text in pair:
            places.setdefault(text, len(places))
    encoded = check_whole(await service.batcher.encode(list(places)), truncate)
    indexed = [(places[query], places[text]) for query, text in pairs]
    return await anyio.to_thread.run_sync(_scores, encoded, indexed, method), encoded


def _scores(encoded: M3Embeddings, pairs: Sequence[tuple[int, int]], method: Method) -> list[PairScores]:
    by_query: dict[int, list[int]] = {}
    for place, (query, _) in enumerate(pairs):
        by_query.setdefault(query, []).append(place)
    found: list[PairScores | None] = [None] * len(pairs)
    for query, wanted in by_query.items():
        texts = M3Embeddings.concatenate([encoded[pairs[place][1]] for place in wanted])
        scores = {name: score(name, encoded[query], texts) for name in COMPONENTS}
        fused = fuse(scores, method.weights)
        for i, place in enumerate(wanted):
            parts: dict[Component, float] = {name: float(values[i]) for name, values in scores.items()}
            found[place] = PairScores(**parts, fused=float(fused[i]))
    return [one for one in found if one is not None]


def relevance(fused: float, method: Method) -> float:
    """Return a fused score as a weighted mean of the component scores: of the size that re-rankers' scores have."""
    return fused / sum(method.weights)
