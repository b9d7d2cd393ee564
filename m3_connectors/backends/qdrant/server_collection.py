"""A collection on a Qdrant server: how it is made, what it must look like when it is opened, what it limits."""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import Any, Literal

from qdrant_client import models

from m3_connectors.backends.base import Schema
from m3_connectors.backends.qdrant.layout import Layout
from m3_connectors.backends.qdrant.payload import DATES, FLAGS, LARGE, METADATA, paths_of
from m3_connectors.backends.qdrant.server_errors import BACKEND
from m3_connectors.errors import Corrupt, InvalidInput, Rejected, Unsupported

METADATA_KEY = "m3_connectors"
"""Under it the collection's own metadata hold our schema, as JSON text."""

CREATION_KEY = "m3_connectors_creation"
"""Under it they hold a mark of the one call that made it, so that a second try of it knows its own first."""

IndexType = Literal["keyword", "number", "date", "bool"]

INDEX_TYPES: dict[str, tuple[tuple[str, models.PayloadSchemaType], ...]] = {
    "keyword": ((METADATA, models.PayloadSchemaType.KEYWORD),),
    # Never INTEGER: such an index does not see 2.5 or 2.0, and a filter on it would miss documents.
    "number": ((METADATA, models.PayloadSchemaType.FLOAT), (LARGE, models.PayloadSchemaType.KEYWORD)),
    # A date is also equal to a text, and may be missing: both are asked of the values themselves.
    "date": ((DATES, models.PayloadSchemaType.DATETIME), (METADATA, models.PayloadSchemaType.KEYWORD)),
    "bool": ((FLAGS, models.PayloadSchemaType.KEYWORD), (METADATA, models.PayloadSchemaType.KEYWORD)),
}
"""Where in the payload what filters ask of a field of a type is (``conditions``), and the index that fits it."""


