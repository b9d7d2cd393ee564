"""Writing the folder of a benchmark: each part of its rows is there whole or not at all, whenever the run is killed.

``parts/requests-00003.parquet`` holds the rows of one load, ``writes-…`` and ``recall-…`` those of one collection,
numbered in the scenario's order. A part has its name once it is whole; ``finished`` in the record names those whose
measurement came to its end. The same command goes on after them, in a further session: its clock begins anew, and the
record names its machine, so that nobody takes the numbers for those of one sitting. A complete run has its parts
joined, one file a kind.
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

from m3_connectors.backends.qdrant.lock import ProcessLock
from m3_connectors.bench.folder import FORMAT, PARTS, RECORD, parts, write_json
from m3_connectors.bench.rows import RecallRow, RequestRow, Sink, WriteRow, arrow_schema
from m3_connectors.errors import Busy, InvalidInput

T = TypeVar("T", RequestRow, WriteRow, RecallRow)

_LOCK = ".bench.lock"
_ROWS: dict[type, str] = {RequestRow: "requests", WriteRow: "writes", RecallRow: "recall"}
_SAME = ("processor", "cores", "python", "versions", "commit")
"""What two sessions must agree in to stand in one table."""


class Session:
    """One sitting of a benchmark, for the time of a ``with`` block.

    Args:
        out: Its folder; made if need be.
        scenario: As ``bench.json`` records it.
        environment: This machine's.

    Attributes:
        record: ``bench.json``.

    Raises:
        InvalidInput: The folder holds a complete benchmark, or one that this cannot go on with.
    """

    def __init__(self, out: Path, scenario: dict[str, Any], environment: dict[str, Any]) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = ProcessLock(out / _LOCK, operation="bench")
        except Busy:
            raise InvalidInput(
                f"another benchmark is being written to {out}.\n  Give another folder: --out DIR."
            ) from None
        try:
            self.record = self._begun(scenario, environment)
        except BaseException:
            self._lock.release(remove=True)
            raise
        # Not before: a reader takes the parts where there are any.
        (out / PARTS).mkdir(exist_ok=True)
        self.record["sessions"].append({"environment": environment})

    def _begun(self, scenario: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
        path = self.out / RECORD
        if not path.exists():
            return {
                "format": FORMAT,
                "scenario": scenario,
                "environment": environment,
                "sessions": [],
                "collections": [],
                "finished": [],
                "harness_seconds_per_request": None,
                "complete": False,
            }
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            record = {}
        another = "Give another folder: --out DIR."
        if record.get("complete") is not False or "finished" not in record:
            raise InvalidInput(f"{self.out} holds a benchmark already.\n  {another}")
        if record["scenario"] != json.loads(json.dumps(scenario)):
            raise InvalidInput(f"{self.out} holds the beginning of another scenario.\n  {another}")
        changed = [key for key in _SAME if record["environment"].get(key) != environment.get(key)]
        if changed:
            raise InvalidInput(
                f"{self.out} was begun with another {' and '.join(changed)}: its numbers and new ones do not belong "
                f"into one table.\n  {another}"
            )
        return record

    def collection(self, store: str, documents: int) -> dict[str, Any] | None:
        """What an earlier session noted of a collection when it had been filled."""
        found = (c for c in self.record["collections"] if (c["store"], c["documents"]) == (store, documents))
        return next(found, None)

    def note(self, **keys: Any) -> None:
        """Put something into the record, on disk."""
        self.record |= keys
        self.save()

    def save(self) -> None:
        """Write the record as it is."""
        write_json(self.out / RECORD, self.record)

    def has(self, kind: type[T], number: int) -> bool:
        """Whether this part is finished."""
        return _name(kind, number) in self.record["finished"]

    @contextlib.contextmanager
    def rows(self, kind: type[T], number: int) -> Iterator[Sink[T]]:
        """Where the rows of one part go; finished if the block comes to its end.

        Args:
            kind: Of the rows.
            number: Of the part, in the scenario's order.
        """
        name = _name(kind, number)
        with Sink(self.out / PARTS / f"{name}.parquet", kind) as sink:
            yield sink
        self.record["finished"].append(name)
        self.save()

    def complete(self) -> None:
        """Join the parts; nothing is left to do."""
        for kind, name in _ROWS.items():
            target = self.out / f"{name}.parquet"
            partial = target.with_suffix(".tmp")
            with pq.ParquetWriter(partial, arrow_schema(kind)) as writer:
                for path in parts(self.out, name):
                    writer.write_table(pq.read_table(path))
            os.replace(partial, target)
        self.note(complete=True)
        # By one rename, since a reader takes the parts as long as they are there.
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
