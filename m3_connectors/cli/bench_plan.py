"""``m3 bench plan``."""

from __future__ import annotations


def plan() -> None:
    """Bytes, memory, nodes and query cost of a collection on paper."""
