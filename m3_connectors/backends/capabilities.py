"""What a store can do, as data: declared → the conformance suite must pass it; undeclared → ``Unsupported``."""

from __future__ import annotations

import enum


class Capability(enum.Enum):
    """One thing that not every store can do; the value is its line in the table of the docs."""

    PERSISTENT = "keeps its data after close"
    NATIVE_DENSE_ANN = "approximate dense search in its own vector index"
    NATIVE_SPARSE = "sparse search in its own inverted index"
    NATIVE_MULTIVECTOR = "multi-vector scores computed in the store"
    CONCURRENT_PROCESSES = "several processes may open one collection"
    SPLIT_LONG_DOCUMENTS = "8,191 rows of one document, scored exactly"
    FLOAT32_MULTIVECTORS = "multi-vectors kept in float32"
    DATE_RANGES = "ranges over dates"
