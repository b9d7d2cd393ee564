"""Calculate bytes, memory, nodes and the cost of a query from each store's layout and documentation.

A formula gives bytes per document. For the layout of our own adapters (blobs, named vectors, packed rows) it
is exact. For what a store adds (graphs, postings, lists of ids), it is the vendor's formula or a measurement,
as noted for each part. Every ``m3 bench`` measures how far the sums are from the real sizes; see ``CHECKED``.

Sources:
    L  the layout of this package's adapter (docs/backends.md, docs/milvus.md, docs/elasticsearch.md)
    B  measured by ``m3 bench`` (docs/benchmarks.md)
    Q  https://qdrant.tech/documentation/capacity-planning/: memory is 1.5 times that of the vectors;
       https://github.com/qdrant/qdrant/issues/4112: a named vector takes space even if a point lacks it
    M  https://milvus.io/docs/mmap.md: a memory-mapped field needs no memory of its own; not the
       default;
       https://milvus.io/ai-quick-reference: a graph has 4 bytes per link
    E  https://www.elastic.co/docs/solutions/search/vector/knn (tune approximate kNN search): 4 d per vector
       and 4 m for the graph, outside the heap, which has at most half of a node's memory;
       https://github.com/elastic/elasticsearch/pull/31106: _recovery_source
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

from m3_connectors.backends.precision import PrecisionName, precision_of
from m3_connectors.backends.schema import LongDocuments
from m3_connectors.errors import InvalidInput

StoreName = Literal["qdrant", "milvus", "elasticsearch"]

CANDIDATES = 200
"""The number of documents whose multi-vectors the method ``all`` reads (paper, section 4)."""

_BASE64 = 4 / 3
_BLOB_HEADER = 16
_FLOATS_OF_A_MULTIVECTOR = 2**20 - 1
_LONGEST = 8192


@dataclasses.dataclass(frozen=True)
class Shape:
    """The documents to be stored.

    Attributes:
        documents: The number of documents.
        rows: The mean number of multi-vector rows per document: its tokens plus one.
        dimension: The dimension of dense vectors and rows.
        distinct_tokens: The mean number of tokens with a weight.
        text_bytes: The mean size of text and metadata.
        dtype: The data type of the rows.
        long_documents: ``Storage.long_documents``; ``rows`` counts rows after pooling.
    """

    documents: int
    rows: float
    dimension: int
    distinct_tokens: float
    text_bytes: float
    dtype: PrecisionName = "float16"
    long_documents: LongDocuments = "split"

    def __post_init__(self) -> None:
        for name in ("documents", "rows", "dimension"):
            if not getattr(self, name) >= 1:
                raise InvalidInput(
                    f"{name} is {getattr(self, name)}; it must be at least 1.\n  Pass 1 or more."
                )
        _ = precision_of(self.dtype, "dtype")

    @classmethod
    def of_tokens(
        cls,
        documents: float,
        tokens: float,
        dimension: int = 1024,
        dtype: PrecisionName = "float16",
        pool_factor: float = 1.0,
        long_documents: LongDocuments = "split",
    ) -> Shape:
        """Return the shape of texts: 300 tokens have about 168 distinct ones (Heaps' law) and 4.5 bytes each.

        Args:
            documents: The number of documents.
            tokens: The number of tokens per document.
            dimension: The dimension of the model.
            dtype: The data type of multi-vector rows.
            pool_factor: The number of rows pooled into one (``Storage.pool_factor``).
            long_documents: ``Storage.long_documents``.
        """
        if not (math.isfinite(documents) and math.isfinite(tokens)) or tokens < 1 or pool_factor < 1:
            raise InvalidInput(
                f"{documents} documents of {tokens} tokens, pooled by {pool_factor}: "
                "each must be a finite number of at least 1.\n  Correct the one that is not."
            )
        distinct = min(tokens, 2.6 * tokens**0.73)
        rows = max(1.0, (tokens + 1) / pool_factor)
        return cls(int(documents), rows, dimension, distinct, 4.5 * tokens + 100, dtype, long_documents)

    @property
    def row_bytes(self) -> int:
        """The size of one multi-vector row."""
        return precision_of(self.dtype).row_bytes(self.dimension)

    @property
    def blob_bytes(self) -> float:
        """The size of a document's packed rows (``backends.blobs``)."""
        return _BLOB_HEADER + self.rows * self.row_bytes


@dataclasses.dataclass(frozen=True)
class Part:
    """One component, in bytes per document.

    Attributes:
        name: The name in ``bench.disk``.
        disk_bytes: The bytes on disk.
        memory_bytes: The bytes that must be in memory for fast searches.
        formula: The formula of the bytes.
        source: The letter of its source in the module's docstring.
    """

    name: str
    disk_bytes: float
    memory_bytes: float
    formula: str
    source: str


@dataclasses.dataclass(frozen=True)
class QueryCost:
    """The cost of one search with method ``all``, which scores 200 candidates by their multi-vectors.

    Attributes:
        read_bytes: The bytes of multi-vectors read from disk, if they are not in the page cache.
        wire_bytes: The bytes sent to the client.
        products: The multiply-adds of MaxSim, in the store or in this package.
        where: Where MaxSim is computed.
    """

    read_bytes: float
    wire_bytes: float
    products: float
    where: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """The size of a collection in one store.

    Attributes:
        store: The store.
        shape: The documents.
        parts: The components.
        reserve: The factor on memory for merging, optimising and requests in progress.
        usable: The share of a node's memory that is available to vectors.
        cost: The cost of a query.
        notes: Remarks for the user.
    """

    store: StoreName
    shape: Shape
    parts: tuple[Part, ...]
    reserve: float
    usable: float
    cost: QueryCost
    notes: tuple[str, ...]

    @property
    def disk_bytes(self) -> float:
        """The disk size of the whole collection, one copy."""
        return self.shape.documents * sum(part.disk_bytes for part in self.parts)

    @property
    def memory_bytes(self) -> float:
        """The memory of the whole collection, one copy, including the reserve."""
        return self.reserve * self.shape.documents * sum(part.memory_bytes for part in self.parts)

    def nodes(self, memory_bytes: float, replicas: int = 0) -> int:
        """Return the number of nodes of this memory for the collection and ``replicas`` more copies of it."""
        if not memory_bytes > 0:
            raise InvalidInput(
                f"memory_bytes is {memory_bytes}; it must be more than 0.\n  Pass the memory of one node in bytes."
            )
        needed = (1 + replicas) * self.memory_bytes / (self.usable * memory_bytes)
        return max(1 + replicas, math.ceil(needed))


def plan(store: StoreName, shape: Shape) -> Plan:
    """Return the plan for one store."""
    return _PLANS[store](shape)


def planned_bytes(backend: str, shape: Shape) -> dict[str, float] | None:
    """Return the bytes on disk per document by component (``bench.disk``), or None for an unknown store."""
    found = next((name for name in STORES if name == backend), None)
    if found is None:
        return None
    parts = plan(found, shape).parts
    return {part.name: sum(one.disk_bytes for one in parts if one.name == part.name) for part in parts}


def _qdrant(shape: Shape) -> Plan:
    rows_a_vector = _FLOATS_OF_A_MULTIVECTOR // shape.dimension
    vectors = 1 if shape.long_documents == "error" else -(-_LONGEST // rows_a_vector)
    links = 2 * 16 * math.ceil(math.log2(max(2, shape.documents))) / 8
    tokens = shape.distinct_tokens
    parts = (
        Part("dense", 4 * shape.dimension, 4 * shape.dimension, "4·d", "L"),
        Part("dense graph", 0.7 * links, 0.7 * links, "2·m links of log2(N) bits, m = 16, 70 % used", "B"),
        Part(
            "sparse",
            8 * tokens + 128 * math.ceil((8 * tokens + 30) / 128) + 10,
            8 * tokens,
            "8 per posting, and the vector in blocks of 128",
            "B",
        ),
        Part("multivector", shape.rows * shape.row_bytes + 48, 0, "rows·d·b, on disk (memory=cold)", "L"),
        Part(
            "multivector",
            (vectors - 1) * (shape.row_bytes + 14),
            0,
            f"a row in each of {vectors - 1} vectors that only documents of over {rows_a_vector:,} rows use",
            "Q",
        ),
        Part(
            "text and metadata", 128 * math.ceil((shape.text_bytes + 150) / 128) + 25, 0, "blocks of 128", "B"
        ),
        Part("other", 32, 60, "ids and versions", "B"),
    )
    return Plan(
        "qdrant",
        shape,
        parts,
        reserve=1.5,
        usable=0.8,
        cost=QueryCost(
            CANDIDATES * shape.rows * shape.row_bytes, 10 * shape.text_bytes, _products(shape), "the store"
        ),
        notes=(
            "Dense vectors are float32 in memory, so that scores are exact. Multi-vectors stay on disk.",
            "In addition, the write-ahead log takes 32 to 64 MB per shard, whatever the size of the shard.",
        ),
    )


def _milvus(shape: Shape) -> Plan:
    packed = _BASE64 * shape.blob_bytes
    parts = (
        Part("dense", 4 * shape.dimension, 0, "4·d, in object storage", "L"),
        Part(
            "dense index",
            4 * shape.dimension + 256,
            4 * shape.dimension + 256,
            "4·d and 2·M links of 4, M = 32",
            "M",
        ),
        Part("sparse", 8.3 * shape.distinct_tokens, 8 * shape.distinct_tokens, "8 per posting", "B"),
        Part("multivector", packed, 0, "4/3·(16 + rows·d·b), base64, mapped from disk", "L"),
        Part(
            "text and metadata",
            shape.text_bytes + 130,
            100,
            "uncompressed; keys and filter terms in memory",
            "L",
        ),
    )
    return Plan(
        "milvus",
        shape,
        parts,
        reserve=1.2,
        usable=0.8,
        cost=QueryCost(
            CANDIDATES * packed,
            CANDIDATES * (packed + 12 * shape.distinct_tokens),
            _products(shape),
            "this package",
        ),
        notes=(
            "Memory is that of the query nodes, with mmap for the packed rows (mmap.scalarField); "
            f"without mmap they need {shape.documents * packed / 1e9:,.0f} GB more.",
            "Disk is object storage before compression, which may reduce the log files by up to a quarter.",
        ),
    )


def _elasticsearch(shape: Shape) -> Plan:
    graph = 4.0 * 16
    tokens = shape.distinct_tokens
    parts = (
        Part(
            "dense",
            4 * shape.dimension + graph,
            4 * shape.dimension + graph,
            "4·d and a graph of 4·m, m = 16",
            "E",
        ),
        Part("sparse", 16 + 20 * tokens, 12 * tokens, "blob 16 + 8 per token, and 12 per posting", "B"),
        Part("multivector", shape.blob_bytes, 0, "16 + rows·d·b in binary doc values", "L"),
        Part("text and metadata", 0.8 * shape.text_bytes + 260, 0, "source, compressed", "B"),
        Part("other", 60, 10, "ids, filter terms, versions", "B"),
    )
    return Plan(
        "elasticsearch",
        shape,
        parts,
        reserve=1.1,
        usable=0.5,
        cost=QueryCost(
            CANDIDATES * shape.blob_bytes,
            CANDIDATES * _BASE64 * (shape.blob_bytes + _BLOB_HEADER + 8 * tokens),
            _products(shape),
            "this package",
        ),
        notes=(
            "Memory is outside the heap, which uses the other half of a node's memory.",
            "Until segments are merged, a new document is stored a second time (_recovery_source): "
            f"about {_BASE64 * shape.blob_bytes:,.0f} bytes more.",
        ),
    )


def _products(shape: Shape, query_rows: int = 32) -> float:
    return CANDIDATES * shape.rows * query_rows * shape.dimension


_PLANS: Mapping[StoreName, Callable[[Shape], Plan]] = {
    "qdrant": _qdrant,
    "milvus": _milvus,
    "elasticsearch": _elasticsearch,
}

CHECKED: dict[StoreName, str] = {
    "qdrant": "disk 0.3 % below the embedded engine for 100,000 documents (256 dimensions, 16 rows), "
    "3 % below for 5,000 (512 dimensions, 48 rows), 0.9 % below for 1,500 (1,024 dimensions, 64 rows), "
    "without the log; not checked for a server or its memory",
    "milvus": "disk 1 % above, 2 % below and 0.4 % above milvus-lite for the same documents, with the log; "
    "not checked for a cluster's object storage and memory",
    "elasticsearch": "disk 1 %, 2 % and 0.2 % below version 9.2 for the same documents "
    "(only 5,000 of the first), without the second copy; not checked for memory outside the heap",
}
"""How far the bytes per document were from measurements (2026-11-23, 28); every ``m3 bench`` compares again."""

BESIDE: Mapping[str, tuple[str, ...]] = {"qdrant": ("log",), "elasticsearch": ("second copy until merged",)}
"""Components (``bench.disk``) that a plan omits because they do not grow with the collection or are
temporary, as its notes say. Comparisons omit them too. milvus-lite's log is not one: it contains what is not
in the files yet."""

STORES: tuple[StoreName, ...] = tuple(_PLANS)
