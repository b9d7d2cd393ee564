"""Exact ranking with few engine calls: candidates, then every missing score of every candidate, then fusion.

All functions here run in the shard's worker, one search without another in between.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import qdrant_edge as engine

from m3_connectors.backends.base import ScoredId
from m3_connectors.backends.qdrant.points import ID, Layout, PointId, payloads
from m3_connectors.documents import Scores
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.methods import Method, fuse, rank

Found = dict[PointId, float]
"""Score by point."""

_EXACT = engine.SearchParams(exact=True)

_QUERIES_AT_ONCE = 1024
"""Most queries in one batch while scoring long documents: bounds the memory of their answers."""


def search(
    edge: engine.EdgeShard,
    layout: Layout,
    query: M3Embeddings,
    method: Method,
    k: int,
    condition: engine.Filter | None,
    exact: bool,
) -> list[ScoredId]:
    """The k best documents by a method (clauses B24 to B27): three engine calls, four with informative scores."""
    found = candidates(edge, layout, query, method.candidates, condition, exact)
    points = list(dict.fromkeys(itertools.chain.from_iterable(found.values())))
    if not points:
        return []
    scores = complete(edge, layout, query, method.scored, points, found)
    fused = fuse(scores, method.weights)
    best = _best(fused, k)
    ids = user_ids(edge, [points[i] for i in best])
    # Only now are ids known that equal scores are ordered by.
    winners = [best[i] for i in rank(ids, fused[best], k)]
    id_of = dict(zip(best, ids, strict=True))

    # The other components are informative only: scored for the k hits, not for the candidates.
    rest = [
        name for name in layout.schema.components if name in query.components and name not in method.scored
    ]
    extra = complete(edge, layout, query, rest, [points[i] for i in winners], found)

    def scores_of(position: int, i: int) -> Scores:
        values = {name: float(scores[name][i]) for name in scores}
        values |= {name: float(extra[name][position]) for name in extra}
        return Scores(**values)

    return [ScoredId(id_of[i], float(fused[i]), scores_of(position, i)) for position, i in enumerate(winners)]


def candidates(
    edge: engine.EdgeShard,
    layout: Layout,
    query: M3Embeddings,
    depths: Mapping[Component, int],
    condition: engine.Filter | None,
    exact: bool,
) -> dict[Component, Found]:
    """The best points of each component, best first, with their exact scores: one engine call."""

    def request(component: Component, limit: int, params: engine.SearchParams) -> engine.QueryRequest:
        nearest = layout.nearest(component, query)
        return engine.QueryRequest(limit=limit, query=nearest, filter=condition, params=params)

    wanted = [
        request(name, depth, _EXACT if exact or name == "sparse" else engine.SearchParams(hnsw_ef=2 * depth))
        for name, depth in depths.items()
    ]
    found = dict(zip(depths, _ask(edge, wanted), strict=True))
    if not exact and len(found.get("dense", ())) < depths.get("dense", 0):
        # Few points pass, or the graph's way to them is cut off by the filter: look at all that pass.
        found["dense"] = _ask(edge, [request("dense", depths["dense"], _EXACT)])[0]
    return found


def complete(
    edge: engine.EdgeShard,
    layout: Layout,
    query: M3Embeddings,
    components: Sequence[Component],
    points: Sequence[PointId],
    found: Mapping[Component, Found],
) -> dict[Component, Float32]:
    """Each component's exact score of every point, float32 ``[len(points)]``; one engine call for all not found yet."""
    missing = {name: [p for p in points if p not in found.get(name, ())] for name in components}
    asked = [name for name in components if missing[name]]
    requests = [_among(missing[name], layout.nearest(name, query)) for name in asked]
    probe = "multivector" in asked and len(layout.multivectors) > 1
    if probe:
        # Which of them go on in a second multi-vector: any query row tells.
        requests.append(_among(missing["multivector"], layout.nearest_row(query, 0, 1)))
    answers = _ask(edge, requests)
    new = dict(zip(asked, answers, strict=False))
    if "multivector" in new:
        rows = layout.query_rows(query)
        new["multivector"] = {point: total / rows for point, total in new["multivector"].items()}
        if probe and answers[-1]:
            new["multivector"] |= _score_long(edge, layout, query, list(answers[-1]))
    return {
        name: np.array(
            # Sparse search leaves out points that share no token with the query: their score is 0.
            [_lookup(point, found.get(name), new.get(name)) for point in points],
            dtype=np.float32,
        )
        for name in components
    }


def user_ids(edge: engine.EdgeShard, points: Sequence[PointId]) -> list[str]:
    """The documents' own ids."""
    found = payloads(edge, points, [ID])
    return [found[point][ID] for point in points]


def _score_long(
    edge: engine.EdgeShard, layout: Layout, query: M3Embeddings, points: Sequence[PointId]
) -> Found:
    """s_mul of documents in several multi-vectors: for each query row the best of all of them, then the mean.

    The engine can only add up the best rows of one multi-vector, so each query row asks each of them by itself.
    """
    position = {point: i for i, point in enumerate(points)}
    rows, parts = layout.query_rows(query), len(layout.multivectors)
    best = np.full((rows, len(points)), -np.inf)
    cells = [(row, part) for row in range(rows) for part in range(parts)]
    for start in range(0, len(cells), _QUERIES_AT_ONCE):
        batch = cells[start : start + _QUERIES_AT_ONCE]
        requests = [_among(points, layout.nearest_row(query, row, part)) for row, part in batch]
        for (row, _), found in zip(batch, _ask(edge, requests), strict=True):
            for point, score in found.items():
                best[row, position[point]] = max(best[row, position[point]], score)
    return dict(zip(points, best.mean(axis=0).tolist(), strict=True))


def _ask(edge: engine.EdgeShard, requests: Sequence[engine.QueryRequest]) -> list[Found]:
    if not requests:
        return []
    answers = edge.query_batch(engine.QueryBatchRequest(list(requests)))
    return [{point.id: point.score for point in answer} for answer in answers]


def _among(points: Sequence[PointId], query: engine.Query) -> engine.QueryRequest:
    only = engine.Filter(must=[engine.HasIdCondition(set(points))])
    return engine.QueryRequest(limit=len(points), query=query, filter=only, params=_EXACT)


def _lookup(point: PointId, *found: Found | None) -> float:
    return next((scores[point] for scores in found if scores and point in scores), 0.0)


def _best(fused: npt.NDArray[np.float64], k: int) -> list[int]:
    """Positions of the k best and of all that equal the last of them, best first."""
    order = np.argsort(-fused, kind="stable")
    if len(order) > k:
        order = order[: int(np.searchsorted(-fused[order], -fused[order[k - 1]], side="right"))]
    return order.tolist()  # type: ignore[no-any-return]
