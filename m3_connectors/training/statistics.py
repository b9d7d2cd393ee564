"""What a run did with each length group, computed from the records of its steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def group_counts(longest: int, texts: Iterable[NDArray[np.int64]]) -> dict[str, Any]:
    """Return the length group of a batch for its record.

    Args:
        longest: The length limit of the group, in tokens.
        texts: The texts of the group, with ``<s>`` and ``</s>``.

    Returns:
        ``group``, the limit; and ``padding``, the share of padding if each text were padded to the longest one
        of the batch (ours are padded only inside attention, to neighbours of similar length).
    """
    lengths = [len(text) for text in texts]
    return {"group": longest, "padding": round(1 - sum(lengths) / (len(lengths) * max(lengths)), 4)}


def group_statistics(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Summarise the steps of each length group, shortest first.

    Args:
        records: The records of a log; those without a group are skipped.

    Returns:
        For each group, ``group`` (its length limit), ``steps``, ``tokens``, ``token_share`` (of all tokens),
        ``loss`` (the mean over its steps), ``padding`` (the mean) and ``tokens_per_second``.
    """
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for record in records:
        if "step" in record and "group" in record:
            groups.setdefault(record["group"], []).append(record)
    total = sum(record["tokens"] for steps in groups.values() for record in steps)
    return [
        {
            "group": group,
            "steps": len(steps),
            "tokens": (tokens := sum(record["tokens"] for record in steps)),
            "token_share": round(tokens / total, 4),
            "loss": round(sum(record["loss"] for record in steps) / len(steps), 4),
            "padding": round(sum(record["padding"] for record in steps) / len(steps), 4),
            "tokens_per_second": round(tokens / max(1e-9, sum(record["seconds"] for record in steps))),
        }
        for group, steps in sorted(groups.items())
    ]
