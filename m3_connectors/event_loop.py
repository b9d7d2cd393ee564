"""Event loops on which blocking code runs calls, and which Ctrl-C can give up."""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel
from anyio.from_thread import BlockingPortal

from m3_connectors.errors import InvalidInput

T = TypeVar("T")


class Call(Generic[T]):
    """A call on the loop. Whoever is interrupted between ``start`` and ``result`` must abandon it."""

    def __init__(self, portal: BlockingPortal, call: Callable[[], Awaitable[T]]) -> None:
        self._portal = portal
        self._call = call
        self._over = threading.Event()
        self.is_abandoned = False
        self._scope: anyio.CancelScope | None = None
        self._future: Future[T] = Future()

    def start(self) -> None:
        """Hand the call to the loop."""
        self._future = self._portal.start_task_soon(self._watched)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._over.is_set()

    def result(self) -> T:
        """Wait for its end, and return its result or raise its error."""
        return self._future.result()

    def abandon(self) -> None:
        """Cancel or prevent the call, and wait until it has ended, if it has begun.

        Work in a thread (encoding a batch) runs to its end first; a second Ctrl-C does not wait for it.
        """
        if not self._over.is_set() and self._portal.call(self.cancel):
            self._over.wait()

    async def _watched(self) -> T:
        try:
            with anyio.CancelScope() as self._scope:
                if self.is_abandoned:
                    self._scope.cancel()
                await anyio.lowlevel.checkpoint()
                return await self._call()
        finally:
            self._over.set()
        # The caller has already received KeyboardInterrupt.
        raise interrupted()

    def cancel(self) -> bool:
        """Cancel or prevent the call (in the loop's thread); return whether it has started."""
        self.is_abandoned = True
        if self._scope is not None:
            self._scope.cancel()
        return self._scope is not None


def interrupted() -> InvalidInput:
    """Return the error of a call that was given up."""
    return InvalidInput("the call was interrupted.\n  Call it again.")


class Loop:
    """An event loop in a daemon thread, so that an index that is not closed cannot block interpreter exit."""

    def __init__(self) -> None:
        ready: Future[BlockingPortal] = Future()
        self._thread = threading.Thread(
            target=anyio.run, args=(self._serve, ready), name="m3-index", daemon=True
        )
        self._thread.start()
        self._portal = ready.result()

    @staticmethod
    async def _serve(ready: Future[BlockingPortal]) -> None:
        async with BlockingPortal() as portal:
            ready.set_result(portal)
            await portal.sleep_until_stopped()

    @property
    def is_current(self) -> bool:
        """Whether this is the loop's own thread."""
        return threading.current_thread() is self._thread

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run a call and return its result; Ctrl-C gives it up first."""
        running = self.call(call)
        try:
            running.start()
            return running.result()
        except KeyboardInterrupt:
            running.abandon()
            raise

    def call(self, call: Callable[[], Awaitable[T]]) -> Call[T]:
        """Return a call that has not been started: an interrupt while it starts finds it, and can abandon it."""
        if not self._thread.is_alive():
            raise InvalidInput("this index is closed.\n  Call connect again.")
        return Call(self._portal, call)

    def each(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """Yield what an asynchronous generator yields; it ends with this one."""
        try:
            while (item := self.run(partial(anext, items, None))) is not None:
                yield item
        finally:
            # A scan that is collected in the loop's own thread, or after the index was closed, ends with the loop.
            if threading.current_thread() is not self._thread and self._thread.is_alive():
                self.run(items.aclose)

    def stop(self) -> None:
        """Stop the loop and wait for it, unless called from its own thread (when an index is collected)."""
        if self._thread.is_alive():
            self._portal.start_task_soon(self._portal.stop)
            if threading.current_thread() is not self._thread:
                self._thread.join()


class LentLoop(Loop):
    """The loop of a thread that waits for a worker thread, for the calls of the latter.

    Each call is cancelled by its own scope: those of a portal are not cancelled reliably while its thread waits.
    """

    def __init__(self, portal: BlockingPortal) -> None:
        self._thread = threading.current_thread()
        self._portal = portal
        self._lock = threading.Lock()
        self._calls: weakref.WeakSet[Call[Any]] = weakref.WeakSet()
        self.is_abandoned = False

    def call(self, call: Callable[[], Awaitable[T]]) -> Call[T]:
        """Return a call as ``Loop.call``; it is given up at once if the loop was abandoned."""
        made = super().call(call)
        with self._lock:
            self._calls.add(made)
            made.is_abandoned = self.is_abandoned
        return made

    def abandon(self) -> None:
        """Cancel all calls, in the thread of the loop, and prevent others."""
        with self._lock:
            self.is_abandoned = True
            for call in self._calls:
                call.cancel()
