"""How much a collection in Milvus takes: packed rows as base64 in object storage, and what Milvus adds.

Sources, in addition to those of ``planning``:
    M  https://milvus.io/docs/mmap.md: a memory-mapped field needs no memory of its own; not the
       default;
       https://milvus.io/ai-quick-reference: a graph has 4 bytes per link
"""

from __future__ import annotations

from m3_connectors.backends.planning import BASE64, CANDIDATES, Formula, Part, Plan, QueryCost, Shape


def _plan(shape: Shape) -> Plan:
    packed, tokens, text = BASE64 * shape.blob_bytes, shape.distinct_tokens, shape.text_bytes
    dense = 4 * shape.dimension
    parts = (
        Part("dense", dense, 0, "4·d, in object storage", "L"),
        Part("dense index", dense + 256, dense + 256, "4·d and 2·M links of 4, M = 32", "M"),
        Part("sparse", 8.3 * tokens, 8 * tokens, "8 per posting", "B"),
        Part(
            "multivector", packed, 0, f"4/3·(16 + rows·{shape.row_bytes:,.5g}), base64, mapped from disk", "L"
        ),
        Part("text and metadata", text + 130, 100, "uncompressed; keys and filter terms in memory", "L"),
    )
    cost = QueryCost(CANDIDATES * packed, CANDIDATES * (packed + 12 * tokens), shape.products, "this package")
    notes = (
        "Memory is that of the query nodes, with mmap for the packed rows (mmap.scalarField); "
        f"without mmap they need {shape.documents * packed / 1e9:,.0f} GB more.",
        "Disk is object storage before compression, which may reduce the log files by up to a quarter.",
    )
    return Plan("milvus", shape, parts, reserve=1.2, usable=0.8, cost=cost, notes=notes)


# milvus-lite's log is not omitted: it contains what is not in the files yet.
FORMULA = Formula(
    _plan,
    checked="disk 1 % above, 2 % below, 0.4 % above, and 0.1 % below milvus-lite for the same documents, with the log; "
    "not checked for a cluster's object storage and memory",
)
