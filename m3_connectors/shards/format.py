"""One shard: a Parquet file of documents with their embeddings, in the numbers that a collection stores.

Dense vectors and sparse weights are float32, as every store returns them. Multi-vectors are the bytes of the
collection's precision (``backends.precision``), so that a collection of the same precision gets the same bytes back.
Each file names the model and the storage. Its pages have checksums, and each text has its SHA-256, so that damage is
found when the file is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from m3_connectors.backends.schema import Schema
from m3_connectors.documents import Document, metadata_json
from m3_connectors.embeddings import Float32, M3Embeddings, MultiVectors
from m3_connectors.errors import InvalidInput, M3Error, MissingDependency

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "m3-embeddings/1"

_KEY = b"m3_connectors"
_GROUP_BYTES = 16 * 2**20
"""The size of a row group, which is what a reader holds in memory; a longer document is a group of its own."""
_GROUP_DOCUMENTS = 1024


def pyarrow() -> Any:
    """Return the module pyarrow, with ``pyarrow.parquet`` loaded.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingDependency("pyarrow", "parquet") from None
    return pyarrow


def record_of(schema: Schema) -> dict[str, Any]:
    """Return what a shard, and the list of a folder's shards, record about the collection."""
    return {"format": FORMAT, "collection": schema.to_json()}


def schema_of(record: Any, path: Path) -> Schema:
    """Return the schema of ``record_of``.

    Raises:
        InvalidInput: The record was not written by this version of the format.
    """
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else record
        raise InvalidInput(
            f"{path} has the format {found!r}, and this version of m3 reads {FORMAT!r}.\n"
            "  Use the version that wrote it, or save the embeddings again."
        )
    try:
        return Schema.from_json(record["collection"])
    except (KeyError, TypeError, AttributeError, InvalidInput) as error:
        reason = str(error).splitlines()[0] if isinstance(error, InvalidInput) else repr(error)
        raise damaged(path, f"its record of the collection cannot be read: {reason}") from None


def damaged(path: Path, reason: object) -> InvalidInput:
    """Return the error of a file that cannot be used."""
    return InvalidInput(
        f"{path} is damaged: {str(reason).splitlines()[0] if str(reason) else type(reason).__name__}\n"
        "  Restore the file from a copy, or save the embeddings again."
    )


class ShardFile:
    """A shard that is being written; ``close`` completes it.

    Args:
        path: The file.
        schema: The collection, whose precision the multi-vectors get.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        pa = pyarrow()
        self.documents = 0
        self._schema = schema
        self._columns = _columns(schema)
        compression = dict.fromkeys(("id", "text", "metadata"), "zstd")
        self._writer = pa.parquet.ParquetWriter(
            path,
            self._columns,
            compression={name: compression.get(name, "none") for name in _leaves(self._columns)},
            use_dictionary=False,  # hardly a value is repeated
            write_statistics=False,
            write_page_checksum=True,
        )

    def write(self, documents: Sequence[Document], embeddings: M3Embeddings) -> int:
        """Append checked documents, in row groups of bounded size; return about how many bytes they take."""
        total = 0
        for start, stop, size in _groups(self._schema, documents, embeddings):
            table = _table(self._columns, self._schema, documents[start:stop], embeddings[start:stop])
            self._writer.write_table(table, row_group_size=stop - start)
            total += size
        self.documents += len(documents)
        return total

    def close(self) -> None:
        """Complete the file."""
        self._writer.close()


def write_ids(path: Path, schema: Schema, ids: Sequence[str]) -> None:
    """Write a file of ids only: documents that were removed."""
    pa = pyarrow()
    table = pa.table([pa.array(ids, pa.string())], schema=_ids(schema))
    pa.parquet.write_table(table, path, compression="zstd", use_dictionary=False, write_page_checksum=True)


def read_ids(path: Path, schema: Schema) -> list[str]:
    """Return the ids of a shard, in order.

    Raises:
        InvalidInput: The file is damaged, or of another collection than ``schema``.
    """
    with _opened(path, schema) as file:
        ids: list[str] = []
        for group in range(file.num_row_groups):
            ids += _read(path, file, group, ["id"]).column("id").to_pylist()
    return ids


def read_contents(
    path: Path, schema: Schema, wanted: np.ndarray[Any, np.dtype[np.bool_]]
) -> Iterator[tuple[list[str], list[bytes], list[str]]]:
    """Yield ids, hashes of texts and metadata of a shard's wanted documents, by row groups; raises as ``read``."""
    with _opened(path, schema) as file:
        for group, some in _wanted_groups(file, wanted):
            table = _read(path, file, group, ["id", "text_sha256", "metadata"]).filter(some)
            yield tuple(table.column(name).to_pylist() for name in ("id", "text_sha256", "metadata"))


