"""The folder that one benchmark leaves: raw rows first, numbers computed from them.

bench.json         scenario, environment, and what was noted of each collection: ``BenchRecord``
requests.parquet   ``rows.RequestRow``
writes.parquet     ``rows.WriteRow``
recall.parquet     ``rows.RecallRow``
summary.json       ``summary.summarise``; derived

Until a run is complete its rows lie in ``parts/`` (``bench.session``), and are read from there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3_connectors.errors import InvalidInput, MissingDependency

if TYPE_CHECKING:
    import pyarrow as pa

RECORD, SUMMARY = "bench.json", "summary.json"
FORMAT = 1

PARTS = "parts"


class BenchFolder:
    """One benchmark, read from its folder.

    Args:
        path: The folder.

    Attributes:
        path: The folder.
        record: ``bench.json``: ``format``, ``scenario`` (every key of it), ``environment``, ``collections`` (one entry
            for each store and size: ``store``, ``backend``, ``documents``, ``count``, ``reused``, ``disk_bytes`` by
            component or null, ``server_memory_bytes``, ``corpus``, ``server``), ``harness_seconds_per_request``,
            ``sessions`` (each sitting with its environment; folders of earlier versions lack it), ``finished``
            (names of parts), ``complete``.

    Raises:
        InvalidInput: It holds no benchmark, or one of another version's format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.record: dict[str, Any] = json.loads((path / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InvalidInput(
                f"{path} holds no benchmark: there is no {RECORD}.\n  m3 bench SCENARIO.toml --out {path} makes one."
            ) from None
        except ValueError as error:
            raise InvalidInput(f"{path / RECORD} is not JSON: {error}\n  Run the benchmark again.") from None
        if not isinstance(self.record, dict) or self.record.get("format") != FORMAT:
            raise InvalidInput(
                f"{path / RECORD} is not of format {FORMAT}.\n  Was it written by a later m3-connectors?"
            )

    def requests(self) -> pa.Table:
        """One row for each request; columns as ``rows.RequestRow``."""
        return self._table("requests")

    def writes(self) -> pa.Table:
        """One row for each write; columns as ``rows.WriteRow``."""
        return self._table("writes")

    def recall(self) -> pa.Table:
        """One row for each question asked both ways; columns as ``rows.RecallRow``."""
        return self._table("recall")

    def summary(self) -> dict[str, Any]:
        """All numbers, computed from the rows."""
        from m3_connectors.bench.summary import summarise

        return summarise(self.record, self.requests(), self.writes(), self.recall())

    def write_summary(self) -> dict[str, Any]:
        """All numbers, also in ``summary.json``, for readers without this package."""
        computed = self.summary()
        write_json(self.path / SUMMARY, computed)
        return computed

    def _table(self, name: str) -> pa.Table:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise MissingDependency("pyarrow", "eval") from None
        path = self.path / f"{name}.parquet"
        try:
            if (self.path / PARTS).is_dir():
                return self._of_parts(name)
            return pq.read_table(path)
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise InvalidInput(
                f"{path} cannot be read: {error}\n"
                f"  Was the benchmark killed, or is it still running? Remove {self.path} and run it again."
            ) from None

    def _of_parts(self, name: str) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from m3_connectors.bench import rows

        kind = {"requests": rows.RequestRow, "writes": rows.WriteRow, "recall": rows.RecallRow}[name]
        empty = rows.arrow_schema(kind).empty_table()
        return pa.concat_tables([empty, *(pq.read_table(path) for path in parts(self.path, name))])


def parts(folder: Path, name: str) -> list[Path]:
    """The parts of a kind of rows that are whole, in the scenario's order."""
    return sorted((folder / PARTS).glob(f"{name}-*.parquet"))


def find_folders(root: Path) -> list[BenchFolder]:
    """Every benchmark at or below a folder, by path."""
    return [BenchFolder(path.parent) for path in sorted(root.rglob(RECORD))]


def write_json(path: Path, document: Any) -> None:
    """A JSON file that appears whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
