"""Read Parquet and Arrow: one document per row, a few rows in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.readers.fields import Fields
from m3_connectors.readers.inputs import Input
from m3_connectors.readers.outcomes import Outcome, Skipped, outcome_of
from m3_connectors.readers.settings import ReadSettings

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 256
MAX_ROW_GROUP_BYTES = 4 * 2**30
"""The limit of a row group of Parquet as its file declares it, uncompressed; a few bytes may expand to any size."""

_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_FILE_MARK = b"ARROW1"


def read_parquet(file: Input, settings: ReadSettings) -> Iterator[Outcome]:
    """Yield the documents of a Parquet file. A row group that is damaged is skipped, and the others are read."""
    _pyarrow()
    from pyarrow import parquet

    with file.open_seekable() as content:
        try:
            table = parquet.ParquetFile(content, page_checksum_verification=True, pre_buffer=False)
        except _errors() as error:
            raise InvalidInput(f"not a Parquet file, or cut: {_line(error)}") from None
        with table:
            rows = ArrowRows(table.schema_arrow, file.name, settings.fields)
            yield from rows.left_out()
            for number in range(table.num_row_groups):
                group = table.metadata.row_group(number)
                until = rows.count + group.num_rows
                if group.total_byte_size > MAX_ROW_GROUP_BYTES:
                    yield rows.skip_to(until, f"a row group of more than {MAX_ROW_GROUP_BYTES // 2**30} GiB")
                    continue
                batches = table.iter_batches(_BATCH_ROWS, row_groups=[number], columns=rows.columns)
                try:
                    yield from rows.outcomes(batches)
                except _errors() as error:
                    yield rows.skip_to(until, f"damaged: {_line(error)}")
                if rows.count < until:
                    yield rows.skip_to(until, "the file ends before them")


def read_arrow(file: Input, settings: ReadSettings) -> Iterator[Outcome]:
    """Yield the documents of an Arrow file (Feather) or of an Arrow stream, such as Hugging Face writes."""
    pa = _pyarrow()
    with file.open_seekable() as content:
        is_file = content.read(len(_FILE_MARK)) == _FILE_MARK
        content.seek(0)
        try:
            table = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(content)
        except _errors() as error:
            raise InvalidInput(f"not an Arrow file, or cut: {_line(error)}") from None
        rows = ArrowRows(table.schema, file.name, settings.fields)
        yield from rows.left_out()
        batches = map(table.get_batch, range(table.num_record_batches)) if is_file else iter(table)
        try:
            yield from rows.outcomes(batches)
        except _errors() as error:
            raise InvalidInput(f"damaged after row {rows.count:,}: {_line(error)}") from None
        if not is_file and not _has_end(content):
            raise InvalidInput(f"has no end mark: it may be cut after row {rows.count:,}")


class ArrowRows:
    """Converts the rows of a table to documents.

    Args:
        schema: The columns.
        name: The prefix of the ids of rows without an id: ``name:row``.
        fields: The columns of text and id.

    Raises:
        InvalidInput: There is no text column, or two columns have the same name.
    """

    def __init__(self, schema: pa.Schema, name: str, fields: Fields) -> None:
        from m3_connectors.readers.arrow_types import storable

        self.count = 0
        """The number of rows read so far."""
        self._name = name
        self._fields = fields
        try:
            self._types = {column.name: storable(column.type) for column in schema}
        except UnicodeDecodeError:
            raise InvalidInput("damaged: the name of a column is not UTF-8") from None
        self._left_out = {column.name: column.type for column in schema if self._types[column.name] is None}
        if len(self._types) < len(schema):
            raise InvalidInput(f"two columns have the same name: {schema.names}")
        fields.check(schema.names)
        for needed in filter(fields.is_needed, self._left_out):
            raise InvalidInput(
                f"the column {needed!r} is {self._left_out[needed]}: text and ids must be strings"
            )

    @property
    def columns(self) -> list[str] | None:
        """The columns to read; None for all."""
        return [name for name, type in self._types.items() if type is not None] if self._left_out else None

    def left_out(self) -> Iterator[Outcome]:
        """Yield the columns that metadata cannot hold."""
        for name, type in self._left_out.items():
            yield Skipped(
                None, f"the column {name!r} was left out of all rows: JSON has no {type}", is_column=True
            )

    def skip_to(self, count: int, reason: str) -> Skipped:
        """Skip the rows up to a number."""
        first, self.count = self.count + 1, count
        return Skipped(first, f"rows {first:,} to {count:,}: {reason}")

    def outcomes(self, batches: Iterable[pa.RecordBatch]) -> Iterator[Outcome]:
        """Yield the documents of batches, which may be of any length."""
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield from self._few(batch.slice(start, _BATCH_ROWS))

    def _few(self, batch: pa.RecordBatch) -> Iterator[Outcome]:
        try:
            records = self._records(batch)
        except _errors() as error:
            if batch.num_rows > 1:
                for row in range(batch.num_rows):
                    yield from self._few(batch.slice(row, 1))
                return
            self.count += 1
            yield Skipped(self.count, f"damaged: {_line(error)}")
            return
        for record in records:
            self.count += 1
            yield outcome_of(record, self._fields, f"{self._name}:{self.count}", self.count)

    def _records(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        # The values of a damaged batch may lie outside its memory.
        batch.validate(full=True)
        values = {
            name: column.cast(self._types[name]).to_pylist(maps_as_pydicts="strict")
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
            if self._types[name] is not None
        }
        rows = zip(*values.values(), strict=True)
        return [
            {
                name: value
                for name, value in zip(values, row, strict=True)
                if value is not None or self._fields.is_needed(name)
            }
            for row in rows
        ]


def column_names(file: Input, settings: ReadSettings) -> list[str]:
    """Return the columns of a Parquet or Arrow file.

    Raises:
        OSError, InvalidInput, MissingDependency: It cannot be read.
    """
    pa = _pyarrow()
    from pyarrow import parquet

    with file.open_seekable() as content:
        try:
            if file.ending == ".parquet":
                return list(parquet.read_schema(content).names)
            is_file = content.read(len(_FILE_MARK)) == _FILE_MARK
            content.seek(0)
            return list((pa.ipc.open_file if is_file else pa.ipc.open_stream)(content).schema.names)
        except _errors() as error:
            raise InvalidInput(f"damaged: {_line(error)}") from None


def _has_end(stream: BinaryIO) -> bool:
    stream.seek(max(0, stream.seek(0, 2) - len(_STREAM_END)))
    return stream.read() == _STREAM_END


def _pyarrow() -> Any:
    try:
        import pyarrow.ipc
    except ImportError:
        raise MissingDependency("pyarrow", "parquet") from None
    return pyarrow


def _errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises for damaged files; a wrong size in one may ask for more memory than there is."""
    wrong = (ValueError, TypeError, KeyError, IndexError, OverflowError)
    return (_pyarrow().ArrowException, OSError, MemoryError, *wrong)


def _line(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "a size in the file is larger than the memory"
    return (str(error) or type(error).__name__).splitlines()[0]
