"""The collections behind a service, opened when they are first asked for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

import anyio

from m3_connectors.backends.schema import Storage
from m3_connectors.backends.urls import redacted
from m3_connectors.errors import CollectionNotFound, InvalidInput, NotFound, Unsupported
from m3_connectors.index import AsyncIndex, Encoder
from m3_connectors.listing import alist_collections
from m3_connectors.methods import Weights
from m3_connectors.opening import aconnect


class Collections:
    """The collections of some stores, by name.

    Args:
        urls: The stores. A name must not be in two of them.
        encoder: Encodes the texts of all collections.
        weights: The weights of methods given by name; by default, those distributed with the model.
    """

    def __init__(
        self,
        urls: Sequence[str],
        encoder: Encoder,
        *,
        weights: Mapping[str, Weights] | None = None,
    ) -> None:
        self._urls = tuple(urls)
        self._encoder = encoder
        self._weights = weights
        self._open: dict[str, AsyncIndex] = {}
        self._turn = anyio.Lock()

    async def get(self, name: str) -> AsyncIndex:
        """Return the open collection of a name.

        Raises:
            CollectionNotFound: No store has it.
            InvalidInput: The name is not valid, or two stores have it.
            ModelMismatch: It was written by another model than the encoder's.
            BackendError: The store failed.
        """
        if name in self._open:
            return self._open[name]
        async with self._turn:
            if name not in self._open:
                self._open[name] = await self._find(name)
            return self._open[name]

    async def create(self, name: str, storage: Storage) -> AsyncIndex:
        """Return the collection of a name, created in the first store if no store has it.

        Raises:
            InvalidInput: The name is not valid, or the collection exists and has another storage.
            BackendError: The store failed or refused.
        """
        async with self._turn:
            if name not in self._open:
                try:
                    self._open[name] = await self._find(name)
                except CollectionNotFound:
                    self._open[name] = await aconnect(
                        self._urls[0], name, encoder=self._encoder, storage=storage, weights=self._weights
                    )
            index = self._open[name]
        if index.schema.storage != storage:
            raise InvalidInput(
                f'collection "{name}" was created with {index.schema.storage}, not {storage}.\n'
                "  Ask for the same components, or choose another name."
            )
        return index

    async def names(self) -> list[str]:
        """Return the names of all collections, in order."""
        names = set(self._open)
        for url in self._urls:
            with contextlib.suppress(
                NotFound, Unsupported
            ):  # an empty folder; a store in memory lists nothing
                names |= {info.name for info in await alist_collections(url) if info.schema is not None}
        return sorted(names)

    async def check(self) -> None:
        """Ask every open collection for its size.

        Raises:
            BackendError: A store does not answer.
        """
        for index in list(self._open.values()):
            await index.count()

    async def close(self) -> None:
        """Close all collections."""
        for index in self._open.values():
            await index.close()
        self._open.clear()

    async def _find(self, name: str) -> AsyncIndex:
        found: list[tuple[str, AsyncIndex]] = []
        missing: CollectionNotFound | None = None
        async with _closing(found):
            for url in self._urls:
                try:
                    opened = aconnect(url, name, encoder=self._encoder, weights=self._weights, create=False)
                    found.append((url, await opened))
                except CollectionNotFound as error:
                    missing = error
            if len(found) > 1:
                raise InvalidInput(
                    f'collection "{name}" is in {" and in ".join(redacted(url) for url, _ in found)}.\n'
                    "  Serve only one of these stores, or copy the collection under another name."
                )
            if not found:
                assert missing is not None
                missing.args = (
                    f"{str(missing).splitlines()[0]}\n  GET /v1/collections lists the collections, and PUT "
                    f"/v1/collections/{name} creates this one.",
                )
                raise missing
            return found[0][1]


@contextlib.asynccontextmanager
async def _closing(found: list[tuple[str, AsyncIndex]]) -> AsyncIterator[None]:
    """Close what was opened if the body fails."""
    try:
        yield
    except BaseException:
        with anyio.CancelScope(shield=True):
            for _, index in found:
                await index.close()
        raise
