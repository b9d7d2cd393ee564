"""Count and time the calls of a request to the store, from outside the adapters.

Each adapter calls its store through a few functions. During a benchmark these are wrapped, as close to the
transport as possible. A call is counted for the request that made it, even with concurrent requests, because
the counter is in the context of the task, which worker threads inherit.

The end of a call is measured in this process. For blocking clients (the embedded engine, pymilvus) it is
taken in their thread, and for Qdrant's gRPC in the thread that completes the call, so that waiting for the
event loop does not count as the store's time. HTTP clients (Elasticsearch, Qdrant over REST) run on the event
loop, where a response is seen when the loop gets to it. In all cases Python runs one thread at a time: if
this process uses a whole core, calls end later than the store responded (``summary`` notes such loads).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import importlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from m3_connectors.backends.store import CallKind
from m3_connectors.backends.stores import store_of


@dataclasses.dataclass
class Trips:
    """The calls of one request.

    Attributes:
        count: The number of calls.
        seconds: The time during which at least one call was in progress.
    """

    count: int = 0
    seconds: float = 0.0
    _open: int = 0
    _since: float = 0.0
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def begin(self) -> None:
        """Record the start of a call; may be called from any thread."""
        now = time.perf_counter()
        with self._lock:
            self.count += 1
            if self._open == 0:
                self._since = now
            self._open += 1

    def end(self) -> None:
        """Record the end of a call; may be called from any thread."""
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
    """Count the calls that are made inside the ``with`` block."""
    trips = Trips()
    token = _current.set(trips)
    try:
        yield trips
    finally:
        _current.reset(token)


@contextlib.contextmanager
def observed(adapter: type) -> Iterator[None]:
    """Make the calls of an adapter's connection countable; it must be opened inside the ``with`` block.

    Args:
        adapter: The class of the backend.
    """
    store = store_of(adapter)
    with contextlib.ExitStack() as wrapped:
        for calls in store.calls if store else ():
            place: Any = importlib.import_module(calls.module)
            *owner, name = calls.function.split(".")
            for part in owner:
                place = getattr(place, part)
            wrapped.enter_context(_replaced(place, name, _WRAPPERS[calls.kind]))
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
    """Count a gRPC call, which ends in gRPC's own thread, before it waits for the event loop."""

    @functools.wraps(method)
    async def call(stub: Any, request: Any, **kwargs: Any) -> Any:
        trips = _current.get()
        return await method(stub if trips is None else _Stub(stub, trips), request, **kwargs)

    return call


class _Stub:
    """Wraps a method of a gRPC stub; each future that it creates is a call to the store."""

    def __init__(self, stub: Any, trips: Trips) -> None:
        self._stub, self._trips = stub, trips

    def future(self, *args: Any, **kwargs: Any) -> Any:
        self._trips.begin()
        future = self._stub.future(*args, **kwargs)
        future.add_done_callback(lambda _: self._trips.end())
        return future


def _counted_client(opened: Any) -> Any:
    return lambda *args: _Calls(opened(*args))


class _Calls:
    """Wraps an object with blocking methods, used in worker threads; each method is a call to the store."""

    def __init__(self, called: Any) -> None:
        self._called = called

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._called, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with _current.get() or contextlib.nullcontext():
                return method(*args, **kwargs)

        return call


_WRAPPERS: Mapping[CallKind, Callable[[Any], Any]] = {
    "coroutine": _counted,
    "grpc": _counted_future,
    "client": _counted_client,
}
