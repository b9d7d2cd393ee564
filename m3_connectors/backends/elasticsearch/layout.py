"""The index of a collection: its names, its fields, and the schema that is stored in its ``_meta``.

A collection is an alias of one index (``notes`` for ``notes@1``). Writes require the alias. A write to a
dropped collection therefore fails, instead of creating an index with guessed field types, and an operator may
point the alias to another index.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from m3_connectors.backends.base import Schema
from m3_connectors.backends.elasticsearch.filters import DATES, NUMBERS, TERMS
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.errors import CollectionNotFound, Corrupt, InvalidInput, Rejected

BACKEND = "elasticsearch"

TEXT, METADATA, BUCKET, DENSE, ROWS = "text", "metadata", "bucket", "dense", "rows"
SPARSE = "sparse"
"""Token weights in the inverted index, which lists candidates: Elasticsearch keeps 9 bits of each weight."""
SPARSE_BLOB, MULTIVECTOR_BLOB = "sparse_blob", "multivector_blob"
"""The exact values (``backends.blobs``) in doc values, outside the stored JSON."""
MULTIVECTOR = "multivector"
"""The same as ``MULTIVECTOR_BLOB``, for compact precisions, in a stored field: the server returns its bytes as they
are (in CBOR), where those of doc values are returned in base64. 200 documents of 77 kB took 25 ms instead of 105."""

PARTS, PART_OF = "parts", "part_of"
"""The ids of the documents that hold a long document's multi-vectors, and in each of those the document's
id."""

BUCKETS = 2**30
"""The number of buckets that documents are assigned to by a hash of their id, so that a collection can be
divided."""

OUTSIDE_SOURCE = (SPARSE, SPARSE_BLOB, MULTIVECTOR_BLOB, MULTIVECTOR)
"""Fields that are left out of the stored JSON."""

DYNAMIC_TEMPLATES: list[dict[str, Any]] = [
    {NUMBERS: {"path_match": f"{NUMBERS}.*", "mapping": {"type": "double", "doc_values": False}}},
    {DATES: {"path_match": f"{DATES}.*", "mapping": {"type": "long", "doc_values": False}}},
]
"""The types of the numbers and dates of metadata, field by field."""

_META = "m3_connectors"
_MAX_NAME_BYTES = 250
_RENAMED = "m3@"
_OF_TEMPLATES = ("logs-", "metrics-", "traces-", "synthetics-", "profiling-")


def alias_of(collection: str) -> str:
    """Return the alias of a collection: its name in lower case, with a ``+`` after each upper-case letter.

    Raises:
        InvalidInput: The name is too long for Elasticsearch.
    """
    alias = "".join(f"{letter.lower()}+" if letter.isupper() else letter for letter in collection)
    if len(alias) > _MAX_NAME_BYTES:
        raise InvalidInput(
            f"collection name {collection!r} is too long for Elasticsearch.\n"
            f"  Use at most {_MAX_NAME_BYTES} characters; an upper-case letter counts twice."
        )
    return alias


def first_index_of(alias: str) -> str:
    """Return the name of the index of a new collection; no collection name contains ``@``.

    Elasticsearch creates a data stream for every index whose name matches its built-in templates
    (``logs-*-*``). Such an index gets another name, and the collection keeps its own.
    """
    return f"{_RENAMED}{alias}@1" if alias.startswith(_OF_TEMPLATES) else f"{alias}@1"


def index_body(schema: Schema, alias: str, shards: int | None, replicas: int | None) -> dict[str, Any]:
    """Return the request that creates the index; None leaves the choice to the cluster."""
    settings = {
        "index.number_of_shards": shards,
        "index.number_of_replicas": replicas,
        # With the opposite value, from a template, fields beyond the limit would be dropped without an error.
        "index.mapping.total_fields.ignore_dynamic_beyond_limit": False,
    }
    properties = properties_of(schema)
    return {
        "aliases": {alias: {}},
        "settings": {name: value for name, value in settings.items() if value is not None},
        "mappings": {
            "dynamic": "strict",
            "_meta": meta_of(schema),
            "_source": {"excludes": [SPARSE, SPARSE_BLOB, multivector_field(schema)]},
            "dynamic_templates": DYNAMIC_TEMPLATES,
            "properties": properties,
        },
    }


def meta_of(schema: Schema) -> dict[str, Any]:
    """Return the record of a collection, which is the ``_meta`` of its mapping."""
    return {_META: schema.to_json()}


def properties_of(schema: Schema) -> dict[str, Any]:
    """Return the fields of a collection."""
    only_source = {"type": "keyword", "index": False, "doc_values": False}
    properties: dict[str, Any] = {
        TEXT: only_source,
        METADATA: only_source,
        TERMS: {"type": "keyword", "doc_values": False},
        NUMBERS: {"type": "object", "dynamic": True},
        DATES: {"type": "object", "dynamic": True},
        BUCKET: {"type": "integer", "doc_values": False},
        # A float32 graph without quantisation. dot_product would refuse vectors that are not of unit length.
        DENSE: {
            "type": "dense_vector",
            "dims": schema.model.dimension,
            "similarity": "max_inner_product",
            "index_options": {"type": "hnsw"},
        },
    }
    if "sparse" in schema.written:
        properties[SPARSE] = {"type": "sparse_vector"}
        properties[SPARSE_BLOB] = {"type": "binary", "doc_values": True}
    if "multivector" in schema.written:
        stored = {"store": True} if multivector_field(schema) == MULTIVECTOR else {"doc_values": True}
        properties[multivector_field(schema)] = {"type": "binary", **stored}
        properties[ROWS] = {"type": "integer", "index": False}
        properties[PARTS] = {"type": "keyword", "index": False}
        properties[PART_OF] = {"type": "keyword", "doc_values": False}
    return properties


def multivector_field(schema: Schema) -> str:
    """Return the field with the multi-vectors of a collection."""
    return MULTIVECTOR_BLOB if schema.precision.engine_dtype else MULTIVECTOR


def our_index(answer: Mapping[str, Any], collection: str, operation: str) -> str:
    """Return the one index of this package behind the alias, from a non-empty response to ``GET /ALIAS``.

    Raises:
        Rejected: The name belongs to another program or a data stream, or is an alias of several indices.
    """
    where = {"backend": BACKEND, "operation": operation}
    streams = sorted({index["data_stream"] for index in answer.values() if "data_stream" in index})
    if streams:
        raise Rejected(
            f'"{collection}" is the data stream "{streams[0]}", which was not created by m3-connectors.\n'
            "  Use another collection name.",
            **where,
        )
    if len(answer) > 1:
        raise Rejected(
            f'"{collection}" is an alias of several indices ({", ".join(sorted(answer))}); a collection has '
            "one.\n"
            "  Use the name of a collection, or remove the alias from all indices but one.",
            **where,
        )
    name, index = next(iter(answer.items()))
    if _META not in index.get("mappings", {}).get("_meta", {}):
        raise Rejected(
            f'the index "{name}" was not created by m3-connectors.\n  Use another collection name.', **where
        )
    return name


def listed(answer: Mapping[str, Any]) -> list[CollectionInfo]:
    """Return the collections in the response to ``GET /_all``; other indices by their own names."""
    found: dict[str, CollectionInfo] = {}
    for index, described in answer.items():
        record = described.get("mappings", {}).get("_meta", {}).get(_META)
        for alias in described.get("aliases", {}) if record else ():
            name = _collection_of(alias)
            found[name] = CollectionInfo.read(name, lambda record=record: Schema.from_json(record))  # type: ignore[misc]
        if record is None and not index.startswith("."):  # system indices of Elasticsearch begin with a dot
            found[index] = CollectionInfo.other(index)
    return list(found.values())


def _collection_of(alias: str) -> str:
    """Return the collection of an alias: the inverse of ``alias_of``."""
    return re.sub(r"([a-z])\+", lambda found: found[1].upper(), alias)


def droppable_index(answer: Mapping[str, Any], collection: str) -> str:
    """Return the index to delete with the collection, from a non-empty response to ``GET /ALIAS``.

    An alias that an operator gave to the index of another collection must not be dropped as a collection: the
    other collection would lose its documents. An index belongs to the collection that it is named after, or
    whose alias is its only alias.

    Raises:
        Rejected: The index belongs to another collection, or not to this package.
    """
    name = our_index(answer, collection, "drop")
    alias = alias_of(collection)
    others = sorted(set(answer[name].get("aliases", {})) - {alias})
    if others and not name.removeprefix(_RENAMED).startswith(f"{alias}@"):
        raise Rejected(
            f'"{collection}" is an alias of the index "{name}", which also has the names '
            f"{', '.join(map(repr, others))}; nothing was removed.\n"
            f"  Drop the collection by its own name, or remove only the alias: "
            f'POST /_aliases {{"actions": [{{"remove": {{"index": "{name}", "alias": "{alias}"}}}}]}}.',
            backend=BACKEND,
            operation="drop",
        )
    return name


def read_schema(answer: Mapping[str, Any], collection: str) -> Schema:
    """Return the schema that the index records, from the response to ``GET /ALIAS``.

    Raises:
        CollectionNotFound: There is no index with this name.
        Rejected: The name belongs to another program, or is an alias of several indices.
        Corrupt: The schema cannot be read.
    """
    where = {"backend": BACKEND, "operation": "open"}
    if not answer:
        raise CollectionNotFound(
            f'there is no collection "{collection}".\n  Create it, or list the collections with m3 '
            "collections URL.",
            **where,
        )
    name = our_index(answer, collection, "open")
    try:
        return Schema.from_json(answer[name]["mappings"]["_meta"][_META])
    except (InvalidInput, KeyError, TypeError, ValueError) as error:
        raise Corrupt(
            f'the index "{name}" has no readable schema: {error}\n  Index into another collection.', **where
        ) from error
