"""Write points: split by size, a few requests at a time, with a report of what was not written."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from m3_connectors.backends.chunks import by_bytes, by_count
from m3_connectors.backends.qdrant.server.connection import Connection
from m3_connectors.backends.qdrant.server.errors import BACKEND
from m3_connectors.backends.qdrant.server.rows import Point
from m3_connectors.backends.qdrant.server.wire import Wire
from m3_connectors.backends.together import together
from m3_connectors.errors import BackendError, PartialWrite, Unsupported

_WRITES_AT_ONCE = 2


async def write(connection: Connection, points: Sequence[Point], most_points: int | None) -> None:
    """Write points; when it returns, every reader sees all of them.

    Args:
        connection: The connection to the server.
        points: The points to write.
        most_points: The maximum number of points in one request; None for no limit.

    Raises:
        Unsupported: A point is larger than a request may be; nothing was sent.
        PartialWrite: Some points were not written; the cause is the first failure.
        BackendError: No point was written.
    """
    wire = connection.wire
    _check_sizes(points, wire)
    failed: dict[str, BackendError] = {}

    async def attempt(batch: Sequence[Point]) -> None:
        # If the server is gone for good, the other batches need not try it one by one.
        error = next((error for error in failed.values() if error.retryable), None)
        if error is None:
            try:
                await connection.halving("upsert", batch, wire.upsert)
            except BackendError as caught:
                error = caught
        if error is not None:
            failed.update(dict.fromkeys((point.document_id for point in batch), error))

    batches = [
        batch
        for run in by_bytes(points, wire.size, wire.message_bytes)
        for batch in by_count(run, most_points or len(run))
    ]
    await together([functools.partial(attempt, batch) for batch in batches], _WRITES_AT_ONCE)
    if failed:
        first = next(iter(failed.values()))
        if len(failed) == len(points):
            raise first
        reasons = {id: str(error) for id, error in failed.items()}
        partial = PartialWrite(reasons, backend=BACKEND, operation="upsert")
        partial.retryable = first.retryable
        raise partial from first


def _check_sizes(points: Sequence[Point], wire: Wire) -> None:
    """Raise Unsupported if a point is larger than a request may be."""
    for point in points:
        if wire.largest_bytes is not None and wire.size(point) > wire.largest_bytes:
            raise Unsupported(
                f"document {point.document_id!r} takes up to {wire.size(point) / 2**20:.0f} MiB over "
                f"{wire.name}; the server's limit is {wire.largest_bytes / 2**20:.0f} MiB.\n"
                "  Open its gRPC port (6334), which has no limit, or split the text."
            )
