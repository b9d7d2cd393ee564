"""Calculate bytes, memory, nodes and the cost of a query from each store's layout and documentation.

A store's ``Formula`` is in ``plan.py`` of its folder, and gives bytes per document. For the layout of our own
adapters (blobs, named vectors, packed rows) it is exact. For what a store adds (graphs, postings, lists of ids), it
is the vendor's formula or a measurement, as noted for each part. Every ``m3 bench`` measures how far the sums are from
the real sizes; see ``Formula.checked``.

Sources that every formula has, in addition to those of its module's docstring:
    L  the layout of the adapter (docs/backends.md)
    B  measured by ``m3 bench`` (docs/benchmarks.md)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from m3_connectors.backends.blobs import HEADER_BYTES
from m3_connectors.backends.precision import PrecisionName, precision_of
from m3_connectors.backends.schema import LongDocuments
from m3_connectors.backends.stores import stores_with
from m3_connectors.embeddings import COMPONENTS, Component
from m3_connectors.errors import InvalidInput

CANDIDATES = 200
"""The number of documents whose multi-vectors the method ``all`` reads (paper, section 4)."""

BASE64 = 4 / 3


@dataclasses.dataclass(frozen=True)
class Shape:
    """The documents to be stored.

    Attributes:
        documents: The number of documents.
        rows: The mean number of multi-vector rows per document after pooling; without pooling, its tokens plus one.
        dimension: The dimension of dense vectors and rows.
        distinct_tokens: The mean number of tokens with a weight.
        text_bytes: The mean size of text and metadata.
        dtype: The data type of the rows.
        long_documents: ``Storage.long_documents``.
        components: ``Storage.components``.
        pool_factor: By how much the rows are pooled; ``rows`` counts them after pooling.
    """

    documents: int
    rows: float
    dimension: int
    distinct_tokens: float
    text_bytes: float
    dtype: PrecisionName = "float16"
    long_documents: LongDocuments = "split"
    components: tuple[Component, ...] = COMPONENTS
    pool_factor: float = 1.0

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
        components: tuple[Component, ...] = COMPONENTS,
    ) -> Shape:
        """Return the shape of texts: 300 tokens have about 168 distinct ones (Heaps' law) and 4.5 bytes each.

        Args:
            documents: The number of documents.
            tokens: The number of tokens per document.
            dimension: The dimension of the model.
            dtype: The data type of multi-vector rows.
            pool_factor: The number of rows pooled into one (``Storage.pool_factor``).
            long_documents: ``Storage.long_documents``.
            components: ``Storage.components``.
        """
        if not (math.isfinite(documents) and math.isfinite(tokens)) or tokens < 1 or pool_factor < 1:
            raise InvalidInput(
                f"{documents} documents of {tokens} tokens, pooled by {pool_factor}: "
                "each must be a finite number of at least 1.\n  Correct the one that is not."
            )
        distinct = min(tokens, 2.6 * tokens**0.73)
        rows = max(1.0, (tokens + 1) / pool_factor)
        text = 4.5 * tokens + 100
        return cls(
            int(documents), rows, dimension, distinct, text, dtype, long_documents, components, pool_factor
        )

    @property
    def is_compact(self) -> bool:
        """Whether rows are bytes that only this package can score (int8 to int1)."""
        return precision_of(self.dtype).is_compact

    @property
    def keeps_rows(self) -> bool:
        """Whether there are multi-vectors."""
        return "multivector" in self.components

    @property
    def row_bytes(self) -> float:
        """The size of one multi-vector row, with its share of what is stored for the document."""
        return (self.blob_bytes - HEADER_BYTES) / self.rows

    @property
    def blob_bytes(self) -> float:
        """The size of a document's packed rows (``backends.blobs``)."""
        whole = math.ceil(self.rows)
        size = precision_of(self.dtype).encoded_bytes(whole, self.dimension)
        return HEADER_BYTES + self.rows / whole * size

    @property
    def products(self) -> float:
        """The multiply-adds of MaxSim for the candidates of one query of 32 rows."""
        return CANDIDATES * self.rows * 32 * self.dimension


@dataclasses.dataclass(frozen=True)
class Part:
    """One component, in bytes per document.

    Attributes:
        name: The name in ``Store.disk``, such as ``dense``.
        disk_bytes: The bytes on disk.
        memory_bytes: The bytes that must be in memory for fast searches.
        formula: The formula of the bytes.
        source: The letter of its source in the docstring of this module or of the store's ``plan``.
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
        parts: The components; those that the shape leaves out are removed.
        reserve: The factor on memory for merging, optimising and requests in progress.
        usable: The share of a node's memory that is available to vectors.
        cost: The cost of a query; without multi-vectors there is no method ``all``, and it is 0.
        notes: Remarks for the user; none without multi-vectors, which most are about.
        form: ``server`` for a plan that does not hold for the engine in this process, else empty.
    """

    store: str
    shape: Shape
    parts: tuple[Part, ...]
    reserve: float
    usable: float
    cost: QueryCost
    notes: tuple[str, ...]
    form: str = ""

    def __post_init__(self) -> None:
        left_out = set(COMPONENTS) - set(self.shape.components)
        object.__setattr__(self, "parts", tuple(part for part in self.parts if part.name not in left_out))
        if not self.shape.keeps_rows:
            object.__setattr__(self, "cost", QueryCost(0, 0, 0, ""))
            object.__setattr__(self, "notes", ())

    @property
    def title(self) -> str:
        """The store and its form."""
        return f"{self.store} {self.form}".rstrip()

    @property
    def disk_bytes(self) -> float:
        """The disk size of the whole collection, one copy."""
        return self.shape.documents * sum(part.disk_bytes for part in self.parts)

    @property
    def component_bytes(self) -> dict[str, float]:
        """The bytes on disk per document by component (``Store.disk``)."""
        return {
            part.name: sum(one.disk_bytes for one in self.parts if one.name == part.name)
            for part in self.parts
        }

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


@dataclasses.dataclass(frozen=True)
class Formula:
    """How the plan of a store is calculated.

    Attributes:
        plan: Returns the plan for documents of a shape.
        checked: How far the bytes per document were from measurements; every ``m3 bench`` compares again.
        omitted: Components (``Store.disk``) that a plan omits because they do not grow with the collection or are
            temporary, as its notes say. Comparisons omit them too.
        server: Returns the plan for a server, if ``plan`` is for an engine in this process that stores differently.
    """

    plan: Callable[[Shape], Plan]
    checked: str = "not checked against measurements"
    omitted: tuple[str, ...] = ()
    server: Callable[[Shape], Plan] | None = None

    def plans(self, shape: Shape) -> list[Plan]:
        """Return the plan, and that of a server where it needs other bytes."""
        one = self.plan(shape)
        other = self.server(shape) if self.server else one
        return [one] if other.parts == one.parts else [one, other]


def formula_of(store: str) -> Formula | None:
    """Return the formula of a store, or None if the store has none or is not installed.

    Raises:
        InvalidInput: The formula of another distribution cannot be imported, or is not a ``Formula``.
    """
    found = stores_with("plan").get(store)
    formula: Formula | None = None if found is None else found.offered("plan", Formula)
    return formula
