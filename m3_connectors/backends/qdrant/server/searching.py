"""The candidates of one component: the head of a list, with the requested length if that many points pass."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import numpy as np

from m3_connectors.backends.qdrant.payload import ID
from m3_connectors.backends.qdrant.server.collection import Limits
from m3_connectors.backends.qdrant.server.connection import Connection
from m3_connectors.backends.qdrant.server.errors import not_ours
from m3_connectors.backends.qdrant.server.filters import server_filter
from m3_connectors.backends.qdrant.server.reading import ExactScores, Search, pages
from m3_connectors.backends.qdrant.server.wire import Ask, Found
from m3_connectors.embeddings import Component, Float32
from m3_connectors.methods import rank
from m3_connectors.search import Lists


class Listing:
    """Candidate lists of an open collection.

    Args:
        connection: The connection to the server.
        collection: The name of the collection.
        limits: The limits of the collection.
        search: Runs searches.
    """

    def __init__(self, connection: Connection, collection: str, limits: Limits, search: Search) -> None:
        self._connection = connection
        self._collection = collection
        self._limits = limits
        self._search = search
        self._all = 0
        """The number of points when a list last held all of them; 0 if none did, or if there are more points
        now."""

    async def best(
        self,
        scores: ExactScores,
        component: Component,
        lists: Lists,
    ) -> tuple[list[str], Float32]:
        """Return the ids of one list with their scores, best first."""
        vector, limit, filter = scores.vector(component), lists.depths[component], lists.filter
        if vector is None:
            return [], np.empty(0, dtype=np.float32)
        # The whole list, even if only its head is requested now: equal scores may need the rest of it.
        self._limits.check_list(max(limit, lists.width))
        # A sparse search is exact anyway; with exact=True each of several shards returns its full list. For
        # few points a full scan costs less than a check whether the graph missed one of them.
        is_small = self._limits.exact and filter is None and 0 < self._all < limit
        thorough = lists.exact or component == "sparse" or is_small
        ask = Ask(
            component,
            vector,
            limit,
            filter=None if filter is None else server_filter(filter),
            exact=thorough and self._limits.exact,
            hnsw_ef=None
            if thorough
            else min(max(128, 2 * limit, 2 * lists.width), self._limits.hnsw_ef or 2**31),
            with_id=True,
        )
        hits: Sequence[Found]
        (hits,) = await self._search([ask])
        if not thorough and len(hits) < limit:
            # Few points pass, or the filter disconnects the graph and the server saw only one piece of it: it
            # may then return 1 of 159 points (measured).
            hits = await (self._compared(ask) if self._limits.exact else self._filled(scores, ask, hits))
            thorough = True
        if component == "dense" and filter is None and thorough:
            self._all = len(hits) if len(hits) < limit else 0
        ids = [self._document_id(hit) for hit in hits]
        found = np.array([hit.score for hit in hits], dtype=np.float32)
        order = rank(ids, found, limit)  # the server orders equal scores randomly
        return [ids[i] for i in order], found[order]

    async def _compared(self, ask: Ask) -> Sequence[Found]:
        (hits,) = await self._search([dataclasses.replace(ask, exact=True, hnsw_ef=None)])
        return hits

    async def _filled(self, scores: ExactScores, ask: Ask, hits: Sequence[Found]) -> Sequence[Found]:
        """Return the list, filled up with any other points that pass, because no exact search is allowed."""
        listed = {hit.point for hit in hits}
        others: dict[str, str | None] = {}
        found = pages(self._connection, self._collection, self._limits, filter=ask.filter, with_id=True)
        async with contextlib.aclosing(found) as listing:
            async for page in listing:
                others |= {
                    str(record.id): (record.payload or {}).get(ID)
                    for record in page
                    if str(record.id) not in listed
                }
                if len(listed) + len(others) >= ask.limit:
                    break
        more = (await scores.of({"dense": list(others)}))["dense"] if others else {}
        return [*hits, *(Found(point, score, others[point]) for point, score in more.items())]

    def _document_id(self, hit: Found) -> str:
        if hit.id is None:
            raise not_ours(hit.point, self._collection)
        return hit.id
