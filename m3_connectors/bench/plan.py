"""Scale on paper: bytes, memory, nodes and the cost of a query, by formulas from each store's layout and documentation.

A formula gives bytes a document. Where it is our adapter's own layout (blobs, named vectors, packed rows) it is exact;
what a store adds (graphs, postings, lists of ids) is its vendor's formula or was measured, as each part says. How far
the sums are from what a store really takes is measured by every ``m3 bench``, and said in ``CHECKED``.

Sources:
    L  the layout of this package's adapter (docs/backends.md, docs/milvus.md, docs/elasticsearch.md)
    B  measured by ``m3 bench`` (docs/benchmarks.md)
    Q  https://qdrant.tech/documentation/capacity-planning/: memory is 1.5 times the vectors';
       https://github.com/qdrant/qdrant/issues/4112: a named vector that a point lacks takes room all the same
    M  https://milvus.io/docs/mmap.md: a field that is mapped needs no memory of its own; not the default;
       https://milvus.io/ai-quick-reference: a graph has 4 bytes a link
    E  https://www.elastic.co/docs/solutions/search/vector/knn (tune approximate kNN search): 4 d a vector and 4 m for
       the graph, outside the heap, which has at most half of a node's memory;
       https://github.com/elastic/elasticsearch/pull/31106: _recovery_source
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

from m3_connectors.backends.schema import LongDocuments
from m3_connectors.errors import InvalidInput

StoreName = Literal["qdrant", "milvus", "elasticsearch"]
Dtype = Literal["float16", "float32"]

CANDIDATES = 200
"""Documents whose multi-vectors method all reads (paper, section 4)."""

_BASE64 = 4 / 3
_BLOB_HEADER = 16
_FLOATS_OF_A_MULTIVECTOR = 2**20 - 1
_LONGEST = 8192


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is to be stored.

    Attributes:
        documents: How many.
        rows: Multi-vector rows of a document, mean: its tokens and one.
        dimension: Of dense vectors and rows.
        distinct_tokens: Tokens with a weight, mean.
        text_bytes: Text and metadata, mean.
        dtype: Of the rows.
        long_documents: ``Storage.long_documents``; pooled rows are counted in ``rows``.
    """

    documents: int
    rows: float
    dimension: int
    distinct_tokens: float
    text_bytes: float
    dtype: Dtype = "float16"
    long_documents: LongDocuments = "split"

    def __post_init__(self) -> None:
        for name in ("documents", "rows", "dimension"):
            if not getattr(self, name) >= 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}: it must be at least 1.")
        if self.dtype not in ("float16", "float32"):
            raise InvalidInput(f"dtype is {self.dtype!r}: use 'float16' or 'float32'.")

    @classmethod
    def of_tokens(
        cls,
        documents: float,
        tokens: float,
        dimension: int = 1024,
        dtype: Dtype = "float16",
        pool_factor: float = 1.0,
        long_documents: LongDocuments = "split",
    ) -> Shape:
        """Texts of so many tokens: of 300 about 168 are distinct (Heaps' law), and each has 4.5 bytes of text.

        Args:
            documents: How many.
            tokens: Of a document.
            dimension: Of the model.
            dtype: Of multi-vector rows.
            pool_factor: Rows that are pooled into one (``Storage.pool_factor``).
            long_documents: ``Storage.long_documents``.
        """
        if not (math.isfinite(documents) and math.isfinite(tokens)) or tokens < 1 or pool_factor < 1:
            raise InvalidInput(
                f"{documents} documents of {tokens} tokens, pooled by {pool_factor}: give finite numbers, at least 1."
            )
        distinct = min(tokens, 2.6 * tokens**0.73)
        rows = max(1.0, (tokens + 1) / pool_factor)
        return cls(int(documents), rows, dimension, distinct, 4.5 * tokens + 100, dtype, long_documents)

    @property
    def row_bytes(self) -> int:
        """Of one multi-vector row."""
        return self.dimension * (2 if self.dtype == "float16" else 4)

    @property
    def blob_bytes(self) -> float:
        """Of a document's packed rows (``backends.blobs``)."""
        return _BLOB_HEADER + self.rows * self.row_bytes


@dataclasses.dataclass(frozen=True)
class Part:
    """One component, in bytes a document.

    Attributes:
        name: As ``bench.disk`` names it.
        disk_bytes: On disk.
        memory_bytes: That must be in memory for searches to be fast.
        formula: Where the bytes come from.
        source: Letter of the module's sources.
    """

    name: str
    disk_bytes: float
    memory_bytes: float
    formula: str
    source: str


