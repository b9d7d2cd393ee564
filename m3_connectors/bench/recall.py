"""What a store's approximate lists miss: the same questions asked both ways."""

from __future__ import annotations

import time
from collections.abc import Sequence

from m3_connectors.backends.base import Backend
from m3_connectors.bench.load import Mix
from m3_connectors.bench.rows import RecallRow, Sink
from m3_connectors.bench.scenario import Recall
from m3_connectors.bench.synthetic import filter_for
from m3_connectors.filters import parse_filter
from m3_connectors.methods import METHODS

_TIE = 1e-6
"""Scores so close are equal: which of the two stands in a list is chance."""


async def compare(
    backend: Backend, mix: Mix, settings: Recall, rows: Sink[RecallRow], *, store: str, documents: int
) -> None:
    """Ask the first requests of the mix, and for the dense list that methods start from, approximately and exactly."""
    for number in range(settings.queries):
        request = mix[number]
        query = mix.vectors[request.query]
        filter = None if request.selectivity is None else parse_filter(filter_for(request.selectivity))
        for kind in ("search", "list"):
            depth = mix.k if kind == "search" else settings.depth
            scores, seconds = [], []
            for exact in (False, True):
                start = time.perf_counter()
                if kind == "search":
                    answer = await backend.search(
                        query, METHODS[request.method], depth, filter=filter, exact=exact
                    )
                    scores.append([found.score for found in answer])
                else:
                    ranking = await backend.candidates("dense", query, depth, filter=filter, exact=exact)
                    scores.append(ranking.scores.tolist())
                seconds.append(time.perf_counter() - start)
            rows.add(
                RecallRow(
                    store=store,
                    documents=documents,
                    kind=kind,
                    query=request.query,
                    method=request.method if kind == "search" else "dense",
                    selectivity=request.selectivity,
                    depth=depth,
                    expected=len(scores[1]),
                    found=found_of(*scores),
                    approximate_seconds=seconds[0],
                    exact_seconds=seconds[1],
                )
            )
    rows.flush()


def found_of(approximate: Sequence[float], exact: Sequence[float]) -> int:
    """How many entries of an approximate list belong into the exact one, both given by their scores, best first."""
    if not exact:
        return 0
    return min(len(exact), sum(score >= exact[-1] - _TIE for score in approximate))
