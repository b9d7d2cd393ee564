"""aconnect: from a URL to an index on an open collection, which is made where it is not there."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Coroutine, Generator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio

from m3_connectors.backends.base import Backend, Schema, Storage
from m3_connectors.backends.checks import check_model
from m3_connectors.backends.registry import DEFAULT_COLLECTION, backend_for
from m3_connectors.embeddings import COMPONENTS
from m3_connectors.errors import AlreadyExists, CollectionNotFound, InvalidInput
from m3_connectors.index import AsyncIndex, Encoder
from m3_connectors.methods import Weights, get_method, load_weights

WeightsByMethod = str | os.PathLike[str] | Mapping[str, Weights]
"""A weights file, as ``m3 tune`` writes it, or weights by method name."""


class Connecting:
    """What ``aconnect`` returns: await it for the index, or enter it with ``async with`` to have it closed too."""

    def __init__(self, opening: Callable[[], Coroutine[Any, Any, AsyncIndex]]) -> None:
        self._opening = opening
        self._begun = False

    def __await__(self) -> Generator[Any, None, AsyncIndex]:
        self._begun = True
        return self._opening().__await__()

    async def __aenter__(self) -> AsyncIndex:
        self._begun = True
        self._index = await self._opening()
        return self._index

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._index.close()

    def __del__(self) -> None:
        if not self._begun:  # as Python says it of a coroutine
            warnings.warn(f"{_NOT_AWAITED}.", RuntimeWarning, stacklevel=2)

    if (
        not TYPE_CHECKING
    ):  # a type checker finds these mistakes by itself, as long as it does not see these methods

        def __getattr__(self, name: str) -> None:
            if name.startswith("_"):
                raise AttributeError(name)
            self._begun = True  # it has been said
            raise InvalidInput(f"{_NOT_AWAITED}, and has no {name!r} yet.{_HOW_TO_AWAIT}")

        def __enter__(self) -> None:
            self._begun = True
            raise InvalidInput(f"{_NOT_AWAITED}: it is no context manager for a plain with.{_HOW_TO_AWAIT}")

        def __exit__(self, *_: object) -> None:
            """Never comes to be called."""


_NOT_AWAITED = "the result of aconnect was not awaited"
_HOW_TO_AWAIT = "\n  Write index = await aconnect(…), or async with aconnect(…) as index; or use connect."


def aconnect(
    url: str,
    collection: str = DEFAULT_COLLECTION,
    *,
    encoder: Encoder | None = None,
    storage: Storage | None = None,
    weights: WeightsByMethod | None = None,
    create: bool = True,
    **options: Any,
) -> Connecting:
    """Open a collection, or make it: ``index = await aconnect(…)`` or ``async with aconnect(…) as index``.

    Args:
        url: Where it is: ``memory:``, ``qdrant:DIRECTORY``, ``milvus:FILE.db``, or a server's
            ``qdrant+http(s)://``, ``milvus+http(s)://`` or ``elasticsearch+http(s)://HOST:PORT``.
        collection: Its name there.
        encoder: Turns texts into vectors; without one, give embeddings to ``add`` and ``search``.
        storage: How a new collection keeps its vectors; an existing one must have been made so.
        weights: A weights file such as ``m3 tune`` writes, or weights by method name: what a method by name uses
            then, instead of the model's own.
        create: Make the collection if it is not there (needs an encoder, whose model it records). Of several that
            start at the same time one makes it, and the others open it.
        **options: The store's own, such as ``api_key``, ``ca_certs``, ``timeout_seconds`` or ``refresh``: all are in
            docs/servers.md. Unknown ones are refused.

    Raises:
        CollectionNotFound: No such collection, and ``create`` is false or there is no encoder.
        ModelMismatch: The collection was written by another model than the encoder's.
        InvalidInput: An unusable URL, collection name, weights file or option.
        Unsupported: An option that only other stores take.
        MissingDependency: The store's client is not installed.
        FileNotFoundError: There is no such weights file.
        BackendError: The store failed.
    """
    return Connecting(lambda: _open(url, collection, encoder, storage, weights, create, options))


async def open_or_create(backend: Backend, new: Schema) -> Schema:
    """Open the collection, or make it if it is not there, whoever else does the same at this time.

    Args:
        backend: Not yet open.
        new: Of the collection if it is made here.

    Returns:
        What the collection records: ``new``, or what it was made with before or by another.

    Raises:
        AlreadyExists: The name is taken by something that cannot be opened.
        BackendError: The store failed.
    """
    with contextlib.suppress(CollectionNotFound):
        return await backend.open()
    try:
        await backend.create(new)
    except AlreadyExists:
        with contextlib.suppress(CollectionNotFound):
            return await backend.open()
        raise
    return new


async def _open(
    url: str,
    collection: str,
    encoder: Encoder | None,
    storage: Storage | None,
    weights: WeightsByMethod | None,
    create: bool,
    options: Mapping[str, Any],
) -> AsyncIndex:
    if isinstance(encoder, str):
        raise InvalidInput(f"encoder is the text {encoder!r}: give M3Encoder({encoder!r}).")
    chosen = _weights(weights)
    backend = backend_for(url, collection, options)
    try:
        if create and encoder is not None:
            schema = await open_or_create(backend, Schema(encoder.info, COMPONENTS, storage or Storage()))
        else:
            try:
                schema = await backend.open()
            except CollectionNotFound as error:
                if create:
                    error.args = (f"{error.args[0]}\n  Give connect an encoder, and it is made.",)
                raise
        if encoder is not None:
            check_model(schema.model, collection, encoder.info, what="this encoder is")
        if storage is not None and storage != schema.storage:
            raise InvalidInput(
                f'collection "{collection}" was made with {schema.storage}, not {storage}.\n'
                "  Leave storage (--long-documents) out, or index into another collection."
            )
    except BaseException:
        with anyio.CancelScope(shield=True):
            await backend.close()
        raise
    return AsyncIndex(backend, encoder, chosen)


def _weights(weights: WeightsByMethod | None) -> Mapping[str, Weights]:
    if weights is None:
        return {}
    if isinstance(weights, str | os.PathLike):
        return load_weights(weights)
    if not isinstance(weights, Mapping) or not all(isinstance(value, Weights) for value in weights.values()):
        raise InvalidInput(f'weights is {weights!r}: give a weights file, or {{"all": Weights(1, 0.3, 1)}}.')
    for name in weights:
        get_method(name)
    return dict(weights)
