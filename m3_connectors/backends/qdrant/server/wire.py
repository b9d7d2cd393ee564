"""The requests that carry vectors, and their REST form: searches, points to write, points to read.

``Wire`` has two implementations, REST here and gRPC in ``grpc``, with the same behaviour. The REST
form works with any ``AsyncQdrantClient``, also with the client's local mode, which lets tests run it without
a server.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from qdrant_client import AsyncQdrantClient, models

from m3_connectors.backends.qdrant.layout import Vector, floats
from m3_connectors.backends.qdrant.payload import ID
from m3_connectors.backends.qdrant.server.errors import BACKEND
from m3_connectors.backends.qdrant.server.rows import Point
from m3_connectors.embeddings import Float32
from m3_connectors.errors import TimedOut


@dataclasses.dataclass(frozen=True)
class Ask:
    """One search by one named vector, always with the vectors as stored.

    An operator may have quantised them in addition, and most kinds of quantisation return scores with errors
    of 1e-3 to 1e-1 unless the request disables it; so each request does.

    Attributes:
        using: The name of the vector.
        vector: The query: ``[d]``, ``[rows, d]`` or a sparse row.
        limit: The maximum number of results.
        filter: Only points that pass it are returned.
        ids: Only these points (by ``point_id``) are returned.
        exact: Scan every point, and (with several shards) take the full limit from each of them.
        hnsw_ef: The width of the approximate search; the server chooses if it is None.
        staged: Rank the points of ``ids`` in a second stage, which a server that forbids exact search allows.
        with_id: Also return the caller's own id.
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
        """The approximate size over gRPC."""
        return 4 * floats(self.vector) + 42 * len(self.ids or ()) + 64


@dataclasses.dataclass(frozen=True)
class Found:
    """One result: the point, its score, and the caller's id if it was requested."""

    point: str
    score: float
    id: str | None


@dataclasses.dataclass(frozen=True)
class Record:
    """One stored point; ``vectors`` is empty unless requested."""

    point: str
    payload: Mapping[str, Any]
    vectors: Mapping[str, Vector]


class Wire(Protocol):
    """What both protocols do; methods raise the clients' own errors."""

    name: str
    """``"gRPC"`` or ``"REST"``."""

    bytes_per_float: int
    """The maximum size of a float32 in a message."""

    message_bytes: int
    """The maximum size of one message."""

    largest_bytes: int | None
    """The maximum size of a single point; None if there is no limit."""

    def size(self, point: Point) -> int:
        """Return an upper bound of the size of a point in a message."""

    async def upsert(self, points: Sequence[Point]) -> None:
        """Write whole points; readers see them when it returns."""

    async def search(self, asks: Sequence[Ask]) -> list[list[Found]]:
        """Return the results of all searches, with one request."""

    async def retrieve(
        self, points: Sequence[str], *, payload: bool | Sequence[str], vectors: bool | Sequence[str]
    ) -> list[Record]:
        """Return the stored points, in any order, with all their payload and vectors, none, or some by name."""

    async def close(self) -> None:
        """Close the connection."""


class RestWire:
    """The REST form: JSON over HTTP."""

    name = "REST"
    bytes_per_float = 21  # measured 19.7 for float32 as JSON numbers
    message_bytes = 24 * 2**20
    largest_bytes: int | None = 32 * 2**20  # the server's limit for a request, ``max_request_size_mb``

    def __init__(self, client: AsyncQdrantClient, collection: str) -> None:
        self._client = client
        self._collection = collection

    def size(self, point: Point) -> int:
        def size(vector: Vector) -> int:
            # A number with five digits in JSON has 12 characters: ``-0.00012345,``.
            digits = _digits(vector, point)
            return floats(vector) * (self.bytes_per_float if digits is None else digits + 7)

        return point.text_bytes + sum(map(size, point.vectors.values()))

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
        self, points: Sequence[str], *, payload: bool | Sequence[str], vectors: bool | Sequence[str]
    ) -> list[Record]:
        records = await self._client.retrieve(
            self._collection,
            list(points),
            with_payload=payload if isinstance(payload, bool) else list(payload),
            with_vectors=vectors if isinstance(vectors, bool) else list(vectors),
        )
        return [Record(str(record.id), record.payload or {}, _vectors(record.vector)) for record in records]

    async def close(self) -> None:
        """Do nothing: the connection owns the client and closes it."""


def check_completed(completed: bool, operation: str) -> None:
    """Raise TimedOut unless a write was applied, and not only acknowledged."""
    if not completed:
        message = (
            "the server acknowledged the write but has not applied it yet.\n"
            "  Repeat the call; repeating a write is safe."
        )
        raise TimedOut(message, backend=BACKEND, operation=operation)


async def applied(operation: str, call: Callable[[], Awaitable[models.UpdateResult]]) -> None:
    """Make one try of a write through the client; see ``check_completed``."""
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


def _digits(vector: Vector, point: Point) -> int | None:
    """Return how many significant digits of a vector are sent, or None for all: rows may need fewer."""
    rows = isinstance(vector, np.ndarray) and vector.ndim == 2
    return point.precision.digits if rows else None


def _shortened(vector: Vector, point: Point) -> Vector:
    """Return rows with the significant digits that their precision has, which halves the JSON of float16."""
    digits = _digits(vector, point)
    if digits is None:
        return vector
    assert isinstance(vector, np.ndarray)
    values = point.precision.round(vector).astype(np.float64)
    magnitude = np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros_like(values)))
    scale = 10.0 ** np.clip(digits - 1 - magnitude, 0, 22)
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
