"""An index of this package as a Haystack document store."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import anyio.to_thread
from haystack import default_from_dict, default_to_dict
from haystack.dataclasses import Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.utils import Secret

from m3_connectors.backends.base import Storage
from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.blocking import Index, connect
from m3_connectors.documents import Document as Ours
from m3_connectors.documents import Hit
from m3_connectors.errors import InvalidInput
from m3_connectors.index import AsyncIndex, Encoder
from m3_connectors.integrations.access import Access, AnyIndex, SearchOptions, delete_all
from m3_connectors.integrations.haystack.encoders import EncoderChoice
from m3_connectors.integrations.haystack.filters import to_filter

T = TypeVar("T")

Filters = dict[str, Any]

_log = logging.getLogger(__name__)


class M3DocumentStore:
    """A collection of this package, which computes all three representations of the documents that are written.

    Documents need no embedder: the store encodes ``content`` with its own model. Embeddings that documents have
    already are not stored, and a warning says so.

    Args:
        url: The URL of the store, as for ``m3_connectors.connect``. ``memory:`` begins empty when it is loaded again.
        collection: The name of the collection; it is created if it does not exist.
        model: The hub name or directory of the model, or an encoder (such a store cannot be saved).
        encoder_options: The further arguments of ``M3Encoder``, such as ``{"device": "cuda"}``.
        components: Which representations a new collection stores; all by default.
        api_key: The key of the server.
        store_options: The further options of the store, such as ``{"timeout_seconds": 60}``.
        index: An open index to use instead of all others (such a store cannot be saved). It is not closed here.
    """

    def __init__(
        self,
        url: str = "memory:",
        collection: str = DEFAULT_COLLECTION,
        model: str | Encoder = "BAAI/bge-m3",
        *,
        encoder_options: Mapping[str, Any] | None = None,
        components: Sequence[str] | None = None,
        api_key: Secret | None = None,
        store_options: Mapping[str, Any] | None = None,
        index: AnyIndex | None = None,
    ) -> None:
        self.url, self.collection, self.api_key = url, collection, api_key
        self.components = None if components is None else list(components)
        self.store_options = dict(store_options or {})
        self._encoder = EncoderChoice(model, encoder_options)
        self._access = None if index is None else Access(index)
        self._given = index is not None
        self._opened: Index | None = None
        self._opening = threading.Lock()

    @property
    def index(self) -> AnyIndex:
        """The index; the first use opens it and loads the model."""
        return self._open().index

    def warm_up(self) -> None:
        """Open the collection and load the model, which otherwise the first call does."""
        self._open()

    def close(self) -> None:
        """Close the collection if this store has opened it; the next call opens it again."""
        with self._opening:
            if self._opened is not None:
                self._opened.close()
                self._opened = self._access = None

    def to_dict(self) -> dict[str, Any]:
        """Return the store as a pipeline file has it.

        Raises:
            InvalidInput: The store was given an index or an encoder, which cannot be saved.
        """
        if self._given:
            raise InvalidInput(
                f"the document store was given {self.index!r}, which cannot be saved.\n"
                "  Give url, collection and model instead."
            )
        return default_to_dict(
            self,
            url=self.url,
            collection=self.collection,
            **self._encoder.saved("the document store"),
            components=self.components,
            api_key=None if self.api_key is None else self.api_key.to_dict(),
            store_options=self.store_options,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> M3DocumentStore:
        """Return the store of a pipeline file."""
        given = dict(data.get("init_parameters", {}))
        if isinstance(given.get("api_key"), Mapping):
            given["api_key"] = Secret.from_dict(dict(given["api_key"]))
        store: M3DocumentStore = default_from_dict(cls, {**data, "init_parameters": given})
        return store

    def count_documents(self) -> int:
        """Return the number of documents."""
        return self._run(lambda index: index.count())

    async def count_documents_async(self) -> int:
        """As ``count_documents``."""
        return await self._await(lambda index: index.count())

    def count_documents_by_filter(self, filters: Filters) -> int:
        """Return the number of documents that match.

        Raises:
            FilterError: The filter has no meaning here.
        """
        chosen = to_filter(filters)
        return self._run(lambda index: index.count(chosen))

    async def count_documents_by_filter_async(self, filters: Filters) -> int:
        """As ``count_documents_by_filter``."""
        chosen = to_filter(filters)
        return await self._await(lambda index: index.count(chosen))

    def filter_documents(self, filters: Filters | None = None) -> list[Document]:
        """Return all documents that match, in any order, without embeddings.

        Raises:
            FilterError: The filter has no meaning here.
        """
        chosen = to_filter(filters)
        return self._run(lambda index: _matching(index, chosen))

    async def filter_documents_async(self, filters: Filters | None = None) -> list[Document]:
        """As ``filter_documents``."""
        chosen = to_filter(filters)
        return await self._await(lambda index: _matching(index, chosen))

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Encode and store documents; the given documents are not changed.

        Args:
            documents: Documents with text in ``content``.
            policy: What happens with an id that is stored already; ``NONE`` is ``FAIL``.

        Returns:
            How many documents were written.

        Raises:
            DuplicateDocumentError: The policy is FAIL and an id is stored already; nothing was written.
            InvalidInput: A document has no text, has binary data, or cannot be stored.
        """
        ours = _to_ours(documents)
        return self._run(lambda index: _write(index, ours, policy))

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """As ``write_documents``."""
        ours = _to_ours(documents)
        return await self._await(lambda index: _write(index, ours, policy))

    def delete_documents(self, document_ids: list[str]) -> None:
        """Remove documents by id; ids that do not exist are ignored."""
        self._run(lambda index: index.delete(document_ids))

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """As ``delete_documents``."""
        await self._await(lambda index: index.delete(document_ids))

    def delete_all_documents(self) -> None:
        """Remove all documents; the collection stays."""
        self._run(delete_all)

    async def delete_all_documents_async(self) -> None:
        """As ``delete_all_documents``."""
        await self._await(delete_all)

    def delete_by_filter(self, filters: Filters) -> int:
        """Remove the documents that match, and return their number.

        Raises:
            FilterError: The filter has no meaning here.
            InvalidInput: The filter is empty; ``delete_all_documents`` removes everything.
        """
        chosen = to_filter(filters)
        return self._run(lambda index: index.delete(filter=chosen))

    async def delete_by_filter_async(self, filters: Filters) -> int:
        """As ``delete_by_filter``."""
        chosen = to_filter(filters)
        return await self._await(lambda index: index.delete(filter=chosen))

    def update_by_filter(self, filters: Filters, meta: dict[str, Any]) -> int:
        """Set metadata of the documents that match, and return their number; their texts are encoded again.

        Raises:
            FilterError: The filter has no meaning here.
            InvalidInput: The metadata cannot be stored.
        """
        chosen = to_filter(filters)
        return self._run(lambda index: _update(index, chosen, meta))

    async def update_by_filter_async(self, filters: Filters, meta: dict[str, Any]) -> int:
        """As ``update_by_filter``."""
        chosen = to_filter(filters)
        return await self._await(lambda index: _update(index, chosen, meta))

    def search(self, query: str, options: SearchOptions) -> list[Hit]:
        """Return the hits of a query, for ``M3Retriever``."""
        return self._run(options.of(query))

    async def search_async(self, query: str, options: SearchOptions) -> list[Hit]:
        """As ``search``."""
        return await self._await(options.of(query))

    def _open(self) -> Access:
        with self._opening:
            if self._access is None:
                options = dict(self.store_options)
                if self.api_key is not None:
                    options["api_key"] = self.api_key.resolve_value()
                storage = None if self.components is None else Storage(components=tuple(self.components))  # type: ignore[arg-type]
                encoder = self._encoder.get()
                self._opened = connect(self.url, self.collection, encoder=encoder, storage=storage, **options)
                self._access = Access(self._opened)
            return self._access

    def _run(self, call: Callable[[AsyncIndex], Awaitable[T]]) -> T:
        return self._open().run(call)

    async def _await(self, call: Callable[[AsyncIndex], Awaitable[T]]) -> T:
        access = self._access
        if access is None:
            access = await anyio.to_thread.run_sync(self._open)
        return await access.await_(call)


