"""Split lists into pieces: by bytes for the size limit of messages, and by count for lists of ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def by_bytes(items: Sequence[T], size: Callable[[T], int], budget_bytes: int) -> Iterator[list[T]]:
    """Yield runs of items of at most ``budget_bytes`` together; a larger item is a run of its own."""
    run: list[T] = []
    total = 0
    for item in items:
        bytes_ = size(item)
        if run and total + bytes_ > budget_bytes:
            yield run
            run, total = [], 0
        run.append(item)
        total += bytes_
    if run:
        yield run


def by_count(items: Sequence[T], count: int) -> Iterator[Sequence[T]]:
    """Yield runs of at most ``count`` items."""
    for start in range(0, len(items), count):
        yield items[start : start + count]
