"""Write the folder of a benchmark; each part of its rows is written atomically, even if the run is killed.

``parts/requests-00003.parquet`` contains the rows of one load; ``writes-…`` and ``recall-…`` contain those of
one collection. Parts are numbered in the order of the scenario. A part gets its name when it is complete;
``finished`` in the record lists the parts whose measurement is finished. Running the same command again
continues after them in a new session, whose clock starts at zero. The record describes the machine of each
session, so that the numbers are not mistaken for those of a single session. When a run is complete, its parts
are joined to one file per kind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pyarrow.parquet as pq

from m3_connectors.backends.qdrant.edge.lock import ProcessLock
from m3_connectors.bench.folder import PARTS, RECORD, parts, write_json
from m3_connectors.bench.records import BenchRecord, Collection, Machine, Scenario, SessionRecord
from m3_connectors.bench.rows import RecallRow, RequestRow, Sink, WriteRow, arrow_schema
from m3_connectors.errors import Busy, InvalidInput
from m3_connectors.files import replacing

T = TypeVar("T", RequestRow, WriteRow, RecallRow)

_LOCK = ".bench.lock"
_ROWS: dict[type, str] = {RequestRow: "requests", WriteRow: "writes", RecallRow: "recall"}
_SAME = ("processor", "cores", "python", "versions", "commit")
"""The properties that must be equal in all sessions of a benchmark, so that their numbers are comparable."""


class Session:
    """One session of a benchmark, for the duration of a ``with`` block.

    Args:
        out: The folder; created if it does not exist.
        scenario: The scenario as recorded in ``bench.json``.
        environment: The environment of this machine.

    Attributes:
        record: The content of ``bench.json``.

    Raises:
        InvalidInput: The folder contains a complete benchmark, or one that cannot be continued.
    """

    def __init__(self, out: Path, scenario: dict[str, Any], environment: dict[str, Any]) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = ProcessLock(out / _LOCK, operation="bench")
        except Busy:
            raise InvalidInput(
                f"another process is writing a benchmark to {out}.\n  Use another folder: --out DIR."
            ) from None
        try:
            self._machine = Machine(**environment)
            self.record = self._begun(scenario)
        except BaseException:
            self._lock.release(remove=True)
            raise
        # Created only now, because readers prefer the parts if the folder exists.
        (out / PARTS).mkdir(exist_ok=True)
        self.record.sessions.append(SessionRecord(environment=self._machine))

    def _begun(self, scenario: dict[str, Any]) -> BenchRecord:
        path = self.out / RECORD
        asked = Scenario.model_validate_json(json.dumps(scenario))
        if not path.exists():
            return BenchRecord(
                scenario=asked,
                environment=self._machine,
                sessions=[],
                collections=[],
                finished=[],
                harness_seconds_per_request=None,
                complete=False,
            )
        another = "Use another folder: --out DIR."
        record = BenchRecord.read(path)
        if record.complete or "finished" not in record.model_fields_set:
            raise InvalidInput(f"{self.out} already contains a benchmark.\n  {another}")
        if record.scenario != asked:
            raise InvalidInput(f"{self.out} contains an unfinished run of another scenario.\n  {another}")
        before, now = record.environment.model_dump(), self._machine.model_dump(mode="json")
        changed = [key for key in _SAME if before.get(key) != now.get(key)]
        if changed:
            raise InvalidInput(
                f"{self.out} was started with another {' and '.join(changed)}, so new numbers would not be "
                f"comparable.\n  {another}"
            )
        return record

    def collection(self, store: str, documents: int) -> Collection | None:
        """Return the record of a collection that an earlier session has filled, or None."""
        found = (c for c in self.record.collections if (c.store, c.documents) == (store, documents))
        return next(found, None)

    def save(self) -> None:
        """Write the record to disk."""
        write_json(self.out / RECORD, self.record.model_dump(mode="json"))

    def has(self, kind: type[T], number: int) -> bool:
        """Return whether this part is finished."""
        return _name(kind, number) in self.record.finished

    @contextlib.contextmanager
    def rows(self, kind: type[T], number: int) -> Iterator[Sink[T]]:
        """Yield a sink for the rows of one part, which is finished when the block ends without an error.

        Args:
            kind: The kind of the rows.
            number: The number of the part in the order of the scenario.
        """
        name = _name(kind, number)
        with Sink(self.out / PARTS / f"{name}.parquet", kind) as sink:
            yield sink
        self.record.finished.append(name)
        self.save()

    def complete(self) -> None:
        """Join the parts and mark the benchmark as complete."""
        for kind, name in _ROWS.items():
            target = self.out / f"{name}.parquet"
            with replacing(target) as partial, pq.ParquetWriter(partial, arrow_schema(kind)) as writer:
                for path in parts(self.out, name):
                    writer.write_table(pq.read_table(path))
        self.record.complete = True
        self.save()
        # Remove them by a single rename, because readers use the parts as long as they exist.
        joined = self.out / f".{PARTS}.tmp"
        os.rename(self.out / PARTS, joined)
        shutil.rmtree(joined)

    def __enter__(self) -> Session:
        self.save()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release(remove=True)


def _name(kind: type[RequestRow | WriteRow | RecallRow], number: int) -> str:
    return f"{_ROWS[kind]}-{number:05d}"
