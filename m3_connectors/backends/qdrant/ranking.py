"""Exact ranking with few engine calls: candidates, then every missing score of every candidate, then fusion.

All functions here run in the shard's worker, one search without another in between.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import qdrant_edge as engine

from m3_connectors.backends.base import ScoredId, answers
from m3_connectors.backends.qdrant.points import ID, Layout, PointId, document_of, payloads
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.methods import Method, fuse, rank

_EXACT = engine.SearchParams(exact=True)

_QUERIES_AT_ONCE = 1024
"""Most queries in one batch while scoring long documents: bounds the memory of their answers."""


class Found:
    """Points that were found, and their scores as far as they are known.

    Attributes:
        points: Each once.
        scores: float32 ``[len(points)]`` by component, NaN where not known; a component may lack.
    """

    def __init__(self, points: Iterable[PointId], scores: Mapping[Component, Float32] | None = None) -> None:
        self._row: dict[object, int] = {}
        self.points: list[PointId] = []
        for point in points:
            if self._row.setdefault(_number(point), len(self.points)) == len(self.points):
                self.points.append(point)
        self.scores: dict[Component, Float32] = dict(scores or {})

    @classmethod
    def of(cls, lists: Mapping[Component, Sequence[engine.ScoredPoint]]) -> Found:
        """The union of ranked lists."""
        ids = {name: [point.id for point in ranked] for name, ranked in lists.items()}
        found = cls(itertools.chain.from_iterable(ids.values()))
        for name, ranked in lists.items():
            found.scores[name] = np.full(len(found.points), np.nan, dtype=np.float32)
            found.scores[name][found.rows(ids[name])] = [point.score for point in ranked]
        return found

    def rows(self, points: Iterable[PointId]) -> list[int]:
        """Positions of points that are here."""
        return [self._row[_number(point)] for point in points]

    def part(self, rows: Sequence[int]) -> Found:
        """Those at some positions, in that order."""
        chosen = list(rows)
        return Found(
            (self.points[i] for i in chosen), {name: all_[chosen] for name, all_ in self.scores.items()}
        )


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
    depths = dict(method.candidates)
    if method.is_one_list:
        depths = dict.fromkeys(depths, k)
    lists = candidates(edge, layout, query, depths, condition, exact, width=max(method.candidates.values()))
    found = Found.of(lists)
    if not found.points:
        return []
    scores = complete(edge, layout, query, method.scored, found)
    fused = fuse(scores, method.weights)
    best = _best(fused, k)
    # Equal scores are ordered by the documents' own ids, which only these need.
    found_payloads = payloads(edge, [found.points[i] for i in best])
    documents = [document_of(found_payloads[found.points[i]]) for i in best]
    order = rank([document.id for document in documents], fused[best], k)
    winners = [best[i] for i in order]
    # The other components are informative only: scored for the k hits, not for the candidates.
    rest = [
        name for name in layout.schema.components if name in query.components and name not in method.scored
    ]
    shown = {name: values[winners] for name, values in scores.items()}
    shown |= complete(edge, layout, query, rest, found.part(winners))
    hits = {documents[i].id: documents[i] for i in order}
    return answers(list(hits), fused[winners], shown, hits)


def candidates(
    edge: engine.EdgeShard,
    layout: Layout,
    query: M3Embeddings,
    depths: Mapping[Component, int],
    condition: engine.Filter | None,
    exact: bool,
    width: int = 0,
) -> dict[Component, list[engine.ScoredPoint]]:
    """The best points of each component, best first, with their exact scores: one engine call.

    A graph is searched as far as for ``width`` points, if that is more than the depth. Where the cut goes through
    equal scores, those with the lowest ids are in; that takes more calls.
    """
    stored = edge.info().points_count  # deeper there is nothing, and the engine's integers end at 2**64
    depths = {name: min(depth, stored) for name, depth in depths.items()}
    width = min(width, stored)

    def request(component: Component, limit: int, exactly: bool) -> engine.QueryRequest:
        params = (
            _EXACT if exactly or component == "sparse" else engine.SearchParams(hnsw_ef=2 * max(limit, width))
        )
        nearest = layout.nearest(component, query)
        return engine.QueryRequest(limit=limit, query=nearest, filter=condition, params=params)

    # One more than asked for tells whether the cut goes through equal scores.
    lists = dict(
        zip(depths, _ask(edge, [request(name, depths[name] + 1, exact) for name in depths]), strict=True)
    )
    if not exact and len(lists.get("dense", ())) < depths.get("dense", 0):
        # Few points pass, or the graph's way to them is cut off by the filter: look at all that pass.
        lists["dense"] = _ask(edge, [request("dense", depths["dense"] + 1, True)])[0]
    for name, depth in depths.items():
        limit = depth + 1
        while len(lists[name]) == limit and lists[name][-1].score == lists[name][depth - 1].score:
            limit *= 4
            lists[name] = _ask(edge, [request(name, limit, True)])[0]
    return {name: _cut(edge, ranked, depths[name]) for name, ranked in lists.items()}


def complete(
    edge: engine.EdgeShard, layout: Layout, query: M3Embeddings, components: Sequence[Component], found: Found
) -> dict[Component, Float32]:
    """Each component's exact score of every point, float32 ``[len(points)]``; one engine call for all not known yet."""
    points = found.points
    unknown = np.full(len(points), np.nan, dtype=np.float32)
    scores = {name: found.scores.get(name, unknown).copy() for name in components}
    missing = {name: np.flatnonzero(np.isnan(values)) for name, values in scores.items()}
    asked = [name for name in components if len(missing[name])]
    requests = [_among([points[i] for i in missing[name]], layout.nearest(name, query)) for name in asked]
    several = "multivector" in asked and len(layout.multivectors) > 1
    if several:
        # Which of them go on in a second multi-vector: any query row tells.
        requests.append(_among(points, layout.nearest_row(query, 0, 1)))
    answers = _ask(edge, requests)
    for name, answer in zip(asked, answers, strict=False):
        # Sparse search leaves out points that share no token with the query: their score is 0.
        scores[name][missing[name]] = 0.0
        scores[name][found.rows(point.id for point in answer)] = [point.score for point in answer]
    if "multivector" in asked:
        scores["multivector"] /= layout.query_rows(query)
        if several and answers[-1]:
            long = found.rows(point.id for point in answers[-1])
            scores["multivector"][long] = _score_long(edge, layout, query, found.part(long))
    return scores


