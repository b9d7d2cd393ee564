"""Where a request's time goes: its calls to the store, counted and timed from outside the adapters.

Each adapter speaks to its store through few functions; for the time of a benchmark these are wrapped, as near to the
transport as they go. What is counted belongs to the request that made the call, however many run at the same time,
because it travels in the task's context, into worker threads too.

When a call ends is seen in this process only: blocking clients (the embedded engine, pymilvus) are stamped in their
own thread and Qdrant's gRPC in the thread that completes the call, so that waiting for the event loop is not the
store's time; HTTP clients (Elasticsearch, Qdrant over REST) live on the event loop, where an answer is seen when its
turn comes. Either way Python runs one thread at a time: where this process fills a core, calls end later than the
store answered (``summary`` notes such loads).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import importlib
import sys
import threading
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
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def begin(self) -> None:
        """A call has begun; from any thread."""
        now = time.perf_counter()
        with self._lock:
            self.count += 1
            if self._open == 0:
                self._since = now
            self._open += 1

    def end(self) -> None:
        """It has ended; from any thread."""
        now = time.perf_counter()
        with self._lock:
            self._open -= 1
            if self._open == 0:
                self.seconds += now - self._since

    def __enter__(self) -> Trips:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


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


@contextlib.contextmanager
def observed(adapter: type) -> Iterator[None]:
    """Make the calls of an adapter's connection countable; it must be opened inside.

    Args:
        adapter: Class of the backend.
    """
    family = adapter.__module__.rpartition(".")[0]
    with contextlib.ExitStack() as wrapped:
        for (whose, module, owner, name), wrap in _WAYS.items():
            if family.endswith(whose) and module in sys.modules:
                place = sys.modules[module]
                wrapped.enter_context(_replaced(getattr(place, owner) if owner else place, name, wrap))
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


def _counted_future(method: Any) -> Any:
    """gRPC's own thread ends the call, before anything waits for the event loop."""

    @functools.wraps(method)
    async def call(stub: Any, request: Any, **kwargs: Any) -> Any:
        trips = _current.get()
        return await method(stub if trips is None else _Stub(stub, trips), request, **kwargs)

    return call


class _Stub:
    """A method of a gRPC stub; each future that it makes is a call to the store."""

    def __init__(self, stub: Any, trips: Trips) -> None:
        self._stub, self._trips = stub, trips

    def future(self, *args: Any, **kwargs: Any) -> Any:
        self._trips.begin()
        future = self._stub.future(*args, **kwargs)
        future.add_done_callback(lambda _: self._trips.end())
        return future


def _loading(load: Any) -> Any:
    return lambda home: _Calls(load(home))


def _counted_client(opened: Any) -> Any:
    return lambda connection, operation: _Calls(opened(connection, operation))


class _Calls:
    """An object that is called from worker threads, and blocks them; each of its methods is a call to the store."""

    def __init__(self, called: Any) -> None:
        self._called = called

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._called, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with _current.get() or contextlib.nullcontext():
                return method(*args, **kwargs)

        return call


_WAYS: dict[tuple[str, str, str, str], Callable[[Any], Any]] = {
    ("milvus", "m3_connectors.backends.milvus.client", "Connection", "_open_client"): _counted_client,
    (
        "elasticsearch",
        "m3_connectors.backends.elasticsearch.connection",
        "_Node",
        "perform_request",
    ): _counted,
    ("qdrant", "m3_connectors.backends.qdrant.server_grpc", "", "unary"): _counted_future,
    ("qdrant", "qdrant_client.http.api_client", "AsyncApiClient", "send_inner"): _counted,
}
"""Adapter, module, class ("" for a function of the module) and name of what every request goes through."""

_EDGE = "m3_connectors.backends.qdrant.shard"
