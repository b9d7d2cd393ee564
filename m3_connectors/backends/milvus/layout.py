"""The layout of a collection in Milvus: its fields and indexes, and what it records about itself.

The documents' collection has one entity per document. Multi-vectors are in the same entity in packed form:
base64 of the rows in an array of texts, the only type of field that holds this size on every server (JSON and
texts are limited to 64 KB, arrays of numbers to 4,096 elements). If an entity would exceed ``max_row_bytes``,
its packed rows are stored in parts in a second collection; the keys of the parts follow from the entity's
``version``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from pymilvus import CollectionSchema, DataType, MilvusClient
from pymilvus.milvus_client.index import IndexParams

from m3_connectors.backends.base import Schema
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.milvus.errors import BACKEND
from m3_connectors.backends.milvus.naming import MAX_KEY_BYTES, PARTS, stored_name
from m3_connectors.errors import Corrupt, Rejected

DENSE_INDEXES = ("HNSW", "FLAT", "AUTOINDEX")

SCORED_EXACTLY = ("FLAT", "BRUTE_FORCE", "HNSW", "IVF_FLAT")
"""Dense indexes that keep float32 vectors and score with them."""

MAX_TEXT_BYTES = 65_535
"""The maximum size of a VARCHAR on every server."""

MAX_ELEMENTS = 4_096
"""The maximum length of an ARRAY on every server."""

MAX_DYNAMIC_BYTES = 65_536
"""The maximum size of all dynamic fields of one entity together, as JSON."""

TERM_BYTES = 32

_RECORD = "m3_connectors.schema"
_HNSW = {"M": 32, "efConstruction": 200}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names and field types of one open collection.

    Attributes:
        schema: What the collection records about itself.
        name: The name of the documents' collection in Milvus.
        terms_as_array: Whether filter terms are an ARRAY with an inverted index (servers) or one text
            (milvus-lite, which scans arrays row by row in Python).
        dense_index: The type of the dense index as the server names it.
    """

    schema: Schema
    name: str
    terms_as_array: bool
    dense_index: str

    @property
    def parts_name(self) -> str:
        """The name of the collection with the packed rows of long documents."""
        return parts_name(self.name)

    @property
    def has_parts(self) -> bool:
        """Whether that collection exists."""
        return "multivector" in self.schema.components and self.schema.storage.long_documents != "error"

    @property
    def exact_dense(self) -> bool:
        """Whether every dense search scans all vectors."""
        return self.dense_index == "FLAT"

    @property
    def rounds_dense(self) -> bool:
        """Whether dense searches may score with quantised vectors."""
        return self.dense_index not in SCORED_EXACTLY


def parts_name(name: str) -> str:
    """Return the name of the collection that holds the parts of collection ``name``."""
    return name + PARTS


def document_fields(layout: Layout, collection: str) -> CollectionSchema:
    """Return the fields of the documents' collection."""
    schema = layout.schema
    # milvus-lite drops descriptions; servers show them in their tools.
    fields = MilvusClient.create_schema(
        auto_id=False, enable_dynamic_field=True, description=_record(layout.schema, collection)
    )
    fields.add_field("key", DataType.VARCHAR, max_length=MAX_KEY_BYTES, is_primary=True)
    fields.add_field("dense", DataType.FLOAT_VECTOR, dim=schema.model.dimension)
    if "sparse" in schema.components:
        fields.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    if "multivector" in schema.components:
        _add_texts(fields, "multivector", on_server=layout.terms_as_array)
        fields.add_field("rows", DataType.INT64)
        fields.add_field("parts", DataType.INT64)
        fields.add_field("version", DataType.VARCHAR, max_length=TERM_BYTES)
    _add_texts(fields, "text", on_server=layout.terms_as_array)
    _add_texts(fields, "metadata", on_server=layout.terms_as_array)
    if layout.terms_as_array:
        fields.add_field(
            "terms",
            DataType.ARRAY,
            element_type=DataType.VARCHAR,
            max_capacity=MAX_ELEMENTS,
            max_length=TERM_BYTES,
        )
    else:
        # milvus-lite does not limit a text; this limit is that of the array.
        fields.add_field("terms", DataType.VARCHAR, max_length=MAX_ELEMENTS * (TERM_BYTES + 1))
    return fields


def document_indexes(layout: Layout) -> IndexParams:
    """Return the indexes: dense by inner product, sparse and filter terms in inverted indexes."""
    indexes = MilvusClient.prepare_index_params()
    indexes.add_index(
        "dense",
        index_type=layout.dense_index,
        metric_type="IP",
        params=_HNSW if layout.dense_index == "HNSW" else {},
    )
    if "sparse" in layout.schema.components:
        # No algorithm is set: milvus-lite refuses the option, and servers choose their fastest exact one.
        indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    if layout.terms_as_array:
        indexes.add_index("terms", index_type="INVERTED")
    return indexes


def part_fields(collection: str, *, on_server: bool) -> CollectionSchema:
    """Return the fields of the parts' collection; Milvus requires a vector, so there is an unused one."""
    fields = MilvusClient.create_schema(
        auto_id=False, enable_dynamic_field=False, description=_parts_record(collection)
    )
    fields.add_field("key", DataType.VARCHAR, max_length=2 * TERM_BYTES, is_primary=True)
    _add_texts(fields, "multivector", on_server=on_server)
    fields.add_field("idle", DataType.FLOAT_VECTOR, dim=2)
    return fields