def read(
    path: Path, schema: Schema, wanted: np.ndarray[Any, np.dtype[np.bool_]]
) -> Iterator[tuple[list[Document], M3Embeddings]]:
    """Yield the documents of a shard with their embeddings, a row group at a time.

    Args:
        path: The file.
        schema: The collection that it must be of.
        wanted: Which documents to yield, bool ``[documents]``.

    Raises:
        InvalidInput: The file is damaged, or of another collection than ``schema``.
    """
    with _opened(path, schema) as file:
        for group, some in _wanted_groups(file, wanted):
            table = _read(path, file, group, None)
            try:
                yield _contents(table if some.all() else table.filter(some), schema)
            except M3Error as error:
                raise damaged(path, error) from error
            except _errors() as error:
                raise damaged(path, error) from error


def _wanted_groups(
    file: Any, wanted: np.ndarray[Any, np.dtype[np.bool_]]
) -> Iterator[tuple[int, np.ndarray[Any, np.dtype[np.bool_]]]]:
    """Yield the row groups that have wanted documents, and which of theirs are."""
    start = 0
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        some, start = wanted[start:stop], stop
        if some.any():
            yield group, some


def _columns(schema: Schema) -> pa.Schema:
    """Return the columns of a shard of this collection."""
    pa = pyarrow()
    fields = {
        "id": pa.string(),
        "text": pa.string(),
        "metadata": pa.string(),  # a JSON object
        "text_sha256": pa.binary(32),
        "dense": pa.list_(pa.field("element", pa.float32(), nullable=False), schema.model.dimension),
    }
    if "sparse" in schema.components:
        fields |= {"sparse_ids": _list(pa.uint32()), "sparse_weights": _list(pa.float32())}
    if "multivector" in schema.components:
        # The encoded rows of a document, and their number.
        fields |= {"multivector_rows": pa.uint32(), "multivectors": pa.binary()}
    always = [pa.field(name, kind, nullable=False) for name, kind in fields.items()]
    # Unknown for documents that were read from a store.
    sometimes = [
        pa.field("truncated", pa.bool_()),
        pa.field("token_count", pa.int64()),
        pa.field("kept_token_count", pa.int64()),
    ]
    return pa.schema([*always, *sometimes], metadata=_metadata(schema))


def _ids(schema: Schema) -> pa.Schema:
    """Return the columns of a file of ids."""
    pa = pyarrow()
    return pa.schema([pa.field("id", pa.string(), nullable=False)], metadata=_metadata(schema))


def _list(kind: Any) -> Any:
    pa = pyarrow()
    return pa.list_(pa.field("element", kind, nullable=False))


def _leaves(columns: pa.Schema) -> list[str]:
    """Return the paths by which Parquet names the columns."""
    pa = pyarrow()
    nested = (pa.types.is_list, pa.types.is_fixed_size_list)
    return [
        f"{field.name}.list.element" if any(of(field.type) for of in nested) else field.name
        for field in columns
    ]


def _metadata(schema: Schema) -> dict[bytes, bytes]:
    return {_KEY: json.dumps(record_of(schema), sort_keys=True).encode()}


def _groups(
    schema: Schema, documents: Sequence[Document], embeddings: M3Embeddings
) -> Iterator[tuple[int, int, int]]:
    """Yield first document, end and size of row groups of bounded size."""
    sizes = np.array([len(d.text) + 4 * schema.model.dimension + 128 for d in documents], dtype=np.int64)
    if "sparse" in schema.components:
        sizes += 8 * np.diff(embeddings.sparse.indptr)
    if "multivector" in schema.components:
        encoded, width = schema.precision.encoded_bytes, schema.model.dimension
        sizes += [encoded(rows, width) for rows in embeddings.multivectors.counts.tolist()]
    start = total = 0
    for i, size in enumerate(sizes.tolist()):
        if i > start and (total + size > _GROUP_BYTES or i - start == _GROUP_DOCUMENTS):
            yield start, i, total
            start, total = i, 0
        total += size
    if start < len(sizes):
        yield start, len(sizes), total


