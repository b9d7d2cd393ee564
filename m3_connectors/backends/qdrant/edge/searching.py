"""The engine calls of one search in this process, in small number.

All calls run in the shard's worker, without another search in between.
"""

from __future__ import annotations

import uuid
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import qdrant_edge as engine

from m3_connectors.backends.qdrant.edge.filters import edge_filter
from m3_connectors.backends.qdrant.edge.row_file import RowFile
from m3_connectors.backends.qdrant.edge.rows import (
    ID,
    ROWS,
    Layout,
    PointId,
    document_of,
    payloads,
    point_id,
    stored,
)
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.search import Candidates, Deleted, Key, Lists

T = TypeVar("T")

_EXACT = engine.SearchParams(exact=True)

_QUERIES_AT_ONCE = 1024
"""The maximum number of queries in one batch when long documents are scored; it limits the memory of their
results."""


def key_of(id: str) -> Key:
    """Return the key of a document in a search: its point's number, which compares faster than a UUID."""
    return point_id(id).int


class EdgeAnswers:
    """What one search needs from the engine; nothing here waits, so ``at_once`` runs it to the end."""

    settles_ties = True

    def __init__(self, edge: engine.EdgeShard, layout: Layout, file: RowFile) -> None:
        self._edge = edge
        self._layout = layout
        self._file = file
        self._points: dict[Key, uuid.UUID] = {}
        """The points of keys that the engine has returned, which saves building them again."""
        self._places: dict[Key, Mapping[str, Any]] = {}
        """The payloads with the places of the rows that lists have returned, which saves reading them."""

    async def lists(self, ask: Lists) -> Candidates:
        """Return the union of the lists, with one engine call."""
        lists: dict[Component, tuple[list[Key], list[float]]] = {}
        for name, points in self._ranked(ask).items():
            keys = self._keys(points)
            lists[name] = keys, [point.score for point in points]
            self._places.update(
                (key, payload) for key, point in zip(keys, points, strict=True) if (payload := point.payload)
            )
        return Candidates.union(lists)

    async def complete(
        self,
        query: M3Embeddings,
        found: Candidates,
        components: Sequence[Component],
        *,
        documents: bool = False,
    ) -> None:
        """Add all missing scores with one engine call, and wanted documents with another one."""
        missing = {name: keys for name in components if (keys := found.missing(name))}
        if "multivector" in missing and not self._layout.scores_rows:
            scored = self._scores_of_rows(query, missing.pop("multivector"))
            found.learn("multivector", list(scored), list(scored.values()))
        requests = [self._among(keys, self._layout.nearest(name, query)) for name, keys in missing.items()]
        several = "multivector" in missing and len(self._layout.multivectors) > 1
        if several:
            # This finds the documents that continue in a second multi-vector; any query row serves.
            requests.append(self._among(missing["multivector"], self._layout.nearest_row(query, 0, 1)))
        answers = self._ask(requests)
        for (name, keys), answer in zip(missing.items(), answers, strict=False):
            scores = np.array([point.score for point in answer], dtype=np.float32)
            if name == "multivector":
                scores /= self._layout.query_rows(query)
            found.learn(name, self._keys(answer), scores)
            if name == "sparse" and len(answer) < len(keys):
                # The engine leaves out points that share no token with the query; their score is 0.
                silent = found.missing(name)
                silent = silent if found.listed else self._stored(silent)
                found.learn(name, silent, np.zeros(len(silent), dtype=np.float32))
            elif name == "multivector" and several and answers[-1]:
                long = self._of_long(query, self._keys(answers[-1]))
                found.learn(name, list(long), list(long.values()))
        if documents:
            read = payloads(self._edge, [self._point(key) for key in found.keys])
            read_by_key = {point.int: document_of(payload) for point, payload in read.items()}  # type: ignore[union-attr]
            found.bring(read_by_key)

    async def ids(self, found: Candidates) -> list[str]:
        """Return the documents' own ids."""
        if all(key in found.documents for key in found.keys):
            return [found.documents[key].id for key in found.keys]
        return self._ids(found.keys)

    # -- lists

    def _ranked(self, ask: Lists) -> dict[Component, list[engine.ScoredPoint]]:
        """Return the best points of each component, best first, with their exact scores.

        If the cut is among equal scores, those with the lowest ids are kept; that takes more calls.
        """
        # A list cannot be longer than this, and the engine's integers end at 2**64.
        stored_points = self._edge.info().points_count
        depths = {name: min(depth, stored_points) for name, depth in ask.depths.items()}
        width = min(ask.width, stored_points)
        condition = None if ask.filter is None else edge_filter(ask.filter)
        brought = [ID, ROWS] if "multivector" in ask.welcome and not self._layout.scores_rows else None

        def request(component: Component, limit: int, exactly: bool) -> engine.QueryRequest:
            exactly = exactly or component == "sparse"
            params = _EXACT if exactly else engine.SearchParams(hnsw_ef=2 * max(limit, width))
            nearest = self._layout.nearest(component, ask.query)
            return engine.QueryRequest(
                limit=limit, query=nearest, filter=condition, params=params, with_payload=brought
            )

        # One more result than requested shows whether the cut is among equal scores.
        asked = self._ask([request(name, depth + 1, ask.exact) for name, depth in depths.items()])
        lists = dict(zip(depths, asked, strict=True))
        if not ask.exact and len(lists.get("dense", ())) < depths.get("dense", 0):
            # Few points pass, or the filter disconnects the graph: scan all points that pass.
            (lists["dense"],) = self._ask([request("dense", depths["dense"] + 1, True)])
        for name, depth in depths.items():
            limit = depth + 1
            while len(lists[name]) == limit and lists[name][-1].score == lists[name][depth - 1].score:
                limit *= 4
                (lists[name],) = self._ask([request(name, limit, True)])
        return {name: self._cut(points, depths[name]) for name, points in lists.items()}

    def _cut(self, points: list[engine.ScoredPoint], depth: int) -> list[engine.ScoredPoint]:
        """Return the first ``depth`` of a list with all ties of the last one; of the ties the lowest ids."""
        if len(points) <= depth:
            return points
        tied_score = points[depth - 1].score
        sure = [point for point in points[:depth] if point.score != tied_score]
        tied = [point for point in points[len(sure) :] if point.score == tied_score]
        if len(sure) + len(tied) > depth:
            ids = dict(zip(map(id, tied), self._ids(self._keys(tied)), strict=True))
            tied = sorted(tied, key=lambda point: ids[id(point)])[: depth - len(sure)]
        return sure + tied

    # -- scores

    def _of_long(self, query: M3Embeddings, keys: Sequence[Key]) -> dict[Key, float]:
        """Return s_mul of documents in several multi-vectors: the best per query row over all, then the mean.

        The engine can only sum the best rows of one multi-vector, so each query row is a separate query for
        each.
        """
        rows, parts = self._layout.query_rows(query), len(self._layout.multivectors)
        at = {key: i for i, key in enumerate(keys)}
        best = np.full((rows, len(keys)), -np.inf, dtype=np.float32)
        cells = [(row, part) for row in range(rows) for part in range(parts)]
        for start in range(0, len(cells), _QUERIES_AT_ONCE):
            batch = cells[start : start + _QUERIES_AT_ONCE]
            requests = [self._among(keys, self._layout.nearest_row(query, row, part)) for row, part in batch]
            for (row, _), answer in zip(batch, self._ask(requests), strict=True):
                here = [at[key] for key in self._keys(answer)]
                best[row, here] = np.maximum(best[row, here], [point.score for point in answer])
        mean: Float32 = best.mean(axis=0)
        return dict(zip(keys, mean.tolist(), strict=True))

    def _scores_of_rows(self, query: M3Embeddings, keys: Sequence[Key]) -> dict[Key, np.float32]:
        """Return s_mul of the documents that are stored, from the rows in the file."""
        unread = {self._point(key): key for key in keys if key not in self._places}
        read = payloads(self._edge, list(unread), [ID, ROWS]) if unread else {}
        places = self._places | {unread[point]: payload for point, payload in read.items()}  # type: ignore[index]
        there = [key for key in keys if key in places]
        encoded = [self._layout.encoded_rows(self._file, places[key]) for key in there]
        scores = self._layout.schema.precision.scores(query.multivectors[0], encoded) if there else ()
        return dict(zip(there, scores, strict=True))

    def _stored(self, keys: Sequence[Key]) -> list[Key]:
        there = stored(self._edge, [self._point(key) for key in keys])
        return [key for key in keys if self._point(key) in there]

    # -- the engine

    def _ask(self, requests: Sequence[engine.QueryRequest]) -> list[list[engine.ScoredPoint]]:
        return self._edge.query_batch(engine.QueryBatchRequest(list(requests))) if requests else []

    def _among(self, keys: Sequence[Key], query: engine.Query) -> engine.QueryRequest:
        points: set[PointId] = {self._point(key) for key in keys}
        only = engine.Filter(must=[engine.HasIdCondition(points)])
        return engine.QueryRequest(limit=len(points), query=query, filter=only, params=_EXACT)

    def _keys(self, points: Sequence[engine.ScoredPoint]) -> list[Key]:
        # Reading ``point.id`` makes a new UUID each time, which costs more than all else here.
        ids = [point.id for point in points]
        keys = [id.int for id in ids if isinstance(id, uuid.UUID)]
        self._points.update(zip(keys, ids, strict=True))  # type: ignore[arg-type]
        return keys

    def _point(self, key: Key) -> uuid.UUID:
        return self._points.get(key) or uuid.UUID(int=key)

    def _ids(self, keys: Sequence[Key]) -> list[str]:
        points = [self._point(key) for key in keys]
        found = payloads(self._edge, points, [ID])
        if len(found) < len(points):
            raise Deleted("documents were deleted before their ids were read.")
        return [found[point][ID] for point in points]


def at_once(call: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that never waits, without an event loop."""
    try:
        call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    call.close()
    raise RuntimeError(f"{call} waits, which a call of the engine must not do.")
