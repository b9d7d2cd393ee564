"""What operators made of a collection's indexes and properties, compared with what the adapter asked for.

An index can be dropped and made again with any type and metric. ``faults`` finds what would give wrong lists or scores
without an error, so that the collection is not used; ``notes`` finds what is handled, or may surprise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from m3_connectors.backends.capabilities import Remark
from m3_connectors.backends.milvus.layout import SCORED_EXACTLY

_SPARSE_INDEXES = ("SPARSE_INVERTED_INDEX", "SPARSE_WAND")
_SPARSE_PRECISIONS = ("", "fp32", "fp16")
"""Of the postings; the lists of servers that may round to fp16 are proven from the stored vectors."""

_TTL = "collection.ttl.seconds"


def faults(indexes: Mapping[str, Mapping[str, Any]]) -> Iterator[Remark]:
    """What makes lists or scores wrong.

    Args:
        indexes: Answers of ``describe_index`` by field.
    """
    for field, index in indexes.items():
        name = index.get("index_name", field)
        again = (
            f'Release the collection and drop the index "{name}": opening it makes the index as it must be.'
        )
        metric = index.get("metric_type")
        if metric != "IP":
            yield Remark(f'the index "{name}" of the field "{field}" is by {metric}; it must be by IP', again)
        if field != "sparse":
            continue
        if index["index_type"] not in _SPARSE_INDEXES:
            yield Remark(
                f'the index "{name}" of the field "{field}" is {index["index_type"]}, whose lists may lack documents',
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
                f'the index "{name}" of the field "{field}" rounds weights (quant_type={index["quant_type"]})',
                again,
            )


def notes(described: Mapping[str, Any], indexes: Mapping[str, Mapping[str, Any]]) -> Iterator[Remark]:
    """What the adapter makes up for, and what may surprise.

    Args:
        described: The answer of ``describe_collection``.
        indexes: Answers of ``describe_index`` by field.
    """
    kind = indexes.get("dense", {}).get("index_type")
    if kind is not None and kind not in SCORED_EXACTLY:
        yield Remark(
            f"the dense index ({kind}) may be quantised, which decides what documents are proposed; scores are "
            "computed here from the stored vectors and stay exact, which takes longer",
            "HNSW and FLAT score exactly by themselves.",
            is_problem=False,
        )
    seconds = described.get("properties", {}).get(_TTL)
    if seconds is not None and int(seconds) > 0:
        yield Remark(
            f"the server removes documents {seconds} s after they were written ({_TTL})",
            f'alter_collection_properties(…, {{"{_TTL}": "0"}}) keeps them.',
        )
