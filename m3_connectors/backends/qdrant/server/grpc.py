"""The requests that carry vectors, over gRPC: vectors are sent as raw float32, four bytes for a number.

Messages are assembled from bytes (1.1 ms for 512 x 1,024 floats; through Python lists 72 ms). Calls use the
futures of the blocking stub, which a gRPC thread completes. Unlike ``grpc.aio``, they work with several event
loops in one process, and waiting for one does not block a loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from qdrant_client import grpc as pb
from qdrant_client.conversions.conversion import RestToGrpc, grpc_to_payload, payload_to_grpc

from m3_connectors.backends.qdrant.layout import Vector, floats
from m3_connectors.backends.qdrant.payload import ID
from m3_connectors.backends.qdrant.server.rows import Point
from m3_connectors.backends.qdrant.server.wire import Ask, Found, Record, check_completed
from m3_connectors.embeddings import Float32

_ID_ONLY = pb.WithPayloadSelector(include=pb.PayloadIncludeSelector(fields=[ID]))
_NOTHING = pb.WithPayloadSelector(enable=False)

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # After a restart of the server our own next try connects again, instead of waiting gRPC's own two
    # minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)
"""The options of a channel."""


class GrpcWire:
    """The gRPC form; it owns the channel."""

    name = "gRPC"
    bytes_per_float = 4
    message_bytes = 12 * 2**20  # the server has no limit; larger messages are not faster
    largest_bytes: int | None = None

    def __init__(
        self, channel: grpc.Channel, collection: str, *, api_key: str | None, timeout_seconds: float
    ) -> None:
        self._channel = channel
        self._points = pb.PointsStub(channel)  # type: ignore[no-untyped-call]
        self._collection = collection
        self._metadata = (("api-key", api_key),) if api_key else ()
        self._timeout_seconds = timeout_seconds

    def size(self, point: Point) -> int:
        return point.text_bytes + self.bytes_per_float * sum(map(floats, point.vectors.values()))

    async def upsert(self, points: Sequence[Point]) -> None:
        request = pb.UpsertPoints(
            collection_name=self._collection, wait=True, points=[point_message(point) for point in points]
        )
        answer = await self._call(self._points.Upsert, request)
        check_completed(answer.result.status == pb.UpdateStatus.Completed, "upsert")

    async def search(self, asks: Sequence[Ask]) -> list[list[Found]]:
        request = pb.QueryBatchPoints(
            collection_name=self._collection,
            query_points=[query_message(self._collection, ask) for ask in asks],
        )
        answer = await self._call(self._points.QueryBatch, request)
        return [[_found(hit) for hit in batch.result] for batch in answer.result]

    async def retrieve(
        self, points: Sequence[str], *, payload: bool | Sequence[str], vectors: bool | Sequence[str]
    ) -> list[Record]:
        if isinstance(vectors, bool):
            wanted = pb.WithVectorsSelector(enable=vectors)
        else:
            wanted = pb.WithVectorsSelector(include=pb.VectorsSelector(names=vectors))
        if isinstance(payload, bool):
            shown = pb.WithPayloadSelector(enable=payload)
        else:
            shown = pb.WithPayloadSelector(include=pb.PayloadIncludeSelector(fields=payload))
        request = pb.GetPoints(
            collection_name=self._collection,
            ids=[pb.PointId(uuid=point) for point in points],
            with_payload=shown,
            with_vectors=wanted,
        )
        answer = await self._call(self._points.Get, request)
        return [
            Record(
                record.id.uuid,
                grpc_to_payload(record.payload),
                {name: _read(vector) for name, vector in record.vectors.vectors.vectors.items()},
            )
            for record in answer.result
        ]

    async def close(self) -> None:
        self._channel.close()

    async def _call(self, method: Any, request: Any) -> Any:
        return await unary(method, request, timeout_seconds=self._timeout_seconds, metadata=self._metadata)


async def unary(
    method: Any, request: Any, *, timeout_seconds: float, metadata: Sequence[tuple[str, str]] = ()
) -> Any:
    """Return the response of one call; cancelling the coroutine cancels the call.

    Raises:
        grpc.RpcError: The call failed.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def deliver(call: grpc.Future) -> None:
        if not answer.done():
            error = call.exception()
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(call.result())

    def completed(call: grpc.Future) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing waits for the result
            loop.call_soon_threadsafe(deliver, call)

    call = method.future(request, timeout=timeout_seconds, metadata=metadata)
    call.add_done_callback(completed)
    try:
        return await answer
    except asyncio.CancelledError:
        call.cancel()
        raise


