"""Candidate lists from the server; what it rounds or cuts off is proven correct or requested again."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from m3_connectors.backends.elasticsearch.connection import Connection
from m3_connectors.backends.elasticsearch.layout import BUCKETS, SPARSE_BLOB
from m3_connectors.backends.elasticsearch.reading import Reader, by_id, count, pages
from m3_connectors.backends.elasticsearch.rows import (
    MOST_HITS,
    Query,
    dense_scores,
    dense_search,
    in_buckets,
    sparse_query,
    sparse_search,
)
from m3_connectors.backends.rounding import Rounding
from m3_connectors.backends.together import together
from m3_connectors.embeddings import Float32, M3Embeddings
from m3_connectors.methods import rank

Hits = list[dict[str, Any]]

_SCANNED = 8_000
"""The number of documents in a part that is searched exactly: if at most ``MOST_HITS`` pass, no graph is
used."""

_TIED = 1000
"""The same where the cut separates equal s_dense, which are ordered by id; if all of those are equal too,
``MOST_HITS``."""

_ROUNDING = Rounding(factor=(1 + 1e-4) / (1 - 2**-8))
"""The server truncates a document's weights to 9 significant bits; the rest of the factor covers sums in float32."""

_PAGE = 1000
_PARTS_AT_ONCE = 4


async def dense_list(
    connection: Connection,
    alias: str,
    query: Float32,
    limit: int,
    filter: Query | None,
    exact: bool,
    fields: Sequence[str],
    *,
    width: int = 0,
    texts: bool = False,
) -> tuple[Hits, Float32]:
    """Return the best hits by s_dense with their scores, best first.

    The graph is searched at least as far as for ``width`` hits. The hits include the fields, and also the texts if
    one request was enough.
    """

    async def ask(limit: int, width: int) -> Hits:
        body = dense_search(query, min(limit, MOST_HITS), width, filter, fields, texts=texts)
        return await connection.search("search", alias, body)

    if not exact and limit <= MOST_HITS:
        width = min(max(2 * limit, width, 1000), MOST_HITS)
        asked = limit + 1
        hits = await ask(asked, width)
        for deeper in (limit + _TIED, MOST_HITS):
            # Hits that were not returned may equal the last one and have lower ids.
            if not asked == len(hits) < MOST_HITS or hits[-1]["_score"] != hits[limit - 1]["_score"]:
                break
            asked = min(deeper, MOST_HITS)
            hits = await ask(asked, width)
        # A filter can disconnect the graph; the search then returns fewer hits than there are.
        if len(hits) >= limit or len(hits) >= await count(connection, alias, filter):
            return _best(hits, dense_scores(hits), limit)
    return await _scan(connection, alias, query, limit, filter, fields)


async def _scan(
    connection: Connection,
    alias: str,
    query: Float32,
    limit: int,
    filter: Query | None,
    fields: Sequence[str],
) -> tuple[Hits, Float32]:
    """Return the true list, from parts of the collection that are small enough to be scanned."""
    parts = max(1, -(-await count(connection, alias, filter) // _SCANNED))
    bounds = [BUCKETS * i // parts for i in range(parts + 1)]

    async def part(start: int, stop: int) -> Hits:
        within = in_buckets(start, stop, filter)
        asked = min(limit + 1, MOST_HITS)
        hits = await connection.search("search", alias, dense_search(query, asked, MOST_HITS, within, fields))
        if len(hits) == asked < MOST_HITS and hits[-1]["_score"] == hits[limit - 1]["_score"]:
            # There are many equal scores at the cut; the order of their ids is known only when all are read.
            hits = await connection.search(
                "search", alias, dense_search(query, MOST_HITS, MOST_HITS, within, fields)
            )
        return hits

    calls = [functools.partial(part, start, stop) for start, stop in itertools.pairwise(bounds)]
    hits = [hit for found in await together(calls, _PARTS_AT_ONCE) for hit in found]
    return _best(hits, dense_scores(hits), limit)


async def sparse_list(
    reader: Reader,
    query: M3Embeddings,
    limit: int,
    filter: Query | None,
    fields: Sequence[str],
    *,
    texts: bool = False,
) -> tuple[Hits, Float32]:
    """Return the true list by s_lex, best first; the hits include the same as those of ``dense_list``."""
    if query.sparse.nnz == 0:
        return [], np.empty(0, dtype=np.float32)
    wanted = list(dict.fromkeys((SPARSE_BLOB, *fields)))
    asking = sparse_query(query, filter)
    where = reader.connection, reader.alias
    asked = _ROUNDING.length(limit, MOST_HITS)
    hits = await reader.connection.search(
        "search", reader.alias, sparse_search(asking, asked, wanted, texts=texts)
    )
    scores = (await reader.scored(["sparse"], query, by_id(hits)))["sparse"]
    if len(hits) == asked and not _ROUNDING.proves(query, hits[-1]["_score"], scores, limit):
        hits, scores = [], np.empty(0, dtype=np.float32)
        async for page in pages(*where, "search", asking, sort=["_score"], size=_PAGE, fields=wanted):
            hits += page
            scores = np.concatenate([scores, (await reader.scored(["sparse"], query, by_id(page)))["sparse"]])
            if _ROUNDING.proves(query, hits[-1]["_score"], scores, limit):
                break
    return _best(hits, scores, limit)


def _best(hits: Hits, scores: Float32, limit: int) -> tuple[Hits, Float32]:
    best = rank([hit["_id"] for hit in hits], scores, limit)
    return [hits[i] for i in best], scores[best]
