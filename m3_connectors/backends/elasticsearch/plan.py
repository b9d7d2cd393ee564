"""How much a collection in Elasticsearch takes: blobs in binary doc values, and what Elasticsearch adds.

Sources, in addition to those of ``planning``:
    E  https://www.elastic.co/docs/solutions/search/vector/knn (tune approximate kNN search): 4 d per vector
       and 4 m for the graph, outside the heap, which has at most half of a node's memory;
       https://github.com/elastic/elasticsearch/pull/31106: _recovery_source
"""

from __future__ import annotations

from m3_connectors.backends.planning import (
    BASE64,
    BLOB_HEADER_BYTES,
    CANDIDATES,
    Formula,
    Part,
    Plan,
    QueryCost,
    Shape,
    products,
)


def _plan(shape: Shape) -> Plan:
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
            CANDIDATES * BASE64 * (shape.blob_bytes + BLOB_HEADER_BYTES + 8 * tokens),
            products(shape),
            "this package",
        ),
        notes=(
            "Memory is outside the heap, which uses the other half of a node's memory.",
            "Until segments are merged, a new document is stored a second time (_recovery_source): "
            f"about {BASE64 * shape.blob_bytes:,.0f} bytes more.",
        ),
    )


FORMULA = Formula(
    _plan,
    checked="disk 1 %, 2 % and 0.2 % below version 9.2 for the same documents "
    "(only 5,000 of the first), without the second copy; not checked for memory outside the heap",
    omitted=("second copy until merged",),
)