def part_indexes() -> IndexParams:
    """Return the index that Milvus requires on the unused vector."""
    indexes = MilvusClient.prepare_index_params()
    indexes.add_index("idle", index_type="FLAT", metric_type="IP")
    return indexes


def properties(schema: Schema, collection: str) -> dict[str, str]:
    """Return the collection's own record as a property, which milvus-lite keeps."""
    return {_RECORD: _record(schema, collection)}


def parts_properties(collection: str) -> dict[str, str]:
    """Return the same for the parts' collection."""
    return {_RECORD: _parts_record(collection)}


def are_parts_of(collection: str, described: Mapping[str, Any]) -> bool:
    """Whether a collection records that it holds the parts of this collection."""
    record = _recorded(described)
    return isinstance(record, dict) and record.get("parts_of") == collection


def is_ours(described: Mapping[str, Any]) -> bool:
    """Whether a collection records that it belongs to this package."""
    record = _recorded(described)
    return isinstance(record, dict) and "schema" in record


def named_by(collection: str, described: Mapping[str, Any]) -> str:
    """Return the collection that a name refers to: itself, or the one that it is an alias of.

    Args:
        collection: The name.
        described: The response of ``describe_collection`` for it.
    """
    record = _recorded(described)
    owner = record.get("collection") if isinstance(record, dict) else None
    if not isinstance(owner, str) or stored_name(owner) == stored_name(collection):
        return collection
    return owner if described.get("collection_name") == stored_name(owner) else collection


def read_schema(collection: str, described: Mapping[str, Any]) -> Schema:
    """Return the schema that a collection records.

    Args:
        collection: The user's name of the collection.
        described: The response of ``describe_collection``.

    Raises:
        Rejected: The collection does not belong to this package, or it is another collection.
    """
    record = _recorded(described)
    try:
        owner, schema = record["collection"], record["schema"]
    except (TypeError, KeyError):
        raise Rejected(
            f'collection "{collection}" was not created by m3-connectors.\n  Use another collection name.',
            backend=BACKEND,
            operation="open",
        ) from None
    if owner != collection:
        raise Rejected(
            f'the name "{collection}" is already used by collection "{owner}".\n  Use another collection '
            "name.",
            backend=BACKEND,
            operation="open",
        )
    return Schema.from_json(schema)


def listed(name: str, described: Mapping[str, Any]) -> CollectionInfo | None:
    """Return how a collection is listed; None if it holds the parts of another one.

    Args:
        name: The name of the collection in Milvus.
        described: The response of ``describe_collection``.
    """
    record = _recorded(described)
    if isinstance(record, dict) and "parts_of" in record:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("collection"), str):
        return CollectionInfo.other(name)
    return CollectionInfo.read(record["collection"], lambda: Schema.from_json(record["schema"]))


def read_layout(collection: str, described: Mapping[str, Any], dense_index: str) -> Layout:
    """Return the layout of a collection from the server's description.

    Args:
        collection: The user's name of the collection.
        described: The response of ``describe_collection``.
        dense_index: The type of the dense index.

    Raises:
        Rejected: The collection does not belong to this package.
        Corrupt: A field is missing, or has another type.
    """
    schema = read_schema(collection, described)
    types = {field["name"]: field["type"] for field in described["fields"]}
    widths = {field["name"]: field.get("params", {}).get("dim") for field in described["fields"]}
    layout = Layout(schema, stored_name(collection), types.get("terms") == DataType.ARRAY, dense_index)
    missing = sorted(
        field.name
        for field in document_fields(layout, collection).fields
        if types.get(field.name) != field.dtype
    )
    if int(widths.get("dense") or 0) != schema.model.dimension:
        missing.append(f"dense of {schema.model.dimension} dimensions")
    if missing:
        raise Corrupt(
            f'collection "{collection}" lacks {", ".join(missing)}, or has it with another type: the server '
            "does not support it, or the collection was changed.\n  Index into another collection.",
            backend=BACKEND,
            operation="open",
        )
    return layout


def _record(schema: Schema, collection: str) -> str:
    return json.dumps({"collection": collection, "schema": schema.to_json()})


def _parts_record(collection: str) -> str:
    return json.dumps({"parts_of": collection})


def _recorded(described: Mapping[str, Any]) -> Any:
    """Return the record of a collection; None if it has no record of this package."""
    try:
        return json.loads(
            described.get("properties", {}).get(_RECORD) or described.get("description") or "null"
        )
    except ValueError:
        return None


def _add_texts(fields: CollectionSchema, name: str, *, on_server: bool) -> None:
    # Servers load every field into the memory of their query nodes. These fields are most of a document's
    # size and are read for a few hits only. milvus-lite has no such setting.
    fields.add_field(
        name,
        DataType.ARRAY,
        element_type=DataType.VARCHAR,
        max_capacity=MAX_ELEMENTS,
        max_length=MAX_TEXT_BYTES,
        **({"mmap_enabled": True} if on_server else {}),
    )