@dataclasses.dataclass(frozen=True)
class QueryCost:
    """One search by method all, whose 200 candidates are scored by their multi-vectors.

    Attributes:
        read_bytes: Multi-vectors read from disk, where they are not in the page cache.
        wire_bytes: That travel to the client.
        products: Multiply-adds of MaxSim, in the store or here.
        where: Who computes it.
    """

    read_bytes: float
    wire_bytes: float
    products: float
    where: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a collection takes in one store.

    Attributes:
        store: Which.
        shape: Of what.
        parts: Components.
        reserve: Memory is multiplied by this: merging, optimising, requests under way.
        usable: Share of a node's memory that vectors may take.
        cost: Of a query.
        notes: What to know.
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
        """Of the whole collection, one copy."""
        return self.shape.documents * sum(part.disk_bytes for part in self.parts)

    @property
    def memory_bytes(self) -> float:
        """Of the whole collection, one copy, with the reserve."""
        return self.reserve * self.shape.documents * sum(part.memory_bytes for part in self.parts)

    def nodes(self, memory_bytes: float, replicas: int = 0) -> int:
        """Nodes of so much memory that hold the collection and ``replicas`` more copies of it."""
        if not memory_bytes > 0:
            raise InvalidInput(f"a node with {memory_bytes} bytes of memory holds nothing.")
        needed = (1 + replicas) * self.memory_bytes / (self.usable * memory_bytes)
        return max(1 + replicas, math.ceil(needed))


def plan(store: StoreName, shape: Shape) -> Plan:
    """The plan for one store."""
    return _PLANS[store](shape)


def planned_bytes(backend: str, shape: Shape) -> dict[str, float] | None:
    """Bytes on disk a document by component, as ``bench.disk`` names them; None for a store without a formula."""
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
            "8 a posting, and the vector in blocks of 128",
            "B",
        ),
        Part("multivector", shape.rows * shape.row_bytes + 48, 0, "rows·d·b, on disk (memory=cold)", "L"),
        Part(
            "multivector",
            (vectors - 1) * (shape.row_bytes + 14),
            0,
            f"and a row in each of {vectors - 1} vectors that only documents beyond {rows_a_vector:,} rows fill",
            "Q",
        ),
        Part(
            "text and metadata", 128 * math.ceil((shape.text_bytes + 150) / 128) + 25, 0, "blocks of 128", "B"
        ),
        Part("other", 32, 60, "ids and their versions", "B"),
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
            "Dense vectors are float32 in memory, not quantised: scores are exact. Multi-vectors stay on disk.",
            "Beside it the write-ahead log, 32 to 64 MB a shard whatever its size.",
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
        Part("sparse", 8.3 * shape.distinct_tokens, 8 * shape.distinct_tokens, "8 a posting", "B"),
        Part("multivector", packed, 0, "4/3·(16 + rows·d·b), base64, mapped from disk", "L"),
        Part(
            "text and metadata", shape.text_bytes + 130, 100, "as it is; keys and filter terms in memory", "L"
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
            "A query node's memory, with mmap for the packed rows (mmap.scalarField); without it they need "
            f"{shape.documents * packed / 1e9:,.0f} GB more.",
            "Object storage as it is written; compression of the log files may take up to a quarter off.",
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
        Part("sparse", 16 + 20 * tokens, 12 * tokens, "blob 16 + 8 a token, and 12 a posting", "B"),
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
            "Memory is outside the heap, which takes the other half of a node.",
            "Until segments are merged, a newly written document is there a second time (_recovery_source): about "
            f"{_BASE64 * shape.blob_bytes:,.0f} bytes more.",
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
    "qdrant": "disk 0.3 % below the embedded engine's 100,000 documents (256 dimensions, 16 rows), 3 % below its 5,000 "
    "(512 dimensions, 48 rows), 0.9 % below its 1,500 (1,024 dimensions, 64 rows), its log apart; a server and its "
    "memory are not checked",
    "milvus": "disk 1 % above, 2 % below and 0.4 % above milvus-lite's on the same documents, its log included; a "
    "cluster's object storage and memory are not checked",
    "elasticsearch": "disk 1 %, 2 % and 0.2 % below version 9.2 on the same documents, of the first only 5,000, the "
    "second copy apart; memory outside the heap is not checked",
}
"""How far the bytes a document were from what ``m3 bench`` measured (2026-11-23, 28); every run compares them anew."""

BESIDE: Mapping[str, tuple[str, ...]] = {"qdrant": ("log",), "elasticsearch": ("second copy until merged",)}
"""Components (``bench.disk``) that a plan leaves out because they do not grow with the collection, or pass; its notes
say so. They are left out of what it is compared with. milvus-lite's log is none: it holds what the files do not yet."""

STORES: tuple[StoreName, ...] = tuple(_PLANS)
