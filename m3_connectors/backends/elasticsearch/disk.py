"""Check how close the nodes' disks are to the point where Elasticsearch stops accepting writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from m3_connectors.backends.capabilities import Remark

_UNITS = {"b": 0, "kb": 1, "mb": 2, "gb": 3, "tb": 4, "pb": 5}


def disk_remarks(settings: Mapping[str, Any], nodes: Mapping[str, Any]) -> Iterator[Remark]:
    """Yield a finding for each node whose disk is beyond a watermark; the worst watermark counts.

    Args:
        settings: The response of ``/_cluster/settings`` with defaults; explicit settings take precedence.
        nodes: The response of ``/_nodes/stats/fs``.
    """
    disk: dict[str, Any] = {}
    marks: dict[str, Any] = {}
    for level in ("defaults", "persistent", "transient"):
        found = (
            settings.get(level, {})
            .get("cluster", {})
            .get("routing", {})
            .get("allocation", {})
            .get("disk", {})
        )
        disk |= found
        marks |= _flat(found.get("watermark", {}))
    if disk.get("threshold_enabled") == "false" or not marks:
        return
    for node in nodes.get("nodes", {}).values():
        total, free = (node["fs"]["total"][f"{what}_in_bytes"] for what in ("total", "available"))
        where = f"node {node['name']} has {free / 2**30:,.1f} GiB of free disk space"
        if free < _must_be_free(marks, "flood_stage", total):
            yield Remark(
                f"{where}, beyond the flood-stage watermark: its indices are read-only",
                "Free space on the disk.",
            )
        elif free < _must_be_free(marks, "high", total):
            yield Remark(
                f"{where}, beyond the high watermark: its shards are moved to other nodes",
                "Free space on the disk.",
            )
        elif free < _must_be_free(marks, "low", total):
            yield Remark(
                f"{where}, beyond the low watermark: it gets no new shards",
                "Free space on the disk.",
                is_problem=False,
            )


def _must_be_free(marks: Mapping[str, str], stage: str, total: int) -> int:
    """Return the free bytes below which a stage begins; settings are the share in use, or free bytes."""
    mark = str(marks.get(stage, "100%"))
    if mark.endswith("%") or mark.replace(".", "", 1).isdigit():
        used = float(mark.rstrip("%")) / (100 if mark.endswith("%") else 1)
        headroom = _bytes(str(marks.get(f"{stage}.max_headroom", "-1")))
        wanted = round(total * (1 - used))
        return wanted if headroom < 0 else min(wanted, headroom)
    return _bytes(mark)


def _bytes(size: str) -> int:
    number = size.lower().rstrip("bkmgtp")
    return round(float(number) * float(1024 ** _UNITS.get(size.lower()[len(number) :], 0)))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
