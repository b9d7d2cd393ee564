"""The requests that carry vectors, and their REST form: searches, points to write, points to read.

``Wire`` has two forms, REST here and gRPC in ``server_grpc``; an adapter cannot tell them apart. The REST form works
on any ``AsyncQdrantClient``, so also on the client's local mode, which is how the tests run it without a server.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from qdrant_client import AsyncQdrantClient, models

from m3_connectors.backends.qdrant.layout import Vector, floats
from m3_connectors.backends.qdrant.payload import ID
from m3_connectors.backends.qdrant.server_errors import BACKEND
from m3_connectors.backends.qdrant.server_points import Point
from m3_connectors.embeddings import Float32
from m3_connectors.errors import TimedOut


@dataclasses.dataclass(frozen=True)
class Ask:
    """One search by one named vector, always by the vectors as stored.

    The server's operator may have quantised them beside, and most kinds of quantisation answer with scores that are
    off by 1e-3 to 1e-1 unless the request says to ignore them; so each request does.

    Attributes:
        using: Name of the vector.
        vector: The query: ``[d]``, ``[rows, d]`` or a sparse row.
        limit: Most answers.
        filter: Only points that pass.
        ids: Only these points (by ``point_id``).
        exact: Compare with every point, and (with several shards) take the full limit from each of them.
        hnsw_ef: Width of the approximate search; the server's own choice if None.
        staged: Rank the points of ``ids`` as a second stage, which a server that forbids exact search allows.
        with_id: Answer with the caller's own id.
    """

    using: str
    vector: Vector
    limit: int
    filter: models.Filter | None = None
    ids: Sequence[str] | None = None
    exact: bool = True
    hnsw_ef: int | None = None
    staged: bool = False
    with_id: bool = False

    @property
    def bytes(self) -> int:
        """About its size over gRPC."""
        return 4 * floats(self.vector) + 42 * len(self.ids or ()) + 64


@dataclasses.dataclass(frozen=True)
class Found:
    """One answer: the point, its score, and the caller's id if it was asked for."""

    point: str
    score: float
    id: str | None


@dataclasses.dataclass(frozen=True)
class Record:
    """One stored point; ``vectors`` is empty unless asked for."""

    point: str
    payload: Mapping[str, Any]
    vectors: Mapping[str, Vector]


class Wire(Protocol):
    """What both protocols do; raises the clients' own errors."""

    name: str
    """``"gRPC"`` or ``"REST"``."""

    bytes_per_float: int
    """Of a float32 in a message, at most."""

    message_bytes: int
    """What one message may hold."""

    largest_bytes: int | None
    """Largest single point; None if there is no limit."""

    def size(self, point: Point) -> int:
        """At most so many bytes a point takes in a message."""

    async def upsert(self, points: Sequence[Point]) -> None:
        """Write points as wholes; readers see them when it returns."""

    async def search(self, asks: Sequence[Ask]) -> list[list[Found]]:
        """The answers of each search, in one request."""

    async def retrieve(
        self, points: Sequence[str], *, payload: bool, vectors: bool | Sequence[str]
    ) -> list[Record]:
        """The points that are there, in any order, with all their vectors, none, or those of some names."""

    async def close(self) -> None:
        """Give the connection back."""


