"""A collection on a Qdrant server: creation, checks when it is opened, its limits, indexes and optimisation."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any, Literal

import anyio
from qdrant_client import models

from m3_connectors.backends.base import Schema
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.qdrant.carried import CARRIER
from m3_connectors.backends.qdrant.layout import Layout
from m3_connectors.backends.qdrant.payload import DATES, FLAGS, LARGE, METADATA, keys_of, paths_of
from m3_connectors.backends.qdrant.server.connection import Connection
from m3_connectors.backends.qdrant.server.errors import BACKEND, optimiser_failed
from m3_connectors.backends.qdrant.server.wire import applied
from m3_connectors.errors import (
    AlreadyExists,
    CollectionNotFound,
    Corrupt,
    InvalidInput,
    Rejected,
    TimedOut,
    Unauthorised,
    Unsupported,
)

METADATA_KEY = "m3_connectors"
"""The key in the collection's metadata whose value is the schema, as JSON text."""

CREATION_KEY = "m3_connectors_creation"
"""The key whose value identifies the call that created the collection, so that a retry recognises its own
first try."""

_OPTIMIZE_SECONDS = 3600.0
_LOOK_EVERY_SECONDS = 0.5

IndexType = Literal["keyword", "number", "date", "bool"]

INDEX_TYPES: dict[str, tuple[tuple[str, models.PayloadSchemaType], ...]] = {
    "keyword": ((METADATA, models.PayloadSchemaType.KEYWORD),),
    # Never INTEGER: such an index leaves out 2.5 and 2.0, and a filter on it would miss documents.
    "number": ((METADATA, models.PayloadSchemaType.FLOAT), (LARGE, models.PayloadSchemaType.KEYWORD)),
    # A date can also be compared as a text, or be missing: both conditions use the values themselves.
    "date": ((DATES, models.PayloadSchemaType.DATETIME), (METADATA, models.PayloadSchemaType.KEYWORD)),
    "bool": ((FLAGS, models.PayloadSchemaType.KEYWORD), (METADATA, models.PayloadSchemaType.KEYWORD)),
}
"""The trees of the payload that filters on a field of a type use (``conditions``), with the matching
index."""


