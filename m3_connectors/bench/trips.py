"""Where a request's time goes: its calls to the store, counted and timed from outside the adapters.

Each adapter speaks to its store through one function; for the time of a benchmark these are wrapped. What is counted
belongs to the request that made the call, however many run at the same time, because it travels in the task's context.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass
class Trips:
    """The calls of one request.

    Attributes:
        count: How many.
        seconds: Time during which at least one was under way.
    """

    count: int = 0
    seconds: float = 0.0
    _open: int = 0
    _since: float = 0.0

    def __enter__(self) -> Trips:
        self.count += 1
        if self._open == 0:
            self._since = time.perf_counter()
        self._open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._open -= 1
        if self._open == 0:
            self.seconds += time.perf_counter() - self._since


_current: contextvars.ContextVar[Trips | None] = contextvars.ContextVar("m3_bench_trips", default=None)


@contextlib.contextmanager
def counting() -> Iterator[Trips]:
    """Count the calls of what runs inside."""
    trips = Trips()
    token = _current.set(trips)
    try:
        yield trips
    finally:
        _current.reset(token)


_WAYS = {
    "m3_connectors.backends.milvus.client": ("Connection", "in_thread"),
    "m3_connectors.backends.elasticsearch.connection": ("Connection", "_once"),
    "m3_connectors.backends.qdrant.server_connection": ("Connection", "call"),
}
"""Module to the class and the coroutine function that every request of an adapter goes through."""

_EDGE = "m3_connectors.backends.qdrant.shard"


@contextlib.contextmanager
def observed(adapter: type) -> Iterator[None]:
    """Make the calls of an adapter's connection countable; it must be opened inside.

    Args:
        adapter: Class of the backend.
    """
    family = adapter.__module__.rpartition(".")[0]
    with contextlib.ExitStack() as wrapped:
        for module, (owner, name) in _WAYS.items():
            if module.startswith(family) and module in sys.modules:
                wrapped.enter_context(_replaced(getattr(sys.modules[module], owner), name, _counted))
        if adapter.__module__.endswith(".edge"):
            wrapped.enter_context(_replaced(importlib.import_module(_EDGE), "_load", _loading))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, wrap(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def _counted(function: Any) -> Any:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        trips = _current.get()
        with trips or contextlib.nullcontext():
            return await function(*args, **kwargs)

    return call


def _loading(load: Any) -> Any:
    return lambda home: _Engine(load(home))


class _Engine:
    """The embedded engine; each of its methods is a call to the store."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._engine, name)

        def call(*args: Any) -> Any:
            with _current.get() or contextlib.nullcontext():
                return method(*args)

        return call
