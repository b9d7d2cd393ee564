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

OUTSIDE_SOURCE = (SPARSE, SPARSE_BLOB, MULTIVECTOR_BLOB)
"""Fields that are not kept in the stored JSON."""

DYNAMIC_TEMPLATES: list[dict[str, Any]] = [
    {NUMBERS: {"path_match": f"{NUMBERS}.*", "mapping": {"type": "double", "doc_values": False}}},
    {DATES: {"path_match": f"{DATES}.*", "mapping": {"type": "long", "doc_values": False}}},
]
"""What gives numbers and dates of metadata their types, field by field."""

_META = "m3_connectors"
_MAX_NAME_BYTES = 250
_RENAMED = "m3@"
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
    return f"{_RENAMED}{alias}@1" if alias.startswith(_OF_TEMPLATES) else f"{alias}@1"


def index_body(schema: Schema, alias: str, shards: int | None, replicas: int | None) -> dict[str, Any]:
    """The request that makes the index; None leaves the cluster's own number."""
    settings = {
        "index.number_of_shards": shards,
        "index.number_of_replicas": replicas,
        # A template may say otherwise, and then fields beyond the limit would be left out without an error.
        "index.mapping.total_fields.ignore_dynamic_beyond_limit": False,
    }
    return {
        "aliases": {alias: {}},
        "settings": {name: value for name, value in settings.items() if value is not None},
        "mappings": {
            "dynamic": "strict",
            "_meta": {_META: schema.to_json()},
            "_source": {"excludes": list(OUTSIDE_SOURCE)},
            "dynamic_templates": DYNAMIC_TEMPLATES,
            "properties": properties_of(schema),
        },
    }


def properties_of(schema: Schema) -> dict[str, Any]:
    """The fields of a collection."""
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
        Rejected: The name is another program's, a data stream's, or stands for several indices.
    """
    where = {"backend": BACKEND, "operation": operation}
    streams = sorted({index["data_stream"] for index in answer.values() if "data_stream" in index})
    if streams:
        raise Rejected(
            f'"{collection}" is the data stream "{streams[0]}", which was not made by m3-connectors.\n'
            "  Use another collection name.",
            **where,
        )
    if len(answer) > 1:
        raise Rejected(
            f'"{collection}" is an alias of several indices ({", ".join(sorted(answer))}), and a collection is one.\n'
            "  Use the name of a collection, or leave the alias with one index.",
            **where,
        )
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


def droppable_index(answer: Mapping[str, Any], collection: str) -> str:
    """The index that goes with the collection, from a non-empty answer to ``GET /ALIAS``.

    An alias that an operator gave to another collection's index is not a collection to drop: the other one would lose
    its documents. An index belongs to the collection that it is named after, or whose alias is its only one.

    Raises:
        Rejected: The index is another collection's, or not of this package.
    """
    name = our_index(answer, collection, "drop")
    alias = alias_of(collection)
    others = sorted(set(answer[name].get("aliases", {})) - {alias})
    if others and not name.removeprefix(_RENAMED).startswith(f"{alias}@"):
        raise Rejected(
            f'"{collection}" is an alias of the index "{name}", which is also {", ".join(map(repr, others))}: nothing '
            f"was removed.\n  Drop the collection by its own name, or remove the alias alone: "
            f'POST /_aliases {{"actions": [{{"remove": {{"index": "{name}", "alias": "{alias}"}}}}]}}.',
            backend=BACKEND,
            operation="drop",
        )
    return name


def read_schema(answer: Mapping[str, Any], collection: str) -> Schema:
    """The schema that the index records, from the answer to ``GET /ALIAS``.

    Raises:
        CollectionNotFound: No index is behind the name.
        Rejected: The name is another program's, or stands for several indices.
        Corrupt: The schema cannot be read.
    """
    where = {"backend": BACKEND, "operation": "open"}
    if not answer:
        raise CollectionNotFound(f'no collection "{collection}".', **where)
    name = our_index(answer, collection, "open")
    try:
        return Schema.from_json(answer[name]["mappings"]["_meta"][_META])
    except (InvalidInput, KeyError, TypeError, ValueError) as error:
        raise Corrupt(f'the index "{name}" records no readable schema: {error}', **where) from error