def indexes_of(field: str, kind: IndexType) -> list[tuple[str, models.PayloadSchemaType]]:
    """Return the payload paths of a metadata field that are indexed, with their index types."""
    return [(path, type_) for tree, type_ in INDEX_TYPES[kind] for path in paths_of(tree, field)]


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of the collection's strict mode; None where there is no limit.

    Attributes:
        exact: Whether a search may scan all points.
        query: The maximum number of results of one search, and of one page.
        hnsw_ef: The maximum width of an approximate search.
        searches: The maximum number of searches in one request.
        upserts: The maximum number of points in one write of documents.
        writes: The maximum number of points that one request may change.
        condition: The maximum number of values in one condition, such as ids.
    """

    exact: bool = True
    query: int | None = None
    hnsw_ef: int | None = None
    searches: int | None = None
    upserts: int | None = None
    writes: int | None = None
    condition: int | None = None

    def at_once(self, most: int) -> int:
        """Return how many points a search may cover: at most ``most``, within the limits of strict mode."""
        return min(most, self.query or most, self.condition or most)

    def check_list(self, limit: int) -> None:
        """Raise Unsupported for a list that is longer than the limit of a response."""
        if self.query is not None and limit > self.query:
            raise Unsupported(
                f"the method needs a list of {limit:,} candidates; the collection's strict mode allows "
                f"{self.query:,} (max_query_limit).\n  Use a method with shorter lists, such as "
                f'Method("shallow", {{"dense": {self.query}}}, weights), and k up to {self.query}, or raise '
                "the limit."
            )


def creation(schema: Schema, *, shards: int | None) -> dict[str, Any]:
    """Return the arguments of ``create_collection``."""
    layout = Layout.of(schema)
    width = schema.model.dimension
    # Inner products: COSINE would normalise the stored vectors.
    vectors = {"dense": models.VectorParams(size=width, distance=models.Distance.DOT)}
    for name in layout.multivectors:
        vectors[name] = models.VectorParams(
            size=layout.row_width,
            distance=models.Distance.DOT,
            datatype=models.Datatype(schema.precision.engine_dtype or CARRIER),
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            # Only scored by id, so no graph, and no memory beyond the page cache. ``memory=cold`` means the
            # same since 1.19, but older servers do not have it.
            hnsw_config=models.HnswConfigDiff(m=0),
            on_disk=True,
        )
    # Without a modifier: plain inner products. IDF would be applied in addition to the model's own weights.
    sparse = {"sparse": models.SparseVectorParams()} if "sparse" in schema.components else None
    record = json.dumps(schema.to_json(), ensure_ascii=False)
    metadata = {METADATA_KEY: record, CREATION_KEY: uuid.uuid4().hex}
    return {
        "vectors_config": vectors,
        "sparse_vectors_config": sparse,
        "metadata": metadata,
        "shard_number": shards,
    }


def check_ours(info: models.CollectionInfo, collection: str, operation: str) -> Schema:
    """Return the schema that the collection records.

    Raises:
        Rejected: Another program created the collection.
        Corrupt: The record cannot be read.
    """
    record = (info.config.metadata or {}).get(METADATA_KEY)
    if record is None:
        raise Rejected(
            f'a collection "{collection}" exists, but it was not created by m3-connectors.\n'
            "  Use another collection name; nothing was changed.",
            backend=BACKEND,
            operation=operation,
        )
    try:
        return Schema.from_json(json.loads(record))
    except InvalidInput:
        raise
    except (ValueError, KeyError, TypeError) as error:
        message = f'the record of collection "{collection}" cannot be read: {error}\n  Index into another collection.'
        raise Corrupt(message, backend=BACKEND, operation=operation) from error


def check_vectors(info: models.CollectionInfo, collection: str, schema: Schema) -> None:
    """Raise Corrupt unless the collection has the vectors that its schema requires.

    Since 1.18 a vector can be dropped from a live collection, and any client can create it again in another
    form.
    """
    found = info.config.params.vectors
    vectors = found if isinstance(found, dict) else {}
    layout = Layout.of(schema)
    multivectors = layout.multivectors
    float_of_rows = schema.precision.engine_dtype or CARRIER
    problem = None
    for name in ("dense", *multivectors):
        params = vectors.get(name)
        width = layout.row_width if name in multivectors else schema.model.dimension
        if params is None:
            problem = f'the vector "{name}" is missing'
        elif params.size != width:
            whose = "the model has" if name == "dense" or layout.scores_rows else "its rows take"
            problem = f'the vector "{name}" has {params.size} dimensions, but {whose} {width}'
        elif params.distance != models.Distance.DOT:
            problem = f'the vector "{name}" is compared by {params.distance.value}, not by inner product'
        elif name in multivectors and params.multivector_config is None:
            problem = f'the vector "{name}" has one row instead of many'
        elif _datatype(params.datatype) != (kept := float_of_rows if name in multivectors else "float32"):
            problem = f'the vector "{name}" is stored as {_datatype(params.datatype)}, not as {kept}'
        if problem:
            break
    sparse = info.config.params.sparse_vectors or {}
    if problem is None and "sparse" in schema.components:
        if "sparse" not in sparse:
            problem = 'the vector "sparse" is missing'
        elif sparse["sparse"].modifier not in (None, models.Modifier.NONE):
            problem = 'the vector "sparse" has a modifier (IDF), which changes its scores'
        elif (index := sparse["sparse"].index) is not None and _datatype(index.datatype) != "float32":
            problem = (
                f'the vector "sparse" has an index of type {_datatype(index.datatype)}, which rounds scores'
            )
    if problem:
        raise Corrupt(
            f'collection "{collection}" was changed: {problem}.\n'
            "  Index the documents into a new collection; other tools can still read the data in this one.",
            backend=BACKEND,
            operation="open",
        )


def _datatype(said: models.Datatype | None) -> str:
    return "float32" if said is None else said.value


def check_scorable(info: models.CollectionInfo, collection: str, layout: Layout, limits: Limits) -> None:
    """Raise Unsupported if multi-vectors could not be scored exactly.

    If strict mode forbids exact searches, multi-vectors are scored in a second stage, which is exact only
    without a
    graph: if a graph misses a part of a split document, the score would be too low without any error.
    """
    if not layout.scores_rows:
        return
    found = info.config.params.vectors
    vectors = found if isinstance(found, dict) else {}
    for name in layout.multivectors:
        m = links_of(info, vectors[name])
        if m and not limits.exact:
            raise Unsupported(
                f'the vector "{name}" of collection "{collection}" has a graph (hnsw_config.m is {m}), and '
                "strict mode forbids exact searches (search_allow_exact is false), so multi-vector scores "
                "would be incomplete.\n"
                "  Set hnsw_config.m of its multi_… vectors back to 0, or set search_allow_exact to true."
            )


def links_of(info: models.CollectionInfo, params: models.VectorParams) -> int:
    """Return the links per point in a vector's graph; 0 means no graph, so every search scans all points."""
    own = params.hnsw_config.m if params.hnsw_config is not None else None
    return info.config.hnsw_config.m if own is None else own


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def limits_of(info: models.CollectionInfo) -> Limits:
    """Return the limits of the collection's strict mode."""
    strict = info.config.strict_mode_config
    if strict is None or not strict.enabled:
        return Limits()
    return Limits(
        exact=strict.search_allow_exact is not False,
        query=strict.max_query_limit,
        hnsw_ef=strict.search_max_hnsw_ef,
        searches=strict.search_max_batchsize,
        # A write costs one token per point; a request that costs more than the limit of a minute never
        # succeeds.
        upserts=_least(strict.upsert_max_batchsize, strict.write_rate_limit),
        writes=strict.write_rate_limit,
        condition=strict.condition_max_size,
    )