class RestWire:
    """Over HTTP as JSON."""

    name = "REST"
    bytes_per_float = 21  # measured 19.7 for float32 as JSON numbers
    message_bytes = 24 * 2**20
    largest_bytes: int | None = 32 * 2**20  # the server's limit of a request, ``max_request_size_mb``

    def __init__(self, client: AsyncQdrantClient, collection: str) -> None:
        self._client = client
        self._collection = collection

    def size(self, point: Point) -> int:
        return point.text_bytes + sum(
            floats(vector) * (_SHORT_BYTES if _is_short(vector, point) else self.bytes_per_float)
            for vector in point.vectors.values()
        )

    async def upsert(self, points: Sequence[Point]) -> None:
        structs = [
            models.PointStruct(
                id=point.id,
                vector={name: _as_model(_shortened(vector, point)) for name, vector in point.vectors.items()},
                payload=point.payload,
            )
            for point in points
        ]
        result = await self._client.upsert(self._collection, structs, wait=True)
        check_completed(result.status == models.UpdateStatus.COMPLETED, "upsert")

    async def search(self, asks: Sequence[Ask]) -> list[list[Found]]:
        requests = [_request(ask) for ask in asks]
        answers = await self._client.query_batch_points(self._collection, requests)
        return [
            [Found(str(hit.id), hit.score, (hit.payload or {}).get(ID)) for hit in answer.points]
            for answer in answers
        ]

    async def retrieve(
        self, points: Sequence[str], *, payload: bool, vectors: bool | Sequence[str]
    ) -> list[Record]:
        named = vectors if isinstance(vectors, bool) else list(vectors)
        records = await self._client.retrieve(
            self._collection, list(points), with_payload=payload, with_vectors=named
        )
        return [Record(str(record.id), record.payload or {}, _vectors(record.vector)) for record in records]

    async def close(self) -> None:
        """The client is the connection's, which closes it."""


def check_completed(completed: bool, operation: str) -> None:
    """Raise TimedOut unless a write was applied, not only noted."""
    if not completed:
        message = (
            "the write is noted but not applied yet.\n  Repeat the call; it changes nothing that is right."
        )
        raise TimedOut(message, backend=BACKEND, operation=operation)


async def applied(operation: str, call: Callable[[], Awaitable[models.UpdateResult]]) -> None:
    """One try of a write through the client; see ``check_completed``."""
    check_completed((await call()).status == models.UpdateStatus.COMPLETED, operation)


def _request(ask: Ask) -> models.QueryRequest:
    filter = ask.filter
    if ask.ids is not None:
        filter = models.Filter(must=[models.HasIdCondition(has_id=list(ask.ids))])
    params = models.SearchParams(
        exact=ask.exact,
        hnsw_ef=ask.hnsw_ef,
        quantization=models.QuantizationSearchParams(ignore=True),
    )
    return models.QueryRequest(
        prefetch=models.Prefetch(filter=filter, limit=ask.limit) if ask.staged else None,
        query=models.NearestQuery(nearest=_as_model(ask.vector)),
        using=ask.using,
        filter=None if ask.staged else filter,
        params=params,
        limit=ask.limit,
        with_payload=[ID] if ask.with_id else False,
    )


_SHORT_BYTES = 12
"""Of a number with five digits in JSON: ``-0.00012345,``."""


def _is_short(vector: Vector, point: Point) -> bool:
    return point.float16 and isinstance(vector, np.ndarray) and vector.ndim == 2


def _shortened(vector: Vector, point: Point) -> Vector:
    """Rows that are kept in float16, in five significant digits: float16 tells no more apart, and JSON halves."""
    if not _is_short(vector, point):
        return vector
    assert isinstance(vector, np.ndarray)
    values = vector.astype(np.float16).astype(np.float64)
    magnitude = np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros_like(values)))
    scale = 10.0 ** np.clip(4 - magnitude, 0, 22)
    rounded: Float32 = np.round(values * scale) / scale
    return rounded


def _as_model(vector: Vector) -> Any:
    if isinstance(vector, np.ndarray):
        return vector.tolist()
    return models.SparseVector(indices=vector[0].tolist(), values=vector[1].tolist())


def _vectors(read: Any) -> dict[str, Vector]:
    if not isinstance(read, dict):
        return {}
    return {name: _as_vector(vector) for name, vector in read.items()}


def _as_vector(read: Any) -> Vector:
    if isinstance(read, models.SparseVector):
        return np.array(read.indices, dtype=np.int64), np.array(read.values, dtype=np.float32)
    array: Float32 = np.array(read, dtype=np.float32)
    return array
