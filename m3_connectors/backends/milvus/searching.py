"""Search one collection: the store's lists, made exact where it rounds, split where they are too large."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m3_connectors.backends.chunks import by_count
from m3_connectors.backends.milvus.connection import Connection
from m3_connectors.backends.milvus.errors import TooLarge
from m3_connectors.backends.milvus.filters import EVERYTHING
from m3_connectors.backends.milvus.naming import id_of, keys_in
from m3_connectors.backends.milvus.reading import KEYS_AT_ONCE, Reader
from m3_connectors.backends.milvus.rows import embeddings_of, sparse_of
from m3_connectors.backends.rounding import Rounding
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.methods import rank
from m3_connectors.scoring import score

_MOST_RESULTS = 16_384
"""The maximum number of results of one search or query, on servers."""

_MOST_EF = 32_768

_MORE = 16
"""The minimum number of documents requested beyond the limit, where the server ranks by quantised vectors."""

_ROUNDING = Rounding(factor=1 + 2**-9, per_weight=2**-24)
"""The server rounds a document's weights to 16-bit floats (relative 2**-11, and 2**-25 near zero); the rest covers
the query's own rounding and sums in float32."""

Hit = dict[str, Any]


class Searcher:
    """Searches the collection of a reader."""

    def __init__(self, connection: Connection, reader: Reader) -> None:
        self._connection = connection
        self._reader = reader
        self._layout = reader.layout

    @property
    def most_results(self) -> float:
        """The maximum length of the list of one search."""
        return math.inf if self._connection.is_lite else _MOST_RESULTS

    async def hits(
        self,
        component: Component,
        query: M3Embeddings,
        limit: int,
        expression: str,
        fields: Sequence[str] = (),
        width: int = 0,
    ) -> list[Hit]:
        """Return the best rows that an expression finds, best first, with exact scores; dense is approximate.

        Args:
            component: dense or sparse.
            query: One text.
            limit: The maximum number of hits.
            expression: Only rows that it finds are returned; all for an empty one.
            fields: Fields of the hits in addition to ``key`` and ``distance``, their score.
            width: An approximate index searches as far as for this number of hits, if it is larger.
        """
        if component == "sparse" and self._connection.rounds_sparse:
            return await self._with(fields, await self._exact_sparse(query, limit, expression))
        if component == "sparse" or self._layout.exact_dense:
            return await self._bringing(fields, component, query, limit, expression, width)
        if self._layout.rounds_dense:
            hits = await self._rescored_dense(query, limit, expression, fields, width)
        else:
            hits = await self._bringing(fields, component, query, limit, expression, width)
        if len(hits) < limit and len(hits) < await self._reader.count(expression):
            # A filter can disconnect an approximate index, or the index searches few of its lists.
            scanned = await self.scan_for("dense", query, limit, expression)
            hits = [{"key": key, "distance": value} for key, value in scanned.items()]
        return await self._with(fields, hits)

    async def _bringing(
        self,
        fields: Sequence[str],
        component: Component,
        query: M3Embeddings,
        limit: int,
        expression: str,
        width: int,
    ) -> list[Hit]:
        """Run one search whose hits include these fields, with the server's own scores."""
        try:
            return await self._asked(component, query, limit, expression, fields, width)
        except TooLarge:
            if not fields:
                raise
            # The fields are read by key instead, in as many responses as it takes.
            return await self._with(fields, await self._asked(component, query, limit, expression, (), width))

    async def _rescored_dense(
        self, query: M3Embeddings, limit: int, expression: str, fields: Sequence[str], width: int
    ) -> list[Hit]:
        """Return the best by exact scores among more hits than requested, found by quantised vectors."""
        asked = int(min(2 * limit + _MORE, self.most_results))
        wanted = list(dict.fromkeys(("dense", *fields)))
        hits = await self._bringing(wanted, "dense", query, asked, expression, width)
        return _best(hits, (await self._reader.scored(["dense"], query, _by_key(hits)))["dense"], limit)

    async def _with(self, fields: Sequence[str], hits: list[Hit]) -> list[Hit]:
        """Return hits with these fields, without those that are no longer stored."""
        missing = [name for name in fields if any(name not in hit for hit in hits)]
        if not missing:
            return hits
        rows = await self._reader.rows("search", [hit["key"] for hit in hits], missing)
        return [hit | dict(rows[hit["key"]]) for hit in hits if hit["key"] in rows]

    async def _exact_sparse(self, query: M3Embeddings, limit: int, expression: str) -> list[Hit]:
        """Return the true list by s_lex from a server with rounded scores; proven, or requested again."""
        asked = _ROUNDING.length(limit, self.most_results)
        while True:
            hits = await self._asked("sparse", query, asked, expression, ["sparse"], 0)
            scores = (await self._reader.scored(["sparse"], query, _by_key(hits)))["sparse"]
            if len(hits) < asked or _ROUNDING.proves(query, hits[-1]["distance"], scores, limit):
                return _best(hits, scores, limit)
            if asked == self.most_results:
                break
            asked = int(min(4 * asked, self.most_results))
        scanned = await self.scan_for("sparse", query, limit, expression)
        return [{"key": key, "distance": value} for key, value in scanned.items()]

    async def _asked(
        self,
        component: Component,
        query: M3Embeddings,
        limit: int,
        expression: str,
        fields: Sequence[str],
        width: int,
    ) -> list[Hit]:
        """Run one search, with the server's own scores."""
        if component == "sparse":
            data: Any = sparse_of(query.sparse, 0)
            if not data:
                return []
        else:
            data = query.dense[0]
        params: dict[str, Any] = {"metric_type": "IP"}
        if component == "dense" and self._layout.dense_index == "HNSW":
            params["params"] = {"ef": min(max(2 * limit, 2 * width, 128), _MOST_EF)}
        wanted = ["key", *fields]
        found: list[Hit] = await self._connection.call(
            "search",
            "search",
            self._layout.name,
            data=[data],
            anns_field=component,
            filter=expression,
            limit=limit,
            search_params=params,
            output_fields=wanted,
            consistency_level="Strong",
            then=lambda answer: [
                {"distance": hit["distance"], **{name: hit[name] for name in wanted}} for hit in answer[0]
            ],
        )
        return found

    async def search(
        self, component: Component, query: M3Embeddings, limit: int, expression: str
    ) -> dict[str, float]:
        """Return the scores of ``hits`` by key."""
        hits = await self.hits(component, query, limit, expression)
        return {hit["key"]: hit["distance"] for hit in hits}

    async def scan_for(
        self, component: Component, query: M3Embeddings, limit: int, expression: str
    ) -> dict[str, float]:
        """Return the same from every stored vector, read page by page: always exact, but slow."""
        found: dict[str, float] = {}
        async for page in self._reader.pages("search", expression or EVERYTHING, ["key", component]):
            scores = score(component, query, embeddings_of(self._layout, page, [component]))
            found |= {
                row["key"]: float(value)
                for row, value in zip(page, scores, strict=True)
                if component == "dense" or value > 0
            }
            keys = list(found)
            best = rank([id_of(key) for key in keys], list(found.values()), limit)
            found = {keys[i]: found[keys[i]] for i in best}
        return found

    async def searched_scores(
        self, component: Component, query: M3Embeddings, keys: Sequence[str]
    ) -> Mapping[str, float | np.float32]:
        """Return one component's scores by key, of the stored keys, with a search among them."""
        if self._connection.rounds_sparse if component == "sparse" else self._layout.rounds_dense:
            return (await self._reader.fetched_scores([component], query, keys))[component]
        found: dict[str, float | np.float32] = {}
        for some in by_count(keys, KEYS_AT_ONCE):
            found |= await self.search(component, query, len(some), keys_in(some))
        left = [key for key in keys if key not in found]
        if left and component == "dense":
            # An approximate index may miss some keys even among so few.
            found |= (await self._reader.fetched_scores(["dense"], query, left))["dense"]
        elif left:
            # These share no token, or are not stored.
            found |= dict.fromkeys(await self._reader.rows("score", left, []), 0.0)
        return found


def _by_key(hits: Sequence[Hit]) -> dict[str, Hit]:
    return {hit["key"]: hit for hit in hits}


def _best(hits: Sequence[Hit], scores: Float32, limit: int) -> list[Hit]:
    best = rank([id_of(hit["key"]) for hit in hits], scores, limit)
    return [hits[i] | {"distance": float(scores[i])} for i in best]