async def what_is(connection: Connection, name: str, operation: str) -> str:
    """Return the beginning of a message: that a collection exists, or which one the name is an alias of."""
    there = f'collection "{name}" already exists'
    try:
        aliases = (await connection.call(operation, connection.client.get_aliases)).aliases
    except Unauthorised:  # the key is for this collection only
        return there
    behind = next((alias.collection_name for alias in aliases if alias.alias_name == name), None)
    return there if behind is None else f'"{name}" is an alias of collection "{behind}"'


async def make_indexes(
    connection: Connection, collection: str, info: models.CollectionInfo, indexes: Mapping[str, IndexType]
) -> None:
    """Create the declared payload indexes that are missing; a read-only key fails only if one is missing."""
    there = {tuple(keys_of(path)): index.data_type for path, index in info.payload_schema.items()}
    client = connection.client
    wanted = [index for field, kind in indexes.items() for index in indexes_of(field, kind)]
    for key, type_ in wanted:
        if there.get(tuple(keys_of(key))) != type_:
            make = functools.partial(client.create_payload_index, collection, key, type_, wait=True)
            await connection.call("index", functools.partial(applied, "index", make))


async def wait_optimized(connection: Connection, collection: str) -> None:
    """Wait until the server has optimised all writes: green twice, because it starts a moment after a write.

    Raises:
        Rejected: The optimiser failed, or the collection is red.
        StorageFull: The optimiser failed for lack of space.
        TimedOut: It takes more than an hour; the server continues.
    """
    client = connection.client
    wake = functools.partial(
        client.update_collection, collection, optimizers_config=models.OptimizersConfigDiff()
    )
    began, greens, woken = time.monotonic(), 0, False
    while True:
        info = await connection.call("optimize", lambda: client.get_collection(collection))
        if isinstance(info.optimizer_status, models.OptimizersStatusOneOf1):
            raise optimiser_failed(info.optimizer_status.error, connection.url)
        if info.status is models.CollectionStatus.RED:
            raise optimiser_failed(f'collection "{collection}" is red', connection.url)
        greens = greens + 1 if info.status is models.CollectionStatus.GREEN else 0
        if greens == 2:
            return
        if info.status is models.CollectionStatus.GREY and not woken:
            # The server has seen no write since its start; an update without changes starts the optimiser.
            await connection.call("optimize", wake)
            woken = True
        if time.monotonic() - began > _OPTIMIZE_SECONDS:
            raise TimedOut(
                f'collection "{collection}" at {connection.url} is not optimised after '
                f"{_OPTIMIZE_SECONDS / 60:.0f} minutes; the server continues.\n"
                "  Call optimize again to wait longer; searches are correct in the meantime.",
                backend=BACKEND,
                operation="optimize",
            )
        await anyio.sleep(_LOOK_EVERY_SECONDS)