def user_ids(edge: engine.EdgeShard, points: Sequence[PointId]) -> list[str]:
    """The documents' own ids."""
    found = payloads(edge, points, [ID])
    return [found[point][ID] for point in points]


def _score_long(edge: engine.EdgeShard, layout: Layout, query: M3Embeddings, found: Found) -> Float32:
    """s_mul of documents in several multi-vectors: for each query row the best of all of them, then the mean.

    The engine can only add up the best rows of one multi-vector, so each query row asks each of them by itself.
    """
    rows, parts = layout.query_rows(query), len(layout.multivectors)
    best = np.full((rows, len(found.points)), -np.inf, dtype=np.float32)
    cells = [(row, part) for row in range(rows) for part in range(parts)]
    for start in range(0, len(cells), _QUERIES_AT_ONCE):
        batch = cells[start : start + _QUERIES_AT_ONCE]
        requests = [_among(found.points, layout.nearest_row(query, row, part)) for row, part in batch]
        for (row, _), answer in zip(batch, _ask(edge, requests), strict=True):
            at = found.rows(point.id for point in answer)
            best[row, at] = np.maximum(best[row, at], [point.score for point in answer])
    mean: Float32 = best.mean(axis=0)
    return mean


def _ask(edge: engine.EdgeShard, requests: Sequence[engine.QueryRequest]) -> list[list[engine.ScoredPoint]]:
    return edge.query_batch(engine.QueryBatchRequest(list(requests))) if requests else []


def _among(points: Sequence[PointId], query: engine.Query) -> engine.QueryRequest:
    only = engine.Filter(must=[engine.HasIdCondition(set(points))])
    return engine.QueryRequest(limit=len(points), query=query, filter=only, params=_EXACT)


def _cut(
    edge: engine.EdgeShard, ranked: Sequence[engine.ScoredPoint], depth: int
) -> list[engine.ScoredPoint]:
    """The first ``depth`` of a ranked list that holds all that equal the last of them; of these the lowest ids."""
    kept = _head(ranked, depth)
    if len(kept) <= depth:
        return kept
    start = next(i for i, point in enumerate(kept) if point.score == kept[-1].score)
    ids = user_ids(edge, [point.id for point in kept[start:]])
    lowest = sorted(range(len(ids)), key=ids.__getitem__)[: depth - start]
    return kept[:start] + [kept[start + i] for i in lowest]


def _head(ranked: Sequence[engine.ScoredPoint], k: int) -> list[engine.ScoredPoint]:
    """The first k of a ranked list, and those that equal the last of them."""
    end = min(k, len(ranked))
    while end < len(ranked) and ranked[end].score == ranked[k - 1].score:
        end += 1
    return list(ranked[:end])


def _best(fused: npt.NDArray[np.float64], k: int) -> list[int]:
    """Positions of the k best and of all that equal the last of them, best first."""
    order = np.argsort(-fused, kind="stable")
    if len(order) > k:
        order = order[: int(np.searchsorted(-fused[order], -fused[order[k - 1]], side="right"))]
    best: list[int] = order.tolist()
    return best


def _number(point: PointId) -> object:
    # A UUID is hashed and compared in Python, its number in C.
    return point.int if isinstance(point, uuid.UUID) else point
