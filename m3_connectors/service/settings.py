"""What ``m3 serve`` is started with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from m3_connectors.backends.urls import redacted
from m3_connectors.errors import InvalidInput


@dataclasses.dataclass(frozen=True)
class Settings:
    """The limits of a service, and the stores behind it.

    Attributes:
        urls: The stores; a collection is looked up in all of them, and a new one is created in the first.
        max_body_bytes: The largest body of a request; the bodies of all requests together may have 16 times as many.
        max_texts: The most texts, pairs or documents in one request.
        deadline_seconds: A request that has not begun to answer after this time is given up, and so is a client that
            does not read its answer for as long. A client may ask for less with the header ``X-Timeout-Seconds``.
        max_waiting_tokens: The tokens that may wait for the encoder; None is 64 times the encoder's token budget.

    Raises:
        InvalidInput: A value is out of range, or there is no store.
    """

    urls: tuple[str, ...]
    max_body_bytes: int = 16 * 2**20
    max_texts: int = 4096
    deadline_seconds: float = 60.0
    max_waiting_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.urls:
            raise InvalidInput(
                f"urls is {self.urls!r}; a service needs a store.\n  Give a URL, such as qdrant:./data."
            )
        for name in ("max_body_bytes", "max_texts", "deadline_seconds", "max_waiting_tokens"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InvalidInput(
                    f"{name} is {value!r}; it must be positive.\n  Omit it to use the default."
                )

    @property
    def max_bodies_bytes(self) -> int:
        """The bytes of all bodies in memory at a time."""
        return 16 * self.max_body_bytes


def is_server(url: str) -> bool:
    """Return whether other processes can open and change the store at the same time."""
    return url.partition(":")[0].lower().endswith(("+http", "+https"))


def check_workers(workers: int, urls: Sequence[str]) -> None:
    """Raise InvalidInput if several processes are to open a store that only one can open at a time."""
    for url in urls:
        if workers > 1 and not is_server(url):
            raise InvalidInput(
                f"{workers} workers cannot share {redacted(url)}: it is opened inside one process, and another process "
                "would not see its data or find it locked.\n"
                "  Use one worker, or the URL of a server, such as qdrant+http://HOST:6333."
            )