def point_message(point: Point) -> pb.PointStruct:
    """Return the message of a point, with its vectors as raw bytes."""
    message = pb.PointStruct(id=pb.PointId(uuid=point.id), payload=payload_to_grpc(point.payload))
    for name, vector in point.vectors.items():
        _fill(message.vectors.vectors.vectors[name], vector)
    return message


def query_message(collection: str, ask: Ask) -> pb.QueryPoints:
    """Return the message of one search of a batch."""
    message = pb.QueryPoints(
        collection_name=collection,
        using=ask.using,
        limit=ask.limit,
        with_payload=_ID_ONLY if ask.with_id else _NOTHING,
    )
    _fill(message.query.nearest, ask.vector)
    message.params.quantization.ignore = True
    if ask.staged:
        target = message.prefetch.add(limit=ask.limit)
    else:
        target = message
        message.params.exact = ask.exact
        if ask.hnsw_ef is not None:
            message.params.hnsw_ef = ask.hnsw_ef
    if ask.ids is not None:
        target.filter.must.add().has_id.has_id.extend([pb.PointId(uuid=point) for point in ask.ids])
    elif ask.filter is not None:
        target.filter.CopyFrom(RestToGrpc.convert_filter(ask.filter))
    return message


def _fill(message: Any, vector: Vector) -> None:
    """Write a vector into a ``Vector`` or ``VectorInput``, whose variants have the same names."""
    if not isinstance(vector, np.ndarray):
        message.sparse.indices.extend(vector[0].tolist())
        message.sparse.values.extend(vector[1].tolist())
    elif vector.ndim == 1:
        message.dense.MergeFromString(_dense_prefix(len(vector)) + vector.astype("<f4", copy=False).tobytes())
    else:
        prefix = np.frombuffer(_multi_prefix(vector.shape[1]), dtype=np.uint8)
        framed = np.empty((len(vector), len(prefix) + 4 * vector.shape[1]), dtype=np.uint8)
        framed[:, : len(prefix)] = prefix
        framed[:, len(prefix) :] = np.ascontiguousarray(vector, dtype="<f4").view(np.uint8)
        message.multi_dense.MergeFromString(framed.tobytes())


@functools.cache
def _dense_prefix(width: int) -> bytes:
    """Return the bytes before the raw floats of a dense vector, from a message that the library encoded."""
    return bytes(pb.DenseVector(data=[0.0] * width).SerializeToString()[: -4 * width])


@functools.cache
def _multi_prefix(width: int) -> bytes:
    """Return the bytes before each row of a multi-vector."""
    row = pb.DenseVector(data=[0.0] * width)
    return bytes(pb.MultiDenseVector(vectors=[row]).SerializeToString()[: -4 * width])


def _found(hit: Any) -> Found:
    return Found(hit.id.uuid, hit.score, hit.payload[ID].string_value if ID in hit.payload else None)


def _read(vector: Any) -> Vector:
    kind = vector.WhichOneof("vector")
    if kind == "sparse":
        return _sparse(vector.sparse.indices, vector.sparse.values)
    if kind == "multi_dense":
        return _rows(vector.multi_dense)
    if kind == "dense":
        return np.array(vector.dense.data[:], dtype=np.float32)
    # The older form of the same value, which a server may still send in addition to the new one or instead of
    # it.
    if vector.HasField("indices"):
        return _sparse(vector.indices.data, vector.data)
    flat: Float32 = np.array(vector.data[:], dtype=np.float32)
    return flat.reshape(vector.vectors_count, -1) if vector.HasField("vectors_count") else flat


def _rows(message: Any) -> Float32:
    """Return the rows of a multi-vector, from its bytes, which is faster than from its numbers."""
    count = len(message.vectors)
    width = len(message.vectors[0].data) if count else 0
    if not width:
        return np.empty((count, 0), dtype=np.float32)
    prefix = _multi_prefix(width)
    framed = np.frombuffer(message.SerializeToString(), dtype=np.uint8)
    if framed.size != count * (len(prefix) + 4 * width):
        raise ValueError("a multi-vector has rows of different widths")
    floats = np.ascontiguousarray(framed.reshape(count, -1)[:, len(prefix) :])
    rows: Float32 = floats.view("<f4").astype(np.float32, copy=False)
    return rows


def _sparse(indices: Any, values: Any) -> Vector:
    return np.array(indices[:], dtype=np.int64), np.array(values[:], dtype=np.float32)
