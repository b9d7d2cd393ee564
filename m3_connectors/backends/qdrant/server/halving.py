"""Send one request for several items, or several smaller ones if the server's limits require it."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from m3_connectors.backends.qdrant.server.connection import Connection
from m3_connectors.backends.qdrant.server.errors import TooLarge

T = TypeVar("T")
R = TypeVar("R")


async def halving(
    connection: Connection, operation: str, items: Sequence[T], send: Callable[[Sequence[T]], Awaitable[R]]
) -> list[R]:
    """Return the results in the order of the items: one, or several if the request was too large.

    Args:
        connection: The connection to the server.
        operation: The operation, for errors.
        items: At least one item.
        send: Sends the request for some of the items; it must be safe to repeat.

    Raises:
        TooLarge: Even a request for one item is too large.
        BackendError: Another failure; the requests for the items before may have been carried out.
    """
    try:
        return [await connection.call(operation, functools.partial(send, items))]
    except TooLarge:
        if len(items) == 1:
            raise
    middle = len(items) // 2
    first = await halving(connection, operation, items[:middle], send)
    return first + await halving(connection, operation, items[middle:], send)