def indexes_of(field: str, kind: IndexType) -> list[tuple[str, models.PayloadSchemaType]]:
    """The payload paths of a metadata field that are indexed, with their index types."""
    return [(path, type_) for tree, type_ in INDEX_TYPES[kind] for path in paths_of(tree, field)]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the collection's strict mode refuses; None where it does not care.

    Attributes:
        exact: Whether a search may compare with every point.
        query: Most answers of one search, and of one page.
        hnsw_ef: Widest approximate search.
        searches: Most searches in one request.
        upserts: Most points in one write of documents.
        writes: Most points that one request may change.
        condition: Most values in one condition, ids among them.
    """

    exact: bool = True
    query: int | None = None
    hnsw_ef: int | None = None
    searches: int | None = None
    upserts: int | None = None
    writes: int | None = None
    condition: int | None = None

    def at_once(self, most: int) -> int:
        """How many points one search may be about: at most so many, and as many as a list and a condition hold."""
        return min(most, self.query or most, self.condition or most)

    def check_list(self, limit: int) -> None:
        """Raise Unsupported for a list that is longer than an answer may be."""
        if self.query is not None and limit > self.query:
            raise Unsupported(
                f"a list of {limit:,} candidates is asked for; the collection's strict mode answers {self.query:,} at "
                f"most (max_query_limit).\n  Use a method whose lists are no longer, "
                f'Method("shallow", {{"dense": {self.query}}}, weights), and k up to {self.query}, or raise the limit.'
            )


def creation(schema: Schema, *, shards: int | None) -> dict[str, Any]:
    """The arguments of ``create_collection``."""
    layout = Layout.of(schema)
    width = schema.model.dimension
    float16 = schema.storage.multivector_dtype == "float16"
    # Inner products: COSINE would store other vectors than those given.
    vectors = {"dense": models.VectorParams(size=width, distance=models.Distance.DOT)}
    for name in layout.multivectors:
        vectors[name] = models.VectorParams(
            size=width,
            distance=models.Distance.DOT,
            datatype=models.Datatype.FLOAT16 if float16 else models.Datatype.FLOAT32,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            # Only ever scored by id: no graph, and no memory beyond the page cache. ``memory=cold`` says the same
            # since 1.19, but not to the servers before.
            hnsw_config=models.HnswConfigDiff(m=0),
            on_disk=True,
        )
    # No modifier: plain inner products; IDF would be applied on top of the model's own weights.
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
    """The schema that the collection records.

    Raises:
        Rejected: Another program made it.
        Corrupt: Its record cannot be read.
    """
    record = (info.config.metadata or {}).get(METADATA_KEY)
    if record is None:
        raise Rejected(
            f'a collection "{collection}" is there, but m3-connectors did not make it.\n'
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
    """Raise Corrupt unless the collection has the vectors that its schema promises.

    Since 1.18 a vector can be dropped from a live collection, and any client may recreate it otherwise.
    """
    found = info.config.params.vectors
    vectors = found if isinstance(found, dict) else {}
    multivectors = Layout.of(schema).multivectors
    width = schema.model.dimension
    float_of_rows = schema.storage.multivector_dtype
    problem = None
    for name in ("dense", *multivectors):
        params = vectors.get(name)
        if params is None:
            problem = f'the vector "{name}" is not there any more'
        elif params.size != width:
            problem = f'the vector "{name}" has {params.size} dimensions, the model {width}'
        elif params.distance != models.Distance.DOT:
            problem = f'the vector "{name}" is compared by {params.distance.value}, not by inner product'
        elif name in multivectors and params.multivector_config is None:
            problem = f'the vector "{name}" holds one row, not many'
        elif _datatype(params.datatype) != (kept := float_of_rows if name in multivectors else "float32"):
            problem = f'the vector "{name}" is kept in {_datatype(params.datatype)}, not in {kept}'
        if problem:
            break
    sparse = info.config.params.sparse_vectors or {}
    if problem is None and "sparse" in schema.components:
        if "sparse" not in sparse:
            problem = 'the vector "sparse" is not there any more'
        elif sparse["sparse"].modifier not in (None, models.Modifier.NONE):
            problem = 'the vector "sparse" is modified by the server (IDF), which changes its scores'
        elif (index := sparse["sparse"].index) is not None and _datatype(index.datatype) != "float32":
            problem = (
                f'the vector "sparse" has an index in {_datatype(index.datatype)}, which rounds its scores'
            )
    if problem:
        raise Corrupt(
            f'collection "{collection}" was changed: {problem}.\n'
            "  Index the documents into a new collection; what is in this one can still be read with other tools.",
            backend=BACKEND,
            operation="open",
        )


def _datatype(said: models.Datatype | None) -> str:
    return "float32" if said is None else said.value


def check_scorable(info: models.CollectionInfo, collection: str, layout: Layout, limits: Limits) -> None:
    """Raise Unsupported if multi-vectors could not be scored exactly.

    Where strict mode forbids exact searches they are scored as a second stage, which is exact only without a graph; and
    a part of a split document that a graph does not show would lower its score without a word.
    """
    found = info.config.params.vectors
    vectors = found if isinstance(found, dict) else {}
    for name in layout.multivectors:
        m = links_of(info, vectors[name])
        if m and not limits.exact:
            raise Unsupported(
                f'the vector "{name}" of collection "{collection}" has a graph (hnsw_config.m is {m}), and strict mode '
                "forbids exact searches (search_allow_exact is false): multi-vector scores would be incomplete.\n"
                "  Set hnsw_config.m of its multi_… vectors to 0, as it was made, or allow exact searches."
            )


def links_of(info: models.CollectionInfo, params: models.VectorParams) -> int:
    """Links of a point in a vector's graph; 0 if it has none and every search compares with all points."""
    own = params.hnsw_config.m if params.hnsw_config is not None else None
    return info.config.hnsw_config.m if own is None else own


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def limits_of(info: models.CollectionInfo) -> Limits:
    """What the collection's strict mode refuses."""
    strict = info.config.strict_mode_config
    if strict is None or not strict.enabled:
        return Limits()
    return Limits(
        exact=strict.search_allow_exact is not False,
        query=strict.max_query_limit,
        hnsw_ef=strict.search_max_hnsw_ef,
        searches=strict.search_max_batchsize,
        # A write costs as many tokens as it has points; what costs more than a minute has is never let in.
        upserts=_least(strict.upsert_max_batchsize, strict.write_rate_limit),
        writes=strict.write_rate_limit,
        condition=strict.condition_max_size,
    )