def to_haystack(document: Ours) -> Document:
    """Return a document as Haystack has it, without embeddings and score."""
    return Document(id=document.id, content=document.text, meta=dict(document.metadata))


def _to_ours(documents: Sequence[Document]) -> list[Ours]:
    if not isinstance(documents, list | tuple):
        raise InvalidInput(
            f"documents is {type(documents).__name__}; it must be a list of documents.\n  Use [document] for one."
        )
    ours = []
    for i, document in enumerate(documents):
        if not isinstance(document, Document):
            raise InvalidInput(
                f"documents[{i}] is {type(document).__name__}; it must be a Haystack Document.\n"
                "  Use Document(content=…)."
            )
        if document.content is None or document.blob is not None:
            lack = "has no content" if document.content is None else "has a blob"
            raise InvalidInput(
                f"documents[{i}] ({document.id!r}) {lack}; this store keeps texts and metadata only.\n"
                "  Convert the document to text first."
            )
        ours.append(Ours(document.id, document.content, document.meta))
    embedded = sum(
        document.embedding is not None or document.sparse_embedding is not None for document in documents
    )
    if embedded:
        _log.warning("%d documents have embeddings that are not stored: the store computes its own", embedded)
    return ours


async def _matching(index: AsyncIndex, filter: Mapping[str, Any] | None) -> list[Document]:
    return [to_haystack(document) async for document in index.scan(filter)]


async def _write(index: AsyncIndex, documents: list[Ours], policy: DuplicatePolicy) -> int:
    if policy is DuplicatePolicy.OVERWRITE:
        await index.add(documents)
        return len(documents)
    ids = list(dict.fromkeys(document.id for document in documents))
    stored = {document.id for document in await index.get(ids) if document is not None}
    new: dict[str, Ours] = {}
    for document in documents:
        if document.id not in stored and document.id not in new:
            new[document.id] = document
        elif policy is not DuplicatePolicy.SKIP:
            raise DuplicateDocumentError(
                f"a document with the id {document.id!r} exists already.\n"
                "  Use DuplicatePolicy.OVERWRITE or DuplicatePolicy.SKIP."
            )
    await index.add(list(new.values()))
    return len(new)


async def _update(index: AsyncIndex, filter: Mapping[str, Any] | None, meta: Mapping[str, Any]) -> int:
    # All are read before one is written: the new metadata may change which documents match.
    found = [document async for document in index.scan(filter)]
    await index.add([dataclasses.replace(d, metadata={**d.metadata, **meta}) for d in found])
    return len(found)
