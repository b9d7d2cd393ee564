"""B29: what passes a filter, page by page: ids, documents, and documents with their vectors, in bounded memory.

A store yields ids in an order of its own, which writes do not change. Documents and vectors are then read by id, as
they are at that moment. A document that is stored before a scan begins, and neither replaced nor deleted until it
ends, is yielded once. One that is written meanwhile is yielded as it was at some moment of the scan, or not at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from m3_connectors.backends.chunks import by_bytes
from m3_connectors.documents import Document
from m3_connectors.embeddings import Int64, M3Embeddings
from m3_connectors.errors import Busy, DocumentNotFound
from m3_connectors.filters import Filter, matches

if TYPE_CHECKING:
    from m3_connectors.backends.base import Backend

T = TypeVar("T")

Part = tuple[list[Document], M3Embeddings]
"""Documents and their embeddings, row i for document i."""

PART_BYTES = 32 * 2**20
"""The largest size of the vectors of a part, unless it is a single document."""

_IDS_AT_ONCE = 1000
_TEXT_BYTES = 4 * 2**20
_FIRST_DOCUMENTS, _MOST_DOCUMENTS = 16, 512
_TRIES = 8


async def id_pages(backend: Backend, filter: Filter | None) -> AsyncGenerator[list[str], None]:
    """Yield the ids of the documents that pass, a thousand at a time."""
    page: list[str] = []
    async with contextlib.aclosing(backend.passing_ids(filter)) as ids:
        async for id in ids:
            page.append(id)
            if len(page) == _IDS_AT_ONCE:
                yield page
                page = []
    if page:
        yield page


async def document_pages(backend: Backend, filter: Filter | None) -> AsyncGenerator[list[Document], None]:
    """Yield the documents that pass, in pages of a few megabytes of text."""
    room = _Room(_TEXT_BYTES)
    async with contextlib.aclosing(id_pages(backend, filter)) as pages:
        async for ids in pages:
            while ids:
                some, ids = ids[: room.documents], ids[room.documents :]
                found = _passing(backend, await backend.fetch(some), filter)
                if found:
                    room.note(len(found), sum(len(document.text) for document in found))
                    yield found


async def parts(
    backend: Backend,
    filter: Filter | None,
    choose: Callable[[list[Document]], list[Document]] = lambda page: page,
) -> AsyncGenerator[Part, None]:
    """Yield the documents that pass with their vectors, in parts of at most ``PART_BYTES`` of vectors.

    Args:
        backend: The open collection.
        filter: The filter.
        choose: Called with each page of documents that pass; only those that it returns are read and yielded.

    Raises:
        Busy: The same documents are replaced again and again while they are read.
    """
    room = _Room(PART_BYTES)
    async with contextlib.aclosing(document_pages(backend, filter)) as pages:
        async for page in pages:
            documents = choose(page)
            while documents:
                some, documents = documents[: room.documents], documents[room.documents :]
                found = await _with_vectors(backend, some, filter)
                if found is not None:
                    sizes = _sizes_bytes(found[1])
                    room.note(len(sizes), int(sizes.sum()))
                    for part in _bounded(*found, sizes):
                        yield part


async def flat(pages: AsyncGenerator[list[T], None]) -> AsyncIterator[T]:
    """Yield the items of all pages."""
    async with contextlib.aclosing(pages):
        async for page in pages:
            for item in page:
                yield item


async def passing_by_reading(
    backend: Backend, ids: AsyncIterator[str], filter: Filter
) -> AsyncGenerator[str, None]:
    """Yield those of the ids whose documents pass, for a store that cannot list them itself."""
    page: list[str] = []

    async def passing() -> list[str]:
        found = await backend.fetch(page)
        return [each.id for each in found if each is not None and matches(filter, each.metadata)]

    async for id in ids:
        page.append(id)
        if len(page) == _MOST_DOCUMENTS:
            for each in await passing():
                yield each
            page = []
    for each in await passing():
        yield each


class _Room:
    """How many documents the next request asks for, judged by the sizes of those that were read last."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.documents = _FIRST_DOCUMENTS

    def note(self, documents: int, size_bytes: int) -> None:
        fitting = self._most_bytes * documents // max(1, size_bytes)
        # It grows step by step: the documents behind short ones may be long.
        self.documents = max(1, min(fitting, 2 * self.documents, _MOST_DOCUMENTS))


async def _with_vectors(backend: Backend, documents: list[Document], filter: Filter | None) -> Part | None:
    """Return the documents that are still stored, each with the vectors of the same version; None if none is."""
    settled: list[Document] = []
    read: list[M3Embeddings] = []
    for _ in range(_TRIES):
        if not documents:
            break
        ids = [document.id for document in documents]
        try:
            vectors = await backend.vectors(ids)
        except DocumentNotFound:
            documents = _passing(backend, await backend.fetch(ids), filter)
            continue
        # Vectors that were read between two reads of the same document belong to it.
        now = await backend.fetch(ids)
        same = [i for i, document in enumerate(documents) if now[i] == document]
        if len(same) == len(documents):
            read.append(vectors)
        else:
            read += [vectors[i] for i in same]
        settled += [documents[i] for i in same]
        changed = [there for there, before in zip(now, documents, strict=True) if there != before]
        documents = _passing(backend, changed, filter)
    if documents:
        raise Busy(
            f"document {documents[0].id!r} was replaced {_TRIES} times while it was read.\n"
            "  Scan again when fewer documents are being written.",
            backend=backend.name,
            operation="scan",
        )
    if not read:
        return None
    return settled, read[0] if len(read) == 1 else M3Embeddings.concatenate(read)


def _passing(backend: Backend, found: Sequence[Document | None], filter: Filter | None) -> list[Document]:
    """Return the documents that are stored, without those that have been replaced by one that does not pass."""
    # Filters on documents of format 1 mean what their store says.
    checked = filter if backend.schema.format > 1 else None
    return [each for each in found if each is not None and matches(checked, each.metadata)]


def _bounded(documents: list[Document], embeddings: M3Embeddings, sizes: Int64) -> Iterator[Part]:
    start = 0
    for run in by_bytes(sizes.tolist(), int, PART_BYTES):
        stop = start + len(run)
        yield documents[start:stop], embeddings[start:stop]
        start = stop


def _sizes_bytes(embeddings: M3Embeddings) -> Int64:
    """Return the size of the vectors of each text."""
    sizes = np.zeros(len(embeddings), dtype=np.int64)
    if "dense" in embeddings.components:
        sizes += embeddings.dense.itemsize * embeddings.dense.shape[1]
    if "sparse" in embeddings.components:
        sizes += 8 * np.diff(embeddings.sparse.indptr)
    if "multivector" in embeddings.components:
        rows = embeddings.multivectors.rows
        sizes += rows.itemsize * rows.shape[1] * embeddings.multivectors.counts
    return sizes
