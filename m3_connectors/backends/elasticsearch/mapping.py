"""The index of a collection: its names, its fields, and the schema that it carries in its ``_meta``.

A collection is an alias for one index (``notes`` for ``notes@1``). Writes require the alias, so that a write to a
dropped collection fails instead of making Elasticsearch create an index of guessed types; and an operator may put
another index behind the alias.
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
"""Token weights in the inverted index, which proposes candidates: Elasticsearch keeps 9 bits of each."""
SPARSE_BLOB, MULTIVECTOR_BLOB = "sparse_blob", "multivector_blob"
"""The exact values (``backends.blobs``) in doc values, outside the stored JSON."""

PARTS, PART_OF = "parts", "part_of"
"""Ids of the documents that hold a long document's multi-vectors, and in them its id."""

BUCKETS = 2**30
"""Documents are spread over so many buckets by a hash of their id, so that parts of a collection can be named."""

_META = "m3_connectors"
_MAX_NAME_BYTES = 250
_OF_TEMPLATES = ("logs-", "metrics-", "traces-", "synthetics-", "profiling-")


def alias_of(collection: str) -> str:
    """The alias of a collection: its name, with a ``+`` after each letter that was upper case.

    Raises:
        InvalidInput: It is too long for Elasticsearch.
    """
    alias = "".join(f"{letter.lower()}+" if letter.isupper() else letter for letter in collection)
    if len(alias) > _MAX_NAME_BYTES:
        raise InvalidInput(
            f"collection name {collection!r} is too long for Elasticsearch: use at most {_MAX_NAME_BYTES} characters "
            "(an upper-case one counts twice)."
        )
    return alias


def first_index_of(alias: str) -> str:
    """The index made for a new collection; ``@`` is in no collection's name.

    Elasticsearch makes a data stream of every index that is called as its own templates say (``logs-*-*``): such an
    index is called otherwise, while the collection keeps its name.
    """
    return f"m3@{alias}@1" if alias.startswith(_OF_TEMPLATES) else f"{alias}@1"


def index_body(schema: Schema, alias: str, shards: int | None, replicas: int | None) -> dict[str, Any]:
    """The request that makes the index; None leaves the cluster's own number."""
    settings = {"index.number_of_shards": shards, "index.number_of_replicas": replicas}
    return {
        "aliases": {alias: {}},
        "settings": {name: value for name, value in settings.items() if value is not None},
        "mappings": {
            "dynamic": "strict",
            "_meta": {_META: schema.to_json()},
            "_source": {"excludes": [SPARSE, SPARSE_BLOB, MULTIVECTOR_BLOB]},
            "dynamic_templates": [
                {NUMBERS: {"path_match": f"{NUMBERS}.*", "mapping": {"type": "double", "doc_values": False}}},
                {DATES: {"path_match": f"{DATES}.*", "mapping": {"type": "long", "doc_values": False}}},
            ],
            "properties": _properties(schema),
        },
    }


def _properties(schema: Schema) -> dict[str, Any]:
    only_source = {"type": "keyword", "index": False, "doc_values": False}
    properties: dict[str, Any] = {
        TEXT: only_source,
        METADATA: only_source,
        TERMS: {"type": "keyword", "doc_values": False},
        NUMBERS: {"type": "object", "dynamic": True},
        DATES: {"type": "object", "dynamic": True},
        BUCKET: {"type": "integer", "doc_values": False},
        # float32 graph, no quantisation. Not dot_product: it refuses vectors that are not of unit length.
        DENSE: {
            "type": "dense_vector",
            "dims": schema.model.dimension,
            "similarity": "max_inner_product",
            "index_options": {"type": "hnsw"},
        },
    }
    if "sparse" in schema.components:
        properties[SPARSE] = {"type": "sparse_vector"}
        properties[SPARSE_BLOB] = {"type": "binary", "doc_values": True}
    if "multivector" in schema.components:
        properties[MULTIVECTOR_BLOB] = {"type": "binary", "doc_values": True}
        properties[ROWS] = {"type": "integer", "index": False}
        properties[PARTS] = {"type": "keyword", "index": False}
        properties[PART_OF] = {"type": "keyword", "doc_values": False}
    return properties


def our_index(answer: Mapping[str, Any], collection: str, operation: str) -> str:
    """The one index of ours behind the alias, from a non-empty answer to ``GET /ALIAS``.

    Raises:
        Rejected: The name is another program's, or stands for several indices.
    """
    where = {"backend": BACKEND, "operation": operation}
    if len(answer) > 1:
        raise Rejected(f'"{collection}" stands for several indices ({", ".join(sorted(answer))}).', **where)
    name, index = next(iter(answer.items()))
    if _META not in index.get("mappings", {}).get("_meta", {}):
        raise Rejected(
            f'the index "{name}" was not made by m3-connectors.\n  Use another collection name.', **where
        )
    return name


def listed(answer: Mapping[str, Any]) -> list[CollectionInfo]:
    """The collections of a server, from the answer to ``GET /_all``; another program's index by its own name."""
    found: dict[str, CollectionInfo] = {}
    for index, described in answer.items():
        record = described.get("mappings", {}).get("_meta", {}).get(_META)
        for alias in described.get("aliases", {}) if record else ():
            name = _collection_of(alias)
            found[name] = CollectionInfo.read(name, lambda record=record: Schema.from_json(record))  # type: ignore[misc]
        if record is None and not index.startswith("."):  # Elasticsearch's own begin with a dot
            found[index] = CollectionInfo.other(index)
    return list(found.values())


def _collection_of(alias: str) -> str:
    """The collection of an alias: the inverse of ``alias_of``."""
    return re.sub(r"([a-z])\+", lambda found: found[1].upper(), alias)


def read_schema(answer: Mapping[str, Any], collection: str) -> Schema:
    """The schema that the index records, from the answer to ``GET /ALIAS``.

    Raises:
        CollectionNotFound: No index is behind the name.
        Rejected: The name is another program's, or stands for several indices.
        Corrupt: The schema cannot be read, or a field is missing or of another type.
    """
    where = {"backend": BACKEND, "operation": "open"}
    if not answer:
        raise CollectionNotFound(f'no collection "{collection}".', **where)
    name = our_index(answer, collection, "open")
    mappings = answer[name]["mappings"]
    try:
        schema = Schema.from_json(mappings["_meta"][_META])
    except (InvalidInput, KeyError, TypeError, ValueError) as error:
        raise Corrupt(f'the index "{name}" records no readable schema: {error}', **where) from error
    found = mappings.get("properties", {})
    for field, expected in _properties(schema).items():
        # An object is answered without its type.
        kind = found.get(field, {}).get("type", "object" if field in found else None)
        if kind != expected["type"] or found[field].get("dims") != expected.get("dims"):
            raise Corrupt(
                f'the field "{field}" of index "{name}" is {kind or "missing"}; it must be {expected["type"]}.\n'
                "  Index the documents again, into another collection.",
                **where,
            )
    return schema
