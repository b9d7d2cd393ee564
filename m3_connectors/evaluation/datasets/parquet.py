"""Read the rows of Parquet files as records, like ``lines`` reads JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.evaluation.datasets.lines import Record


def parquet_records(path: Path, columns: Sequence[str], rows: int) -> Iterator[tuple[str, Record]]:
    """Yield the rows of a file, with ``FILE: row N`` for errors.

    Args:
        path: The file.
        columns: Those to read; ``document.id`` is a field of a column.
        rows: How many to hold at a time.

    Raises:
        InvalidInput: The file is damaged, or lacks a column.
        MissingDependency: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingDependency("pyarrow", "eval") from None
    try:
        with parquet.ParquetFile(path) as file:
            row = 0
            # The library silently omits columns that a file lacks.
            lacking = set(columns) - {file.schema.column(i).path for i in range(len(file.schema))}
            if lacking:
                raise InvalidInput(
                    f"{path} is Parquet without the column {', '.join(sorted(lacking))}.\n"
                    "  Download the file again."
                )
            for batch in file.iter_batches(rows, columns=list(columns)):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path}: row {row}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidInput(
            f"{path} is not Parquet with {' and '.join(columns)}: {error}\n  Download the file again."
        ) from error
