"""Compare a collection's indexes and properties with what the adapter created, to find changes by operators.

An index can be dropped and created again with any type and metric. ``faults`` finds changes that would give
wrong lists or scores without an error; the collection is then not used. ``notes`` finds changes that are
handled, or that may be surprising.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from m3_connectors.backends.capabilities import Remark
from m3_connectors.backends.milvus.layout import SCORED_EXACTLY

_SPARSE_INDEXES = ("SPARSE_INVERTED_INDEX", "SPARSE_WAND")
_SPARSE_PRECISIONS = ("", "fp32", "fp16")
"""Precisions of the postings; the lists of servers that may round to fp16 are proven with the stored
vectors."""

_TTL = "collection.ttl.seconds"


def faults(indexes: Mapping[str, Mapping[str, Any]]) -> Iterator[Remark]:
    """Yield what makes lists or scores wrong.

    Args:
        indexes: The responses of ``describe_index`` by field.
    """
    for field, index in indexes.items():
        name = index.get("index_name", field)
        again = f'Release the collection and drop the index "{name}"; opening the collection creates it correctly.'
        metric = index.get("metric_type")
        if metric != "IP":
            yield Remark(
                f'the index "{name}" of the field "{field}" uses the metric {metric}; it must use IP', again
            )
        if field != "sparse":
            continue
        if index["index_type"] not in _SPARSE_INDEXES:
            yield Remark(
                f'the index "{name}" of the field "{field}" is of type {index["index_type"]}, whose lists '
                "may be incomplete",
                again,
            )
        if float(index.get("drop_ratio_build") or 0) > 0:
            yield Remark(
                f'the index "{name}" of the field "{field}" leaves out small weights '
                f"(drop_ratio_build={index['drop_ratio_build']})",
                again,
            )
        if str(index.get("quant_type") or "").lower() not in _SPARSE_PRECISIONS:
            yield Remark(
                f'the index "{name}" of the field "{field}" rounds weights '
                f"(quant_type={index['quant_type']})",
                again,
            )


def notes(described: Mapping[str, Any], indexes: Mapping[str, Mapping[str, Any]]) -> Iterator[Remark]:
    """Yield what the adapter compensates for, and what may be surprising.

    Args:
        described: The response of ``describe_collection``.
        indexes: The responses of ``describe_index`` by field.
    """
    kind = indexes.get("dense", {}).get("index_type")
    if kind is not None and kind not in SCORED_EXACTLY:
        yield Remark(
            f"the dense index ({kind}) may be quantised, which affects which documents are candidates; "
            "scores are computed here from the stored vectors and remain exact, which takes longer",
            "Use HNSW or FLAT, which score exactly themselves.",
            is_problem=False,
        )
    seconds = described.get("properties", {}).get(_TTL)
    if seconds is not None and int(seconds) > 0:
        yield Remark(
            f"the server deletes documents {seconds} s after they were written ({_TTL})",
            f'To keep them, use alter_collection_properties(…, {{"{_TTL}": "0"}}).',
        )
