"""One request about several things, or as many smaller ones as the server's limits ask for."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from m3_connectors.backends.qdrant.server_connection import Connection
from m3_connectors.backends.qdrant.server_errors import TooLarge

T = TypeVar("T")
R = TypeVar("R")


async def halving(
    connection: Connection, operation: str, items: Sequence[T], send: Callable[[Sequence[T]], Awaitable[R]]
) -> list[R]:
    """The answers, in the order of the items: one, or two and more where the server refused them as too many.

    Args:
        connection: The way there.
        operation: What is being done, for errors.
        items: At least one.
        send: Makes the request about some of them; it must be safe to repeat.

    Raises:
        TooLarge: Even one of them is refused so.
        BackendError: Another failure; of the items before, the requests may have been carried out.
    """
    try:
        return [await connection.call(operation, functools.partial(send, items))]
    except TooLarge:
        if len(items) == 1:
            raise
    middle = len(items) // 2
    first = await halving(connection, operation, items[:middle], send)
    return first + await halving(connection, operation, items[middle:], send)
