"""Read from a collection: its points page by page, and exact scores in as few requests as its limits allow."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from qdrant_client import models

from m3_connectors.backends.chunks import by_count
from m3_connectors.backends.qdrant.layout import Layout, Vector, sparse_row
from m3_connectors.backends.qdrant.payload import ID
from m3_connectors.backends.qdrant.server.collection import Limits
from m3_connectors.backends.qdrant.server.connection import Connection
from m3_connectors.backends.qdrant.server.wire import Ask, Found
from m3_connectors.embeddings import Component, Float32, M3Embeddings

_IDS_AT_ONCE = 1000
_PAGE = 1000

Search = Callable[[Sequence[Ask]], Awaitable[list[list[Found]]]]
Read = Callable[[Sequence[str], str], Awaitable[Mapping[str, Vector]]]


class ExactScores:
    """The scores of one query.

    Args:
        layout: The layout of the collection.
        query: One text.
        limits: The limits of the collection.
        search: Runs searches.
        read: Returns one named vector of the points that are stored, by point.
    """

    def __init__(
        self, layout: Layout, query: M3Embeddings, limits: Limits, search: Search, read: Read
    ) -> None:
        self._layout = layout
        self._query = query
        self._limits = limits
        self._search = search
        self._read = read

    def vector(self, component: Component) -> Vector | None:
        """Return the query's vector of one component; None for an empty sparse vector, which scores 0."""
        if component == "dense":
            dense: Float32 = self._query.dense[0]
            return dense
        if component == "sparse":
            row = sparse_row(self._query.sparse, 0)
            return row if len(row[0]) else None
        return self._query.multivectors[0]

    async def of(self, wanted: Mapping[Component, Sequence[str]]) -> dict[Component, dict[str, float]]:
        """Return scores by component and point; a point that is gone or shares no token has no score.

        This takes one request, and one more for each multi-vector that a split document among the points has.
        """
        asks: list[Ask] = []
        owners: list[Component | None] = []  # None marks the search for split documents
        for component, points in wanted.items():
            for owner, ask in self._asks(component, points):
                owners.append(owner)
                asks.append(ask)
        scores: dict[Component, dict[str, float]] = {component: {} for component in wanted}
        split: list[str] = []
        for owner, hits in zip(owners, await self._search(asks) if asks else [], strict=True):
            if owner is None:
                split += [hit.point for hit in hits]
            else:
                of_one = scores[owner]
                for hit in hits:
                    of_one[hit.point] = of_one.get(hit.point, 0.0) + hit.score
        if "dense" in wanted and not self._limits.exact:
            silent = [point for point in wanted["dense"] if point not in scores["dense"]]
            scores["dense"] |= await self._of_unseen(silent)
        if "multivector" in wanted:
            rows = len(self._rows())
            scores["multivector"] = {point: total / rows for point, total in scores["multivector"].items()}
            if split:
                scores["multivector"] |= await self._of_split(split)
        return scores

    def _asks(self, component: Component, points: Sequence[str]) -> Iterator[tuple[Component | None, Ask]]:
        vector = self.vector(component)
        if vector is None:
            return
        for some in by_count(points, self._limits.at_once(_IDS_AT_ONCE)):
            if component != "multivector":
                yield component, self._ask(component, vector, some)
                continue
            # The server sums over the rows of the query, so a query beyond its limit can be sent in parts.
            rows = self._rows()
            first, *others = self._layout.multivectors
            for start in range(0, len(rows), self._layout.rows_per_vector):
                yield component, self._ask(first, rows[start : start + self._layout.rows_per_vector], some)
            if others:
                # Only points with a second vector are returned; most have none.
                yield None, self._ask(others[0], rows[:1], some)

    async def _of_unseen(self, points: Sequence[str]) -> dict[str, float]:
        """Return dense scores, from their vectors, of points that a search among them did not return.

        If no exact search is allowed and ``full_scan_threshold`` is low, the server uses its graph even for
        given points and finds only some of them. The other components have no graph.
        """
        dense = self.vector("dense")
        assert isinstance(dense, np.ndarray)
        return {
            point: float(vector @ dense)
            for point, vector in (await self._read(points, "dense") if points else {}).items()
            if isinstance(vector, np.ndarray)
        }

    async def _of_split(self, points: Sequence[str]) -> dict[str, float]:
        """Return scores of documents in several vectors: for each query row the best over all, then the mean.

        (The best whole score of one vector would be too low, because each row has its own best vector.)
        """
        rows = self._rows()
        best = {point: np.full(len(rows), -np.inf) for point in points}
        left: Sequence[str] = points
        for name in self._layout.multivectors:
            having: list[str] = []
            for some in by_count(left, self._limits.at_once(_IDS_AT_ONCE)):
                answers = await self._search(
                    [self._ask(name, rows[i : i + 1], some) for i in range(len(rows))]
                )
                for i, hits in enumerate(answers):
                    for hit in hits:
                        best[hit.point][i] = max(best[hit.point][i], hit.score)
                having += [hit.point for hit in answers[0]]
            left = having
            if not left:
                break
        means = {point: float(row.mean()) for point, row in best.items()}
        return {point: mean for point, mean in means.items() if np.isfinite(mean)}

    def _ask(self, using: str, vector: Vector, points: Sequence[str]) -> Ask:
        exact = self._limits.exact
        return Ask(using, vector, len(points), ids=points, exact=exact, staged=not exact)

    def _rows(self) -> Float32:
        rows = self.vector("multivector")
        assert isinstance(rows, np.ndarray)
        return rows


async def pages(
    connection: Connection,
    collection: str,
    limits: Limits,
    *,
    filter: models.Filter | None = None,
    with_id: bool,
) -> AsyncGenerator[list[models.Record], None]:
    """Yield every point once, without vectors; with ``with_id`` also the caller's own id."""
    client = connection.client
    offset: Any = None
    while True:
        call = functools.partial(
            client.scroll,
            collection,
            scroll_filter=filter,
            limit=min(_PAGE, limits.query or _PAGE),
            offset=offset,
            with_payload=[ID] if with_id else False,
            with_vectors=False,
        )
        records, offset = await connection.call("scan", call)
        yield records
        if offset is None:
            return