def _table(
    columns: pa.Schema, schema: Schema, documents: Sequence[Document], embeddings: M3Embeddings
) -> pa.Table:
    pa = pyarrow()
    dense = pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(embeddings.dense).reshape(-1)), type=columns.field("dense").type
    )
    values: list[Any] = [
        [document.id for document in documents],
        [document.text for document in documents],
        [metadata_json(document.metadata) for document in documents],
        [hashlib.sha256(document.text.encode()).digest() for document in documents],
        dense,
    ]
    if "sparse" in schema.components:
        sparse = sp.csr_array(embeddings.sparse)
        sparse.sort_indices()
        offsets = pa.array(sparse.indptr.astype(np.int32))
        for name, entries in (
            ("sparse_ids", sparse.indices.astype(np.uint32)),
            ("sparse_weights", sparse.data),
        ):
            kind = columns.field(name).type
            values.append(pa.ListArray.from_arrays(offsets, pa.array(entries), type=kind))
    if "multivector" in schema.components:
        rows = embeddings.multivectors
        values += [rows.counts, schema.precision.encode_documents(rows)]
    known = embeddings.token_counts is not None or embeddings.truncated_count
    values += [
        embeddings.truncated if known else [None] * len(documents),
        _or_unknown(embeddings.token_counts, documents),
        _or_unknown(embeddings.kept_token_counts, documents),
    ]
    arrays = [
        value if isinstance(value, pa.Array) else pa.array(value, field.type)
        for value, field in zip(values, columns, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=columns)


def _or_unknown(counts: Any, documents: Sequence[Document]) -> Any:
    return [None] * len(documents) if counts is None else counts


class _opened:
    """Opens a shard, and checks that it is one of this collection."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._path = path
        self._schema = schema

    def __enter__(self) -> Any:
        parquet = pyarrow().parquet
        try:
            self._file = parquet.ParquetFile(self._path, page_checksum_verification=True, pre_buffer=False)
            written = (self._file.schema_arrow.metadata or {}).get(_KEY, b"null")
            record = json.loads(written)
        except FileNotFoundError:
            raise InvalidInput(
                f"{self._path} is missing.\n  Restore the file from a copy, or save the embeddings again."
            ) from None
        except _errors() as error:
            raise damaged(self._path, error) from error
        try:
            found = schema_of(record, self._path)
            self._check(found)
        except BaseException:
            self._file.close()
            raise
        return self._file

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _check(self, found: Schema) -> None:
        if (found.model, found.storage) != (self._schema.model, self._schema.storage):
            raise InvalidInput(
                f"{self._path} is of another collection ({described(found)}) than its folder "
                f"({described(self._schema)}).\n  Remove the file, and save the embeddings again."
            )
        columns, whole = self._file.schema_arrow.remove_metadata(), _columns(found).remove_metadata()
        if columns not in (whole, _ids(found).remove_metadata()):
            raise damaged(self._path, f"its columns are {', '.join(columns.names)}")


def described(schema: Schema) -> str:
    """Return model, components and precision of a schema, for messages."""
    fingerprint = (schema.model.weights_fingerprint or "unknown")[:12]
    precision = f" in {schema.precision.name}" if "multivector" in schema.components else ""
    pooling = f", {schema.storage.pooling}" if schema.storage.long_documents == "pool" else ""
    return f"{schema.model}, fingerprint {fingerprint}, {', '.join(schema.components)}{precision}{pooling}"


def _read(path: Path, file: Any, group: int, names: list[str] | None) -> pa.Table:
    try:
        table = file.read_row_group(group, columns=names, use_threads=False)
        table.validate(full=True)
    except _errors() as error:
        raise damaged(path, error) from error
    return table


def _contents(table: pa.Table, schema: Schema) -> tuple[list[Document], M3Embeddings]:
    table = table.combine_chunks()
    column = {name: table.column(name).chunk(0) for name in table.schema.names}
    texts = column["text"].to_pylist()
    for id, text, digest in zip(column["id"], texts, column["text_sha256"], strict=True):
        if hashlib.sha256(text.encode()).digest() != digest.as_py():
            raise ValueError(f"the text of document {id.as_py()!r} is not the one that was written")
    documents = [
        Document(id, text, json.loads(metadata))
        for id, text, metadata in zip(
            column["id"].to_pylist(), texts, column["metadata"].to_pylist(), strict=True
        )
    ]
    count, width = len(documents), schema.model.dimension
    dense: Float32 = column["dense"].flatten().to_numpy().reshape(count, width)
    truncated = column["truncated"].fill_null(False).to_numpy(zero_copy_only=False)
    return documents, M3Embeddings(
        dense,
        _sparse(column, schema) if "sparse" in schema.components else None,
        _multivectors(column, schema) if "multivector" in schema.components else None,
        truncated=truncated,
        model=schema.model,
        token_counts=_counts(column["token_count"]),
        kept_token_counts=_counts(column["kept_token_count"]),
    )


def _sparse(column: dict[str, Any], schema: Schema) -> sp.csr_array:
    ids, weights = column["sparse_ids"], column["sparse_weights"]
    offsets = [part.offsets.to_numpy() for part in (ids, weights)]
    if not np.array_equal(offsets[0] - offsets[0][0], offsets[1] - offsets[1][0]):
        raise ValueError("the numbers of sparse ids and weights differ")
    parts = (
        weights.flatten().to_numpy(),
        ids.flatten().to_numpy().astype(np.int64),
        (offsets[0] - offsets[0][0]).astype(np.int64),
    )
    matrix = sp.csr_array(parts, shape=(len(ids), schema.model.vocabulary_size))
    matrix.check_format(full_check=True)  # a token id beyond the vocabulary would be read out of bounds
    return matrix


def _multivectors(column: dict[str, Any], schema: Schema) -> MultiVectors:
    precision, width = schema.precision, schema.model.dimension
    encoded = column["multivectors"].to_pylist()
    for rows, part in zip(column["multivector_rows"].to_pylist(), encoded, strict=True):
        if len(part) != precision.encoded_bytes(rows, width):
            raise ValueError(
                f"{rows} multi-vector rows have {len(part)} bytes, not those of {precision.name}"
            )
    return precision.decode_documents(encoded, width)


def _counts(column: Any) -> Any:
    return None if column.null_count else column.to_numpy()


def _errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises for damaged files; a wrong size in one may ask for more memory than there is."""
    return (pyarrow().ArrowException, OSError, MemoryError, OverflowError, TypeError, ValueError, LookupError)
