"""aconnect: open the collection at a URL, creating it if it does not exist, and return its index."""

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
from m3_connectors.embeddings import ModelInfo
from m3_connectors.errors import AlreadyExists, CollectionNotFound, InvalidInput
from m3_connectors.index import AsyncIndex, Encoder
from m3_connectors.methods import Weights, get_method, load_weights

WeightsByMethod = str | os.PathLike[str] | Mapping[str, Weights]
"""A weights file, as ``m3 tune`` writes it, or a mapping from method name to weights."""


class Connecting:
    """The result of ``aconnect``: await it to get the index, or use ``async with`` to close the index too."""

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
        if not self._begun:  # the same warning that Python gives for a coroutine
            warnings.warn(f"{_NOT_AWAITED}.", RuntimeWarning, stacklevel=2)

    if not TYPE_CHECKING:  # without these methods, a type checker reports the mistakes

        def __getattr__(self, name: str) -> None:
            if name.startswith("_"):
                raise AttributeError(name)
            self._begun = True  # the error below replaces the warning
            raise InvalidInput(f"{_NOT_AWAITED}, so it has no {name!r}.{_HOW_TO_AWAIT}")

        def __enter__(self) -> None:
            self._begun = True
            raise InvalidInput(f"{_NOT_AWAITED}; a plain with statement cannot be used.{_HOW_TO_AWAIT}")

        def __exit__(self, *_: object) -> None:
            """Never called, because ``__enter__`` raises."""


_NOT_AWAITED = "the result of aconnect was not awaited"
_HOW_TO_AWAIT = "\n  Write index = await aconnect(…) or async with aconnect(…) as index, or use connect."


def aconnect(
    url: str,
    collection: str = DEFAULT_COLLECTION,
    *,
    encoder: Encoder | None = None,
    storage: Storage | None = None,
    weights: WeightsByMethod | None = None,
    create: bool = True,
    model: ModelInfo | None = None,
    **options: Any,
) -> Connecting:
    """Open or create a collection: ``index = await aconnect(…)`` or ``async with aconnect(…) as index``.

    Args:
        url: The URL of the store: ``memory:``, ``qdrant:DIRECTORY``, ``milvus:FILE.db``, or a server at
            ``qdrant+http(s)://``, ``milvus+http(s)://`` or ``elasticsearch+http(s)://HOST:PORT``.
        collection: The name of the collection.
        encoder: Computes the embeddings of texts; without it, pass embeddings to ``add`` and ``search``.
        storage: How a new collection stores its vectors, and which of the three components; an existing
            collection must have the same storage.
        weights: A weights file, as ``m3 tune`` writes it, or weights by method name. Methods given by name
            use these weights instead of the model's.
        create: Whether to create the collection if it does not exist (this needs an encoder or a model, which is
            recorded). If several callers start at the same time, one creates it and the others open it.
        model: The model of the embeddings that the collection takes, if there is no encoder.
        **options: The options of the store, such as ``api_key``, ``ca_certs``, ``timeout_seconds`` or
            ``refresh``; docs/servers.md lists them. Unknown options are refused.

    Raises:
        CollectionNotFound: The collection does not exist, and ``create`` is false or there is no encoder.
        ModelMismatch: The collection was written by a different model than the encoder's.
        InvalidInput: The URL, collection name, weights file or an option is not valid.
        Unsupported: An option belongs to other stores.
        MissingDependency: The store's client is not installed.
        FileNotFoundError: The weights file does not exist.
        BackendError: The store failed or refused the operation.
    """
    return Connecting(lambda: _open(url, collection, encoder, storage, weights, create, model, options))


async def open_or_create(backend: Backend, new: Schema) -> Schema:
    """Open the collection, or create it if it does not exist, even if others do the same concurrently.

    Args:
        backend: The backend, not yet open.
        new: The schema of the collection if it is created here.

    Returns:
        The recorded schema: ``new``, or the schema that the existing collection was created with.

    Raises:
        AlreadyExists: The name is already used by something that cannot be opened.
        BackendError: The store failed or refused the operation.
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
    model: ModelInfo | None,
    options: Mapping[str, Any],
) -> AsyncIndex:
    if isinstance(encoder, str):
        raise InvalidInput(
            f"encoder is the string {encoder!r}; it must be an encoder.\n  Use M3Encoder({encoder!r})."
        )
    chosen = _weights(weights)
    backend = backend_for(url, collection, options)
    try:
        info = model if encoder is None else encoder.info
        if create and info is not None:
            schema = await open_or_create(backend, Schema(info, storage or Storage()))
        else:
            try:
                schema = await backend.open()
            except CollectionNotFound as error:
                if create:
                    error.args = (
                        f"{error.args[0]}\n  Pass an encoder (or a model) to connect to create it.",
                    )
                raise
        if encoder is not None:
            check_model(schema.model, collection, encoder.info, what="this encoder is")
        check_model(schema.model, collection, model, what="the given model is")
        if storage is not None and storage != schema.storage:
            raise InvalidInput(
                f'collection "{collection}" was created with {schema.storage}, not {storage}.\n'
                "  Omit storage (--components, --multivector-dtype, --long-documents), or index into another "
                "collection. add_component adds a component to this one."
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
        raise InvalidInput(
            f"weights is {weights!r}; it must be a file name or a mapping from method name to Weights.\n"
            '  Use a weights file, or {"all": Weights(1, 0.3, 1)}.'
        )
    for name in weights:
        get_method(name)
    return dict(weights)
