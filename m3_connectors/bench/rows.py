"""The raw rows of a benchmark: what was observed of each write, request and comparison, and nothing computed."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq


class RequestRow(NamedTuple):
    """One request. Times are seconds of one monotonic clock, from the beginning of the session (``bench.session``).

    Attributes:
        store: Name of the store.
        documents: Size of the corpus.
        load: Name of the level, such as ``closed-8``.
        phase: ``warm-up`` or ``measured``.
        number: In its load, in the order of intended starts.
        worker: Which client sent it; null for one that was not sent.
        query: Number of the query.
        method: Name of the method.
        selectivity: Of its filter; null without one.
        k: Hits asked for.
        exact: Whether approximate lists were ruled out.
        expected_hits: How many there must be at least.
        intended_seconds: When it was to be sent.
        start_seconds: When it was sent; null: never.
        end_seconds: When its answer, or its failure, was there.
        hits: How many came.
        distinct_hits: How many different ids they have.
        ids_hash: CRC-32 of their ids in order.
        error: Type and first line of what was raised; null for an answer.
        round_trips: Calls to the store (of the embedded engine: into it).
        store_seconds: Time during which at least one of them was under way, as far as this process saw it (``trips``).
        client_cpu_seconds: CPU time of this process up to the end, all threads.
        server_cpu_seconds: The same of the server's processes where known, read five times a second; else null.
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
        store: Name of the store.
        documents: Size of the corpus.
        kind: ``upsert`` or ``optimize``.
        first: Number of its first document.
        written: Documents in it.
        size_bytes: Text, and vectors in the precision that they are stored in, as they were given to ``upsert``.
        start_seconds: As a request's.
        end_seconds: As a request's.
        round_trips: As a request's.
        store_seconds: As a request's.
        start_cpu_seconds: CPU time of this process up to the start.
        end_cpu_seconds: CPU time of this process up to the end.
        server_cpu_seconds: CPU time of the server's processes during the call, where they are known.
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
    """One question asked both ways; one that failed has an error and no answers.

    Attributes:
        store: Name of the store.
        documents: Size of the corpus.
        kind: ``search`` (the k hits of a method) or ``list`` (the dense list that methods start from).
        query: Number of the query.
        method: Name of the method; ``dense`` for a list.
        selectivity: Of its filter; null without one.
        depth: Entries asked for.
        expected: Entries of the exact answer.
        found: Entries of the approximate answer that score no worse than the last of the exact one.
        approximate_seconds: Time that it took.
        exact_seconds: Time that it took.
        exact_first: Which was asked first; they take turns, since the second finds the store's caches warm.
        error: Type and first line of what was raised; null for answers.
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
    """The columns of a kind of rows; texts are dictionary-encoded by Parquet itself."""
    fields = []
    for name, hint in get_type_hints(kind).items():
        text = getattr(hint, "__name__", str(hint))
        nullable = not isinstance(hint, type)
        fields.append(
            pa.field(name, _ARROW[str(hint).partition(" ")[0] if nullable else text], nullable=nullable)
        )
    return pa.schema(fields)


class Sink(Generic[T]):
    """A Parquet file that grows, and has its name as soon as it is whole: when the block is left, in whatever way."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        self._schema = arrow_schema(kind)
        self._path, self._partial = path, path.with_suffix(".tmp")
        self._writer = pq.ParquetWriter(self._partial, self._schema)
        self._waiting: list[T] = []
        self._writing = threading.Lock()

    def add(self, row: T) -> None:
        """Take a row; it is in memory until ``flush``."""
        self._waiting.append(row)

    def flush(self) -> None:
        """Write what waits; may run in a thread beside ``add``."""
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
        os.replace(self._partial, self._path)
