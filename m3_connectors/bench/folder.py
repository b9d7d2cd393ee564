"""The result folder of a benchmark: raw rows, and the numbers computed from them.

bench.json         scenario, environment, and the record of each collection: ``records.BenchRecord``
requests.parquet   ``rows.RequestRow``
writes.parquet     ``rows.WriteRow``
recall.parquet     ``rows.RecallRow``
summary.json       the result of ``summary.summarise``: ``records.Summary``

Until a run is complete, its rows are in ``parts/`` (``bench.session``), and are read from there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3_connectors.bench.records import BenchRecord, Summary
from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

RECORD, SUMMARY = "bench.json", "summary.json"
PARTS = "parts"


class BenchFolder:
    """One benchmark that is read from its folder.

    Args:
        path: The folder.

    Attributes:
        path: The folder.
        record: The content of ``bench.json``.

    Raises:
        InvalidInput: The folder contains no benchmark, or one in an unsupported format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.record = BenchRecord.read(path / RECORD)
        except FileNotFoundError:
            raise InvalidInput(
                f"{path} contains no benchmark: {RECORD} is missing.\n"
                f"  Create one with: m3 bench SCENARIO.toml --out {path}"
            ) from None

    def requests(self) -> pa.Table:
        """Return one row per request; the columns are those of ``rows.RequestRow``."""
        return self._table("requests")

    def writes(self) -> pa.Table:
        """Return one row per write; the columns are those of ``rows.WriteRow``."""
        return self._table("writes")

    def recall(self) -> pa.Table:
        """Return one row per comparison; the columns are those of ``rows.RecallRow``."""
        return self._table("recall")

    def summary(self) -> Summary:
        """Compute all numbers from the rows."""
        from m3_connectors.bench.summary import summarise

        return summarise(self.record, self.requests(), self.writes(), self.recall())

    def write_summary(self) -> Summary:
        """Compute all numbers, and write them to ``summary.json`` for readers without this package."""
        computed = self.summary()
        write_json(self.path / SUMMARY, computed.to_json())
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
                f"  If the benchmark is not still running, remove {self.path} and run it again."
            ) from None

    def _of_parts(self, name: str) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from m3_connectors.bench import rows

        kind = {"requests": rows.RequestRow, "writes": rows.WriteRow, "recall": rows.RecallRow}[name]
        empty = rows.arrow_schema(kind).empty_table()
        return pa.concat_tables([empty, *(pq.read_table(path) for path in parts(self.path, name))])


def parts(folder: Path, name: str) -> list[Path]:
    """Return the complete parts of a kind of rows, in the order of the scenario."""
    return sorted((folder / PARTS).glob(f"{name}-*.parquet"))


def find_folders(root: Path) -> list[BenchFolder]:
    """Return all benchmarks in or below a folder, sorted by path."""
    return [BenchFolder(path.parent) for path in sorted(root.rglob(RECORD))]


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
