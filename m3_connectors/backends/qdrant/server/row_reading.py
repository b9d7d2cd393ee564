"""The scores of rows that are bytes: read from the server in few requests, and scored in this process."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.to_thread
import numpy as np

from m3_connectors.backends.chunks import by_count
from m3_connectors.backends.qdrant.carried import carried
from m3_connectors.backends.qdrant.layout import Layout
from m3_connectors.backends.qdrant.payload import ID
from m3_connectors.backends.qdrant.server.errors import BACKEND
from m3_connectors.backends.qdrant.server.wire import Record
from m3_connectors.backends.together import together
from m3_connectors.embeddings import Float32
from m3_connectors.errors import Corrupt

_ANSWER_BYTES = 64 * 2**20
"""About the most that one response holds."""

_ANSWERS_AT_ONCE = 2
_MOST_AT_ONCE = 1000

_UNKNOWN = 16
"""Documents in the first request, which shows how large they are."""

Records = Callable[[Sequence[str]], Awaitable[Sequence[Record]]]


class RowReader:
    """Reads and scores the rows of one collection.

    Args:
        layout: The layout of the collection, whose rows are bytes.
        records: Returns the points that are stored, with their ids and multi-vectors.
    """

    def __init__(self, layout: Layout, records: Records) -> None:
        self._layout = layout
        self._records = records
        self._point_bytes = 0
        """The average size of a document's rows in the last response; 0 before the first one."""
        # One product at a time: each uses all cores.
        self._scoring = anyio.CapacityLimiter(1)

    async def scores(self, query: Float32, points: Sequence[str]) -> dict[str, float]:
        """Return s_mul of the points that are stored; the rows of one response are scored while others are read.

        Args:
            query: float32 ``[N, d]``.
            points: Distinct points.
        """
        first = points if self._point_bytes else points[:_UNKNOWN]
        found = await self._scores_of(query, first)
        rest = points[len(first) :]
        return found | await self._scores_of(query, rest) if rest else found

    async def _scores_of(self, query: Float32, points: Sequence[str]) -> dict[str, float]:
        at_once = min(_MOST_AT_ONCE, max(1, _ANSWER_BYTES // max(1, self._point_bytes)))
        calls = [functools.partial(self._answer, query, some) for some in by_count(points, at_once)]
        return {
            point: score
            for answer in await together(calls, _ANSWERS_AT_ONCE)
            for point, score in answer.items()
        }

    async def _answer(self, query: Float32, points: Sequence[str]) -> dict[str, float]:
        records = await self._records(points)
        if not records:
            return {}

        def scores() -> Float32:
            encoded = [encoded_rows(self._layout, record) for record in records]
            self._point_bytes = sum(map(len, encoded)) * 4 // (3 * len(encoded)) + 1
            return self._layout.schema.precision.scores(query, encoded)

        scored = await anyio.to_thread.run_sync(scores, limiter=self._scoring)
        return dict(zip([record.point for record in records], np.asarray(scored).tolist(), strict=True))


def encoded_rows(layout: Layout, record: Record) -> bytes:
    """Return the encoded rows of a point that was read with its id and its multi-vectors.

    Raises:
        Corrupt: It has none, or they are not rows of this collection.
    """
    try:
        parts = [record.vectors[name] for name in layout.multivectors if name in record.vectors]
        if not parts:
            raise ValueError("there are none")
        return b"".join(carried(part, layout.row_bytes) for part in parts)
    except ValueError as error:
        raise Corrupt(
            f"the multi-vector rows of document {record.payload.get(ID)!r} cannot be read: {error}.\n"
            "  Index the document again.",
            backend=BACKEND,
            operation="read",
        ) from error
