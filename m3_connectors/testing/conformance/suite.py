"""Shared by all groups of clauses: the store under test, and coroutines as tests."""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest

from m3_connectors.backends.base import Backend, Storage
from m3_connectors.backends.capabilities import Capability
from m3_connectors.backends.precision import PRECISIONS, PrecisionName
from m3_connectors.errors import Unsupported
from m3_connectors.testing.worlds import World, make_world

_StorageTest = Callable[[Any, Path, Storage], Awaitable[None]]

POOLED = Storage(long_documents="pool", pool_factor=4, pool_from_rows=1000)


def runs(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a coroutine test to its end on its own event loop."""

    @functools.wraps(test)
    def blocking(*args: Any, **kwargs: Any) -> None:
        anyio.run(functools.partial(test, *args, **kwargs))

    return blocking


def each_storage(precisions: str) -> Callable[[_StorageTest], Callable[..., None]]:
    """Run a coroutine test for each precision; one that the store does not declare must be refused instead.

    Args:
        precisions: The attribute of the suite that names the precisions.
    """

    def decorate(test: _StorageTest) -> Callable[..., None]:
        @functools.wraps(test)
        async def declared(self: Suite, tmp_path: Path, storage: Storage) -> None:
            if storage.precision.is_compact:
                backend = self.make_backend(tmp_path, "conformance")
                if Capability.COMPACT not in backend.capabilities:
                    with pytest.raises(Unsupported, match="COMPACT"):
                        await backend.create(make_world(0, documents=1, storage=storage).schema)
                    await backend.close()
                    return
                await backend.close()
            await test(self, tmp_path, storage)

        each: Any = runs(declared)
        each.precisions = precisions
        return each  # type: ignore[no-any-return]

    return decorate


class Suite(abc.ABC):
    """The store under test."""

    worlds: ClassVar[int] = 5
    """The number of random collections on which search is compared with the reference, for float16 and for
    float32; one for each compact precision, because only the decoded rows differ."""

    random_filters: ClassVar[int] = 200
    """The number of random filters whose counts on random metadata are compared with their meaning."""

    long_dimension: ClassVar[int] = 256
    """The width of the document of 8,191 rows."""

    precisions: ClassVar[tuple[PrecisionName, ...]] = tuple(PRECISIONS)
    """The precisions of multi-vector rows with which reads, scores and exact searches are tested."""

    approximate_precisions: ClassVar[tuple[PrecisionName, ...]] = ("float16", "float32", "int4")
    """The precisions for searches without ``exact``: the lists do not depend on the precision of rows, and a store
    treats all compact ones alike, so one of them is enough."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run the tests of ``each_storage`` with each precision that the suite names."""
        if named := getattr(metafunc.function, "precisions", None):
            names: tuple[PrecisionName, ...] = getattr(self, named)
            metafunc.parametrize("storage", [Storage(name) for name in names], ids=names)

    @abc.abstractmethod
    def make_backend(self, directory: Path, collection: str) -> Backend:
        """Return a backend for the collection of this name, not yet open.

        Args:
            directory: An empty directory for this test, the same for all calls of one test.
            collection: The name of the collection.
        """

    @contextlib.asynccontextmanager
    async def stored(self, directory: Path, world: World) -> AsyncIterator[Backend]:
        """Create a collection that holds a world, and remove it afterwards."""
        backend = self.make_backend(directory, "conformance")
        await backend.create(world.schema)
        try:
            if world.documents:
                await backend.upsert(world.documents, world.embeddings)
            yield backend
        finally:
            await backend.drop()
            await backend.close()


def changed(array: Any, value: float) -> Any:
    """Return a copy with ``value`` in its middle."""
    copy = array.copy()
    copy.reshape(-1)[copy.size // 2] = value
    return copy
