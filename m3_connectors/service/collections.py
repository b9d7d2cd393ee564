"""The collections behind a service, opened when they are first asked for."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence

import anyio

from m3_connectors.backends.schema import Storage
from m3_connectors.backends.urls import redacted
from m3_connectors.errors import CollectionNotFound, InvalidInput, ModelMismatch, NotFound, Unsupported
from m3_connectors.index import AsyncIndex, Encoder
from m3_connectors.listing import alist_collections
from m3_connectors.methods import Weights
from m3_connectors.opening import aconnect
from m3_connectors.service.settings import is_server

_TRUSTED_SECONDS = 5.0
"""How long a collection on a server is taken to be the one that was opened: other programs may replace it."""


@dataclasses.dataclass(eq=False)
class _Opened:
    """An open collection, its store, and when the store was last asked for its schema."""

    index: AsyncIndex
    url: str
    seen_at: float


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
        self._open: dict[str, _Opened] = {}
        self._turn = anyio.Lock()

    async def get(self, name: str, *, is_to_write: bool = False) -> AsyncIndex:
        """Return the open collection of a name.

        One on a server is opened anew when another program has replaced it: vectors of this model in a collection of
        another would be wrong, and silently so.

        Args:
            name: Its name.
            is_to_write: Ask the store now whether it is still the same collection, and not every few seconds.

        Raises:
            CollectionNotFound: No store has it.
            InvalidInput: The name is not valid, or two stores have it.
            ModelMismatch: It was written by another model than the encoder's.
            BackendError: The store failed.
        """
        if opened := self._open.get(name):
            await self._look_again(name, opened, 0.0 if is_to_write else _TRUSTED_SECONDS)
        if name not in self._open:
            async with self._turn:
                if name not in self._open:
                    self._open[name] = await self._find(name)
        return self._open[name].index

    async def create(self, name: str, storage: Storage) -> AsyncIndex:
        """Return the collection of a name, created in the first store if no store has it.

        Raises:
            InvalidInput: The name is not valid, or the collection exists and has another storage.
            BackendError: The store failed or refused.
        """
        try:
            index = await self.get(name, is_to_write=True)
        except CollectionNotFound:
            url = self._urls[0]
            async with self._turn:
                if name not in self._open:
                    index = await aconnect(
                        url, name, encoder=self._encoder, storage=storage, weights=self._weights
                    )
                    self._open[name] = _Opened(index, url, anyio.current_time())
            index = self._open[name].index
        if index.schema.storage != storage:
            raise InvalidInput(
                f'collection "{name}" was created with {index.schema.storage}, not {storage}.\n'
                "  Ask for the same components, or choose another name."
            )
        return index

    async def names(self) -> list[str]:
        """Return the names of all collections, in order."""
        names = {name for name, opened in self._open.items() if not is_server(opened.url)}
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
        for name, opened in list(self._open.items()):
            try:
                await opened.index.count()
            except CollectionNotFound:  # another program has dropped it, and the store answers
                await self._forget(name, opened)

    async def close(self) -> None:
        """Close all collections."""
        for opened in self._open.values():
            await opened.index.close()
        self._open.clear()

    async def _look_again(self, name: str, opened: _Opened, trusted_seconds: float) -> None:
        """Ask the server, unless it said so a moment ago, whether a collection is the one that was opened."""
        if not is_server(opened.url) or anyio.current_time() - opened.seen_at < trusted_seconds:
            return
        try:
            fresh = unused = await self._aconnect(opened.url, name)
        except (CollectionNotFound, ModelMismatch):
            await self._forget(name, opened)
            raise
        opened.seen_at = anyio.current_time()
        if fresh.schema != opened.index.schema and self._open.get(name) is opened:
            self._open[name], unused = _Opened(fresh, opened.url, opened.seen_at), opened.index
        with anyio.CancelScope(shield=True):
            await unused.close()

    async def _forget(self, name: str, opened: _Opened) -> None:
        if self._open.get(name) is opened:
            del self._open[name]
            with anyio.CancelScope(shield=True):
                await opened.index.close()

    async def _aconnect(self, url: str, name: str) -> AsyncIndex:
        return await aconnect(url, name, encoder=self._encoder, weights=self._weights, create=False)

    async def _find(self, name: str) -> _Opened:
        found: list[tuple[str, AsyncIndex]] = []
        missing: CollectionNotFound | None = None
        async with _closing(found):
            for url in self._urls:
                try:
                    found.append((url, await self._aconnect(url, name)))
                except CollectionNotFound as error:
                    missing = error
            if len(found) > 1:
                raise InvalidInput(
                    f'collection "{name}" is in {" and in ".join(redacted(url) for url, _ in found)}.\n'
                    "  Serve only one of these stores, or copy the collection under another name."
                )
            if not found:
                assert missing is not None
                # Without the words of the store, which may contain a path of this machine.
                missing.args = (
                    f'there is no collection "{name}".\n  GET /v1/collections lists the collections, and '
                    f"PUT /v1/collections/{name} creates this one.",
                )
                raise missing
            url, index = found[0]
            return _Opened(index, url, anyio.current_time())


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
