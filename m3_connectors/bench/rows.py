"""The raw rows of a benchmark: the observations of each write, request and comparison."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from m3_connectors.files import replacing


class RequestRow(NamedTuple):
    """One request. Times are seconds of a monotonic clock from the start of the session (``bench.session``).

    Attributes:
        store: The name of the store.
        documents: The size of the corpus.
        load: The name of the level, such as ``closed-8``.
        phase: ``warm-up`` or ``measured``.
        number: The number within its load, in the order of intended starts.
        worker: The client that sent it; null if it was not sent.
        query: The number of the query.
        method: The name of the method.
        selectivity: The selectivity of its filter; null without a filter.
        k: The requested number of hits.
        exact: Whether approximate lists were disabled.
        expected_hits: The minimum number of hits.
        intended_seconds: The time at which it should have been sent.
        start_seconds: The time at which it was sent; null if it was not sent.
        end_seconds: The time of its response or failure.
        hits: The number of hits.
        distinct_hits: The number of different ids.
        ids_hash: CRC-32 of the ids in order.
        error: The type and first line of the error; null for a response.
        round_trips: The number of calls to the store (or to the embedded engine).
        store_seconds: The time during which at least one call was in progress, as seen by this process
            (``trips``).
        client_cpu_seconds: The CPU time of this process up to the end, all threads.
        server_cpu_seconds: The CPU time of the server's processes if known, read five times a second; else
            null.
    """

    store: str
    documents: int
    load: str
    phase: str
    number: int
    worker: int | None
    query: int
    method: str
    selectivity: float | None
    k: int
    exact: bool
    expected_hits: int
    intended_seconds: float
    start_seconds: float | None
    end_seconds: float | None
    hits: int | None
    distinct_hits: int | None
    ids_hash: int | None
    error: str | None
    round_trips: int | None
    store_seconds: float | None
    client_cpu_seconds: float
    server_cpu_seconds: float | None


class WriteRow(NamedTuple):
    """One call of ``upsert`` or ``optimize``.

    Attributes:
        store: The name of the store.
        documents: The size of the corpus.
        kind: ``upsert`` or ``optimize``.
        first: The number of its first document.
        written: The number of documents in it.
        size_bytes: The bytes passed to ``upsert``: text, and vectors in their storage precision.
        start_seconds: See ``RequestRow``.
        end_seconds: See ``RequestRow``.
        round_trips: See ``RequestRow``.
        store_seconds: See ``RequestRow``.
        start_cpu_seconds: The CPU time of this process up to the start.
        end_cpu_seconds: The CPU time of this process up to the end.
        server_cpu_seconds: The CPU time of the server's processes during the call, if they are known.
    """

    store: str
    documents: int
    kind: str
    first: int
    written: int
    size_bytes: int
    start_seconds: float
    end_seconds: float
    round_trips: int
    store_seconds: float
    start_cpu_seconds: float
    end_cpu_seconds: float
    server_cpu_seconds: float | None


class RecallRow(NamedTuple):
    """One query run approximately and exactly; a failed one has an error and no results.

    Attributes:
        store: The name of the store.
        documents: The size of the corpus.
        kind: ``search`` (the k hits of a method) or ``list`` (the dense list that methods start from).
        query: The number of the query.
        method: The name of the method; ``dense`` for a list.
        selectivity: The selectivity of its filter; null without a filter.
        depth: The requested number of entries.
        expected: The number of entries of the exact result.
        found: The number of entries of the approximate result that score no worse than the last exact entry.
        approximate_seconds: The time of the approximate query.
        exact_seconds: The time of the exact query.
        exact_first: Whether the exact query ran first; the order alternates because the second finds warm
            caches.
        error: The type and first line of the error; null for results.
    """

    store: str
    documents: int
    kind: str
    query: int
    method: str
    selectivity: float | None
    depth: int
    expected: int
    found: int
    approximate_seconds: float | None
    exact_seconds: float | None
    exact_first: bool
    error: str | None


T = TypeVar("T", RequestRow, WriteRow, RecallRow)

_ARROW = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


def arrow_schema(kind: type[RequestRow | WriteRow | RecallRow]) -> pa.Schema:
    """Return the columns of a kind of rows; Parquet itself dictionary-encodes texts."""
    fields = []
    for name, hint in get_type_hints(kind).items():
        text = getattr(hint, "__name__", str(hint))
        nullable = not isinstance(hint, type)
        fields.append(
            pa.field(name, _ARROW[str(hint).partition(" ")[0] if nullable else text], nullable=nullable)
        )
    return pa.schema(fields)


class Sink(Generic[T]):
    """Writes a Parquet file in steps; it gets its name when the ``with`` block ends, even by an error."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        self._schema = arrow_schema(kind)
        self._replacing = replacing(path)
        self._writer = pq.ParquetWriter(self._replacing.__enter__(), self._schema)
        self._waiting: list[T] = []
        self._writing = threading.Lock()

    def add(self, row: T) -> None:
        """Add a row, which stays in memory until ``flush``."""
        self._waiting.append(row)

    def flush(self) -> None:
        """Write the rows in memory; may run in another thread than ``add``."""
        with self._writing:
            rows, self._waiting = self._waiting, []
            if rows:
                columns = [
                    pa.array(column, field.type)
                    for column, field in zip(zip(*rows, strict=True), self._schema, strict=True)
                ]
                self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def __enter__(self) -> Sink[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        self._writer.close()
        self._replacing.__exit__(None, None, None)