async def create(connection: Connection, collection: str, schema: Schema, shards: int | None) -> None:
    """Create a collection.

    Raises:
        AlreadyExists: The collection, or an alias of this name, exists.
    """
    client = connection.client
    arguments = creation(schema, shards=shards)
    metadata = arguments["metadata"]
    exists = False
    try:
        await connection.call("create", lambda: client.create_collection(collection, **arguments))
    except AlreadyExists:
        exists = True
    info = await info_of(connection, collection, "create")
    found = (info and info.config.metadata) or {}
    # It may still be our collection, if only the response of our first try was lost.
    if exists and found.get(CREATION_KEY) != metadata[CREATION_KEY]:
        what = await what_is(connection, collection, "create")
        message = f"{what}; nothing was created.\n  Open it, or use another name."
        raise AlreadyExists(message, backend=BACKEND, operation="create")
    if METADATA_KEY not in found:
        # That an update sets the metadata was measured; that creation does is documented since 1.16.
        await connection.call("create", lambda: client.update_collection(collection, metadata=metadata))


async def drop(connection: Connection, collection: str) -> None:
    """Remove a collection with its documents, if it exists.

    Raises:
        Rejected: The name belongs to another program, or is an alias.
    """
    info = await info_of(connection, collection, "drop")
    if info is not None:
        check_ours(info, collection, "drop")
        client = connection.client
        dropped = await connection.call("drop", lambda: client.delete_collection(collection))
        # False means that the collection no longer exists, or that the name is an alias, which stays
        # unchanged.
        if not dropped and await info_of(connection, collection, "drop") is not None:
            what = await what_is(connection, collection, "drop")
            message = f"{what}; nothing was removed or changed.\n  Drop the collection by its own name."
            raise Rejected(message, backend=BACKEND, operation="drop")


async def info_of(connection: Connection, collection: str, operation: str) -> models.CollectionInfo | None:
    """Return what the server says about a collection; None if it does not exist."""
    client = connection.client
    try:
        return await connection.call(operation, lambda: client.get_collection(collection))
    except CollectionNotFound:
        return None


async def on_server(connection: Connection) -> list[CollectionInfo]:
    """Return all collections of the server."""
    client = connection.client
    answer = await connection.call("list", client.get_collections)
    found = []
    for name in [one.name for one in answer.collections]:
        with contextlib.suppress(CollectionNotFound):  # dropped in the meantime
            info = await connection.call("list", functools.partial(client.get_collection, name))
            ours = METADATA_KEY in (info.config.metadata or {})
            found.append(
                CollectionInfo.read(name, functools.partial(check_ours, info, name, "list"))
                if ours
                else CollectionInfo.other(name)
            )
    return found
