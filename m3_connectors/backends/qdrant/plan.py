"""How much a collection in Qdrant takes: its named vectors, and what the engine adds.

The engine in this process and a server differ in the rows of compact precisions: the one keeps them in a file, and the
other in multi-vectors of float32 that carry three bytes each (``carried``).

Sources, in addition to those of ``planning``:
    Q  https://qdrant.tech/documentation/capacity-planning/: memory is 1.5 times that of the vectors;
       https://github.com/qdrant/qdrant/issues/4112: a named vector takes space even if a point lacks it
"""

from __future__ import annotations

import math

from m3_connectors.backends.planning import CANDIDATES, Formula, Part, Plan, QueryCost, Shape
from m3_connectors.backends.qdrant.carried import WIDTH, vectors_for

_FLOATS_OF_A_MULTIVECTOR = 2**20 - 1
_LONGEST = 8192


def _embedded(shape: Shape) -> Plan:
    if not shape.is_compact:
        return _server(shape)
    rows = Part("multivector", shape.blob_bytes, 0, f"16 + rows·{shape.row_bytes:,.5g}, in a file", "L")
    read = CANDIDATES * shape.blob_bytes
    return _plan(shape, (rows,), QueryCost(read, 10 * shape.text_bytes, shape.products, "this package"))


def _server(shape: Shape) -> Plan:
    width, size, count, longest = shape.dimension, shape.row_bytes, shape.rows, _LONGEST
    if shape.is_compact:
        width, size = WIDTH, 4 * WIDTH
        count = vectors_for(math.ceil(shape.blob_bytes))
        longest = vectors_for(math.ceil(shape.blob_bytes / shape.rows * longest))
    rows_a_vector = _FLOATS_OF_A_MULTIVECTOR // width
    more = 0 if shape.long_documents == "error" else -(-longest // rows_a_vector) - 1
    empty = f"a row in each of {more} vectors that only the longest documents use"
    what = f"(16 + rows·{shape.row_bytes:,.5g})·4/3" if shape.is_compact else f"rows·{size:,.5g}"
    rows = (
        Part("multivector", count * size + 48, 0, f"{what}, on disk (memory=cold)", "L"),
        Part("multivector", more * (size + 14), 0, empty, "Q"),
    )
    read = CANDIDATES * count * size
    if shape.is_compact:
        cost = QueryCost(read, read, shape.products, "this package")
        return _plan(shape, rows, cost, form="server")
    return _plan(shape, rows, QueryCost(read, 10 * shape.text_bytes, shape.products, "the store"))


def _plan(shape: Shape, rows: tuple[Part, ...], cost: QueryCost, form: str = "") -> Plan:
    links = 0.7 * 2 * 16 * math.ceil(math.log2(max(2, shape.documents))) / 8
    dense, postings = 4 * shape.dimension, 8 * shape.distinct_tokens
    sparse = postings + _blocks(postings + 30) + 10
    parts = (
        Part("dense", dense, dense, "4·d", "L"),
        Part("dense graph", links, links, "2·m links of log2(N) bits, m = 16, 70 % used", "B"),
        Part("sparse", sparse, postings, "8 per posting, and the vector in blocks of 128", "B"),
        *rows,
        Part("text and metadata", _blocks(shape.text_bytes + 150) + 25, 0, "blocks of 128", "B"),
        Part("other", 32, 60, "ids and versions", "B"),
    )
    notes = (
        "Dense vectors are float32 in memory, so that scores are exact. Multi-vectors stay on disk.",
        "In addition, the write-ahead log takes 32 to 64 MB per shard, whatever the size of the shard.",
    )
    return Plan("qdrant", shape, parts, reserve=1.5, usable=0.8, cost=cost, notes=notes, form=form)


def _blocks(size: float) -> int:
    return 128 * math.ceil(size / 128)


FORMULA = Formula(
    _embedded,
    checked="disk 0.3 % below the embedded engine for 100,000 documents (256 dimensions, 16 rows), "
    "3 % below for 5,000 (512 dimensions, 48 rows), 0.9 % below for 1,500 (1,024 dimensions, 64 rows), "
    "0.6 % and 3.6 % below for 1,000 (1,024 dimensions, 297 rows, float16 and int2), without the log; "
    "not checked for a server or its memory",
    omitted=("log",),
    server=_server,
)
