"""Split lists into pieces: by bytes for the size limit of messages, by count, or in halves after a refusal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


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


async def halving(
    items: Sequence[T], send: Callable[[Sequence[T]], Awaitable[R]], too_large: type[Exception]
) -> list[R]:
    """Return the results in the order of the items: one, or several if the request for all was too large.

    Args:
        items: At least one item.
        send: Sends the request for some of the items; it must be safe to repeat.
        too_large: The error of a request that may succeed for fewer items.

    Raises:
        Exception: ``too_large`` even for one item, or another failure; the requests for the items before may
            have been carried out.
    """
    try:
        return [await send(items)]
    except too_large:
        if len(items) == 1:
            raise
    middle = len(items) // 2
    first = await halving(items[:middle], send, too_large)
    return first + await halving(items[middle:], send, too_large)
