"""The scores of rows that are bytes: read from the server in few requests, and scored in this process."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
import numpy as np

from m3_connectors.backends.blobs import multivector_bytes
from m3_connectors.backends.chunks import by_count
from m3_connectors.backends.qdrant.carried import carried
from m3_connectors.backends.qdrant.layout import Layout
from m3_connectors.backends.qdrant.payload import ID
from m3_connectors.backends.qdrant.server.errors import BACKEND
from m3_connectors.backends.qdrant.server.wire import Record
from m3_connectors.backends.together import together
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import Corrupt
from m3_connectors.scoring import dense_scores, sparse_scores

_ANSWER_BYTES = 64 * 2**20
"""About the most that one response holds."""

_ANSWERS_AT_ONCE = 2
_MOST_AT_ONCE = 1000

_UNKNOWN = 16
"""Documents in the first request, which shows how large they are."""

Records = Callable[[Sequence[str], Sequence[str]], Awaitable[Sequence[Record]]]

Scores = dict[Component, dict[str, float]]
"""Scores by component and point."""


class RowReader:
    """Reads and scores the rows of one collection.

    Args:
        layout: The layout of the collection, whose rows are bytes.
        records: Returns the points that are stored, with their ids and the vectors of these names.
    """

    def __init__(self, layout: Layout, records: Records) -> None:
        self._layout = layout
        self._records = records
        self._point_bytes = 0
        """The average size of a document's rows in the last response; 0 before the first one."""
        # One product at a time: each uses all cores.
        self._scoring = anyio.CapacityLimiter(1)

    async def scores(
        self, query: M3Embeddings, points: Sequence[str], components: Sequence[Component]
    ) -> Scores:
        """Return all scores of the points that are stored; one response is scored while the next is read.

        Args:
            query: One text.
            points: Distinct points.
            components: ``multivector``, and others whose vectors are so much smaller that they are read in the same
                requests.
        """
        known: Scores = {name: {} for name in components}
        first = points if self._point_bytes else points[:_UNKNOWN]
        for some in (first, points[len(first) :]):
            at_once = min(_MOST_AT_ONCE, max(1, _ANSWER_BYTES // max(1, self._point_bytes)))
            calls = [
                functools.partial(self._answer, query, run, components) for run in by_count(some, at_once)
            ]
            for scores in await together(calls, _ANSWERS_AT_ONCE):
                for name in components:
                    known[name] |= scores[name]
        return known

    async def _answer(
        self, query: M3Embeddings, points: Sequence[str], components: Sequence[Component]
    ) -> Scores:
        small = [name for name in components if name != "multivector"]
        records = await self._records(points, [*self._layout.multivectors, *small])
        found = [record.point for record in records]

        def score(name: Component) -> Float32:
            if name == "multivector":
                encoded = [encoded_rows(self._layout, record) for record in records]
                # Four bytes carry three.
                self._point_bytes = sum(map(len, encoded)) * 4 // (3 * len(encoded)) + 1
                return self._layout.schema.precision.scores(query.multivectors[0], encoded)
            vectors: list[Any] = [record.vectors.get(name) for record in records]
            if name == "dense":
                return dense_scores(query.dense[0], np.array(vectors, dtype=np.float32))
            return sparse_scores(query.sparse, self._layout.sparse(vectors))

        def scores() -> Scores:
            if not records:
                return {name: {} for name in components}
            return {name: dict(zip(found, score(name).tolist(), strict=True)) for name in components}

        return await anyio.to_thread.run_sync(scores, limiter=self._scoring)


def encoded_rows(layout: Layout, record: Record) -> memoryview:
    """Return the encoded rows of a point that was read with its id and its multi-vectors.

    Raises:
        Corrupt: It has none, or they are not rows of this collection.
    """
    try:
        parts = [record.vectors[name] for name in layout.multivectors if name in record.vectors]
        if not parts:
            raise ValueError("there are none")
        blob = carried(np.concatenate(parts))
        return multivector_bytes([blob], layout.schema.precision, layout.schema.model.dimension)[0]
    except ValueError as error:
        raise Corrupt(
            f"the multi-vector rows of document {record.payload.get(ID)!r} cannot be read: {error}.\n"
            "  Index the document again.",
            backend=BACKEND,
            operation="read",
        ) from error
