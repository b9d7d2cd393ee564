"""How much a collection in Qdrant takes, embedded or as a server: its named vectors, and what the engine adds.

Sources, in addition to those of ``planning``:
    Q  https://qdrant.tech/documentation/capacity-planning/: memory is 1.5 times that of the vectors;
       https://github.com/qdrant/qdrant/issues/4112: a named vector takes space even if a point lacks it
"""

from __future__ import annotations

import math

from m3_connectors.backends.planning import CANDIDATES, Formula, Part, Plan, QueryCost, Shape

_FLOATS_OF_A_MULTIVECTOR = 2**20 - 1
_LONGEST = 8192


def _plan(shape: Shape) -> Plan:
    rows_a_vector = _FLOATS_OF_A_MULTIVECTOR // shape.dimension
    more = 0 if shape.long_documents == "error" else -(-_LONGEST // rows_a_vector) - 1
    rows = f"a row in each of {more} vectors that only documents of over {rows_a_vector:,} rows use"
    links = 0.7 * 2 * 16 * math.ceil(math.log2(max(2, shape.documents))) / 8
    dense, postings = 4 * shape.dimension, 8 * shape.distinct_tokens
    sparse = postings + _blocks(postings + 30) + 10
    parts = (
        Part("dense", dense, dense, "4·d", "L"),
        Part("dense graph", links, links, "2·m links of log2(N) bits, m = 16, 70 % used", "B"),
        Part("sparse", sparse, postings, "8 per posting, and the vector in blocks of 128", "B"),
        Part("multivector", shape.rows * shape.row_bytes + 48, 0, "rows·d·b, on disk (memory=cold)", "L"),
        Part("multivector", more * (shape.row_bytes + 14), 0, rows, "Q"),
        Part("text and metadata", _blocks(shape.text_bytes + 150) + 25, 0, "blocks of 128", "B"),
        Part("other", 32, 60, "ids and versions", "B"),
    )
    read = CANDIDATES * shape.rows * shape.row_bytes
    cost = QueryCost(read, 10 * shape.text_bytes, shape.products, "the store")
    notes = (
        "Dense vectors are float32 in memory, so that scores are exact. Multi-vectors stay on disk.",
        "In addition, the write-ahead log takes 32 to 64 MB per shard, whatever the size of the shard.",
    )
    return Plan("qdrant", shape, parts, reserve=1.5, usable=0.8, cost=cost, notes=notes)


def _blocks(size: float) -> int:
    return 128 * math.ceil(size / 128)


FORMULA = Formula(
    _plan,
    checked="disk 0.3 % below the embedded engine for 100,000 documents (256 dimensions, 16 rows), "
    "3 % below for 5,000 (512 dimensions, 48 rows), 0.9 % below for 1,500 (1,024 dimensions, 64 rows), "
    "without the log; not checked for a server or its memory",
    omitted=("log",),
)
