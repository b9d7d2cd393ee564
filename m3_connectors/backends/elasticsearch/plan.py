"""How much a collection in Elasticsearch takes: blobs in binary doc values, and what Elasticsearch adds.

Sources, in addition to those of ``planning``:
    E  https://www.elastic.co/docs/solutions/search/vector/knn (tune approximate kNN search): 4 d per vector
       and 4 m for the graph, outside the heap, which has at most half of a node's memory;
       https://github.com/elastic/elasticsearch/pull/31106: _recovery_source
"""

from __future__ import annotations

from m3_connectors.backends.planning import BASE64, CANDIDATES, Formula, Part, Plan, QueryCost, Shape


def _plan(shape: Shape) -> Plan:
    blob, tokens, text = shape.blob_bytes, shape.distinct_tokens, shape.text_bytes
    dense = 4 * shape.dimension + 4.0 * 16
    # A stored field is sent as it is, and doc values as base64.
    where, factor = ("a stored field", 1.0) if shape.is_compact else ("binary doc values", BASE64)
    parts = (
        Part("dense", dense, dense, "4·d and a graph of 4·m, m = 16", "E"),
        Part("sparse", 16 + 20 * tokens, 12 * tokens, "blob 16 + 8 per token, and 12 per posting", "B"),
        Part("multivector", blob, 0, f"16 + rows·{shape.row_bytes:,.5g} in {where}", "L"),
        Part("text and metadata", 0.8 * text + 260, 0, "source, compressed", "B"),
        Part("other", 60, 10, "ids, filter terms, versions", "B"),
    )
    sent = CANDIDATES * (factor * blob + BASE64 * (16 + 8 * tokens))
    cost = QueryCost(CANDIDATES * blob, sent, shape.products, "this package")
    notes = (
        "Memory is outside the heap, which uses the other half of a node's memory.",
        "Until segments are merged, a new document is stored a second time (_recovery_source): "
        f"about {BASE64 * blob:,.0f} bytes more.",
    )
    return Plan("elasticsearch", shape, parts, reserve=1.1, usable=0.5, cost=cost, notes=notes)


FORMULA = Formula(
    _plan,
    checked="disk 1 %, 2 % and 0.2 % below version 9.2, and within 0.1 % of it, for the same documents "
    "(only 5,000 of the first), without the second copy; not checked for memory outside the heap",
    omitted=("second copy until merged",),
)
