"""Write a scenario's corpus to a collection and time the writes, or find it already there."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import anyio.to_thread

from m3_connectors.backends.base import Backend, Schema
from m3_connectors.backends.checks import reduced
from m3_connectors.backends.precision import Precision
from m3_connectors.bench.meter import Meter
from m3_connectors.bench.preflight import owned
from m3_connectors.bench.rows import WriteRow
from m3_connectors.bench.scenario import Store
from m3_connectors.bench.synthetic import Corpus
from m3_connectors.bench.trips import counting
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings


class Rows(Protocol):
    """``Sink[WriteRow]``, or a substitute."""

    def add(self, row: WriteRow) -> None:
        """Record a row."""


class Unrecorded:
    """Discards rows, for a collection whose writes an earlier session has measured."""

    def add(self, row: WriteRow) -> None:
        """Discard the row."""


async def find(backend: Backend, schema: Schema) -> bool:
    """Open the collection if it was created for this corpus; remove it if it is for another benchmark corpus.

    Raises:
        InvalidInput: The collection contains documents that are not from a benchmark.
    """
    there = await owned(backend)
    if there is None or there == schema:
        return there is not None
    await backend.drop()
    return False


def builds(backend: Backend) -> bool:
    """Return whether the store builds indexes after writing: its adapter then overrides ``optimize``."""
    return type(backend).optimize is not Backend.optimize


async def fill(
    backend: Backend,
    corpus: Corpus,
    store: Store,
    rows: Rows,
    meter: Meter,
    progress: Callable[[int], None],
) -> bool:
    """Write the corpus to the store batch by batch, and build its indexes if the scenario says so.

    Args:
        backend: A backend that is not open; it is open afterwards.
        corpus: The corpus to write.
        store: The settings of the store.
        rows: Records each write.
        meter: The clock and CPU times.
        progress: Called after each batch with the number of documents stored so far.

    Returns:
        Whether the corpus was already in the store; then nothing is written or measured.

    Raises:
        InvalidInput: The collection contains documents that are not from a benchmark.
        BackendError: The store failed.
    """
    schema = corpus.schema
    if await find(backend, schema):
        if await backend.count() == len(corpus):
            progress(len(corpus))
            if store.optimize:  # an earlier run may have been interrupted, or configured to skip it
                await backend.optimize()
            return True
        await backend.drop()  # an interrupted run has written a part of it
    await backend.create(schema)
    done = 0
    batches = corpus.batches(store.batch_bytes)
    # Batches are made in a thread while nothing is timed, so that only the store's time counts.
    while (batch := await anyio.to_thread.run_sync(next, batches, None)) is not None:
        batch = batch[0], reduced(batch[1], schema.components)
        size_bytes = _size_bytes(*batch, schema.precision)
        call = functools.partial(backend.upsert, *batch)
        rows.add(
            await _timed(call, "upsert", len(batch[0]), size_bytes, store.name, len(corpus), done, meter)
        )
        done += len(batch[0])
        progress(done)
    if store.optimize and builds(backend):
        rows.add(await _timed(backend.optimize, "optimize", 0, 0, store.name, len(corpus), done, meter))
    return False


async def _timed(
    call: Callable[[], Awaitable[None]],
    kind: str,
    written: int,
    size_bytes: int,
    store: str,
    documents: int,
    first: int,
    meter: Meter,
) -> WriteRow:
    server_cpu = meter.server_cpu_seconds()
    start, start_cpu = meter.now(), meter.client_cpu_seconds()
    with counting() as trips:
        await call()
    end, end_cpu = meter.now(), meter.client_cpu_seconds()
    server_cpu_after = meter.server_cpu_seconds()
    return WriteRow(
        store=store,
        documents=documents,
        kind=kind,
        first=first,
        written=written,
        size_bytes=size_bytes,
        start_seconds=start,
        end_seconds=end,
        round_trips=trips.count,
        store_seconds=trips.seconds,
        start_cpu_seconds=start_cpu,
        end_cpu_seconds=end_cpu,
        server_cpu_seconds=None
        if server_cpu is None or server_cpu_after is None
        else server_cpu_after - server_cpu,
    )


def _size_bytes(documents: Sequence[Document], embeddings: M3Embeddings, precision: Precision) -> int:
    """Return the bytes of text, float32 dense and sparse vectors (with token ids), and rows as stored."""
    text = sum(len(document.text.encode()) for document in documents)
    size = text + embeddings.dense.nbytes
    if "sparse" in embeddings.components:
        size += 8 * embeddings.sparse.nnz
    if "multivector" in embeddings.components:
        rows = embeddings.multivectors.rows
        size += precision.encoded_bytes(*rows.shape)
    return int(size)
