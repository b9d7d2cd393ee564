"""Which calls a milvus-lite engine may run at the same time.

milvus-lite reads a collection in several steps: its segments, then the rows and the deletions that are not flushed yet.
A write between two of these steps makes the read show an older version of a document than the one that was acknowledged
before the read began, or a document that was deleted (measured with 3.2.2). So a write runs alone on its collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator


@dataclasses.dataclass(eq=False)
class _Call:
    collection: str
    is_write: bool

    def excludes(self, other: _Call) -> bool:
        if self.is_write and other.is_write:
            return True  # the engine takes one writer at a time, whatever the collections
        return (self.is_write or other.is_write) and self.collection == other.collection


class Exclusion:
    """The calls to one engine, in the order of their arrival: each waits for the earlier ones that exclude it.

    Reads run at the same time. A call never overtakes one that excludes it, so neither reads nor writes starve.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def turn(
        self, collection: str, is_write: bool, seconds: float, late: Callable[[], Exception]
    ) -> Iterator[None]:
        """Wait for the turn of a call, which blocks the thread, and hold it.

        Args:
            collection: Name of the collection that is read or written.
            is_write: Whether the call may change it.
            seconds: The longest time to wait.
            late: Returns what to raise when earlier calls take longer.
        """
        call = _Call(collection, is_write)
        with self._changed:
            self._calls.append(call)
        try:
            with self._changed:
                is_free = self._changed.wait_for(lambda: self._is_free_for(call), max(0.0, seconds))
            if not is_free:
                raise late()
            yield
        finally:
            with self._changed:
                self._calls.remove(call)
                self._changed.notify_all()

    def _is_free_for(self, call: _Call) -> bool:
        earlier = self._calls[: self._calls.index(call)]
        return not any(call.excludes(other) for other in earlier)


_by_address: weakref.WeakValueDictionary[str, Exclusion] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def exclusion_of(address: str) -> Exclusion:
    """Return the exclusion that all connections of this process to an engine share.

    Args:
        address: Where the engine listens, as ``http://HOST:PORT``, in the same spelling for every connection.
    """
    with _lock:
        return _by_address.setdefault(address, Exclusion())
