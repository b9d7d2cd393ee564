"""Documents on their way into a store, in batches of bounded size, with encoder and store at work at the same time.

Batches go through two places in their order: one is encoded at a time, and one is written at a time, so a call takes
the time of the slower of the two. What waits between them is bounded in bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, TypeVar

import anyio
import anyio.lowlevel
import numpy as np

from m3_connectors.backends.base import Backend
from m3_connectors.backends.checks import other_precision
from m3_connectors.backends.pooling import long_documents
from m3_connectors.documents import Document
from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings

_log = logging.getLogger(__name__)

BATCH_DOCUMENTS = 512
BATCH_BYTES = 64_000
"""The bounds of a batch, in documents and in bytes of UTF-8; a longer text is a batch of its own.

64,000 bytes are about 16,000 tokens: 64 MB of float32 multi-vectors at 1,024 dimensions, and seconds of encoding. No
text of that size has more than 64,000 tokens (one for each byte: 262 MB), and a text of its own has at most the 8,192
of the model (34 MB)."""

WAITING_BYTES = 128 * 2**20
"""While this many bytes of vectors wait for the store or are being written, no further batch is encoded: fewer than
these and one batch are in memory."""

BATCHES_AT_ONCE = 4
"""The number of batches between reading and the store's acknowledgement: written, waiting, encoded and ready."""

T = TypeVar("T")
Encode = Callable[[list[str]], Awaitable[M3Embeddings]]
Write = Callable[[Sequence[Document], M3Embeddings], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class CutDocument:
    """A document longer than the encoder's maximum: it is stored whole, but only its beginning is searchable.

    Attributes:
        id: The id of the document.
        token_count: The number of tokens in the whole text; None if the embeddings passed to ``add`` lack it.
        kept_token_count: The number of tokens that were encoded, from the first; None in the same case.
    """

    id: str
    token_count: int | None
    kept_token_count: int | None

    @property
    def lost_token_count(self) -> int | None:
        """The number of tokens that no search can find; None if unknown."""
        if self.token_count is None or self.kept_token_count is None:
            return None
        return self.token_count - self.kept_token_count

    @property
    def lost_share(self) -> float | None:
        """The share of the text's tokens that no search can find, 0 to 1; None if unknown."""
        lost = self.lost_token_count
        return None if lost is None or not self.token_count else lost / self.token_count


OnCut = Callable[[CutDocument], object]
"""Called with each document whose text was truncated."""


@dataclasses.dataclass(frozen=True)
class RefusedPart:
    """A document, or a chunk of one, that could not be encoded or written.

    Attributes:
        document: What was refused.
        stage: ``"encode"`` or ``"write"``.
        reason: Why, in one line.
    """

    document: Document
    stage: Literal["encode", "write"]
    reason: str


@dataclasses.dataclass(frozen=True)
class Stored:
    """A batch that the store has acknowledged.

    Attributes:
        batch: The documents as they were given.
        documents: Those of them that are stored; of a repeated id, the last.
        embeddings: What was stored for them, row i for document i; None if there are none.
        cut: Those of them whose text was truncated.
        pooled: The number of those whose multi-vector rows were pooled.
        refused: The documents that are not stored, and why. A plain ``DocumentWriter`` raises the error instead.
    """

    batch: Sequence[Document]
    documents: Sequence[Document]
    embeddings: M3Embeddings | None
    cut: Sequence[CutDocument] = ()
    pooled: int = 0
    refused: Sequence[RefusedPart] = ()


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A batch that can be written.

    Attributes:
        batch: The documents as they were given.
        documents: Those of them that are written: of a repeated id, the last.
        embeddings: Their embeddings; None if there are none.
        components: The components that were encoded; None for embeddings that the caller gave.
        refused: Those that could not be encoded.
    """

    batch: Sequence[Document]
    documents: Sequence[Document]
    embeddings: M3Embeddings | None
    components: tuple[Component, ...] | None
    refused: Sequence[RefusedPart] = ()


Vectors = tuple[Sequence[Document], M3Embeddings | None, Sequence[RefusedPart]]
"""The documents that were encoded, their embeddings, and those that could not be encoded."""


class DocumentWriter:
    """Encodes and stores the batches of one call.

    Args:
        backend: The store to write to.
        encode: Encodes the texts of batches that have no embeddings.
        write: Writes a batch; by default, ``upsert`` of the store.
    """

    def __init__(self, backend: Backend, encode: Encode, write: Write | None = None) -> None:
        self._backend = backend
        self._encode = encode
        self._write = write or backend.upsert
        self._entered = 0
        self._encoding, self._writing = _Turns(), _Turns()
        self.waiting_bytes = 0
        """The size of the vectors that wait for the store or are being written."""
        self._freed: anyio.Event | None = None
        self._failure: Exception | None = None
        self._warned = False
        self.encoding_seconds = 0.0
        """For how long texts were being encoded; the rest of the call waited for documents or for the store."""
        self.writing_seconds = 0.0
        """For how long batches were being written."""

    def enter(
        self, batch: Sequence[Document], embeddings: M3Embeddings | None
    ) -> Callable[[], Awaitable[Stored]]:
        """Return the call that takes a batch through: batches are encoded and written in the order of ``enter``.

        The calls may run at the same time. If one fails, those after it raise its error and write nothing.
        """
        number, self._entered = self._entered, self._entered + 1
        return partial(self._through, number, batch, embeddings)

    async def run(
        self,
        batches: Iterable[tuple[Sequence[Document], M3Embeddings | None]],
        on_stored: Callable[[Stored], object],
    ) -> None:
        """Take batches through, and call ``on_stored`` with each that the store has acknowledged, in their order."""
        room = anyio.Semaphore(BATCHES_AT_ONCE)
        failure: Exception | None = None
        unread: Exception | None = None

        async def one(call: Callable[[], Awaitable[Stored]]) -> None:
            nonlocal failure
            try:
                on_stored(await call())
            except Exception as error:  # noqa: BLE001 (raised below; a task group would wrap it)
                failure = self._failure = failure or error
            finally:
                room.release()

        async with anyio.create_task_group() as tasks:
            try:
                for batch, embeddings in batches:
                    await room.acquire()
                    if failure is not None:
                        break
                    tasks.start_soon(one, self.enter(batch, embeddings))
            except Exception as error:  # noqa: BLE001 (raised after the batches before it have been stored)
                unread = error
        if failure is not None:
            raise failure
        if unread is not None:
            raise unread

    async def delete(self, ids: Sequence[str]) -> int:
        """Remove documents by id; return how many were stored."""
        return await self._call(partial(self._backend.delete, ids))

    async def store(self, batch: Sequence[Document]) -> Stored:
        """Encode and write one batch, for callers that must not read the next one before."""
        return await self._stored(await self._encoded(batch, None))

    async def _through(
        self, number: int, batch: Sequence[Document], embeddings: M3Embeddings | None
    ) -> Stored:
        async with self._encoding.turn(number), self._telling_those_after():
            while self.waiting_bytes >= WAITING_BYTES and self._failure is None:
                self._freed = anyio.Event()
                await self._freed.wait()
            encoded = await self._encoded(batch, embeddings)
            size = _bytes(encoded.embeddings)
            self.waiting_bytes += size
        try:
            async with self._writing.turn(number), self._telling_those_after():
                return await self._stored(encoded)
        finally:
            self.waiting_bytes -= size
            if self._freed is not None:
                self._freed.set()

    @contextlib.asynccontextmanager
    async def _telling_those_after(self) -> AsyncIterator[None]:
        if self._failure is not None:
            raise self._failure
        try:
            yield
        except Exception as error:
            self._failure = error
            raise

    async def _encoded(self, batch: Sequence[Document], embeddings: M3Embeddings | None) -> Encoded:
        kept = sorted({document.id: i for i, document in enumerate(batch)}.values())
        documents = batch if len(kept) == len(batch) else [batch[i] for i in kept]
        if embeddings is None:
            components = tuple(self._backend.schema.written)
            encoded, vectors, refused = await self._embed(documents)
            return Encoded(batch, encoded, vectors, components, refused)
        if len(kept) < len(batch):
            embeddings = M3Embeddings.concatenate([embeddings[i] for i in kept])
        return Encoded(batch, documents, embeddings, None)

    async def _embed(self, documents: Sequence[Document]) -> Vectors:
        """Encode documents, at least one."""
        return documents, await self._timed(documents), ()

    async def _timed(self, documents: Sequence[Document]) -> M3Embeddings:
        began = time.monotonic()
        try:
            return await self._encode([document.text for document in documents])
        finally:
            self.encoding_seconds += time.monotonic() - began

    async def _stored(self, encoded: Encoded) -> Stored:
        """Write a batch."""
        documents, embeddings, components = encoded.documents, encoded.embeddings, encoded.components
        refused = list(encoded.refused)
        await self._call(self._renew)
        while components is not None and components != tuple(self._backend.schema.written):
            # Another process has begun to add a component: the collection needs it of every document.
            components = tuple(self._backend.schema.written)
            documents, embeddings, more = await self._embed(documents)
            refused += more
            await self._call(self._renew)
        # Encoding runs in a thread and is not cancelled: a call that was cancelled meanwhile must not write.
        await anyio.lowlevel.checkpoint()
        if embeddings is not None:
            self._name_another_precision(embeddings)
            began = time.monotonic()
            unwritten = await self._put(documents, embeddings)
            self.writing_seconds += time.monotonic() - began
            if unwritten:
                refused += unwritten
                lost = {part.document.id for part in unwritten}
                kept = [i for i, document in enumerate(documents) if document.id not in lost]
                documents = [documents[i] for i in kept]
                embeddings = M3Embeddings.concatenate([embeddings[i] for i in kept]) if kept else None
        if embeddings is None:
            return Stored(encoded.batch, (), None, refused=refused)
        cut = list(_cut_documents(documents, embeddings))
        pooled = int(long_documents(self._backend.schema.storage, embeddings).sum())
        return Stored(encoded.batch, documents, embeddings, cut, pooled, refused)

    def _name_another_precision(self, embeddings: M3Embeddings) -> None:
        """Warn once if the collection will contain vectors of two precisions."""
        model = self._backend.schema.model
        if not self._warned and (said := other_precision(model, self._backend.collection, embeddings.model)):
            self._warned = True
            _log.warning("%s", said)

    async def _put(self, documents: Sequence[Document], embeddings: M3Embeddings) -> Sequence[RefusedPart]:
        """Write documents with their embeddings; return those that could not be written."""
        await self._write(documents, embeddings)
        return ()

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await a call of the store."""
        return await call()

    async def _renew(self) -> None:
        """Read the record again, in case another process adds a component; it costs a request on some stores."""
        if self._backend.schema.components != COMPONENTS:
            await self._backend.renew()


class _Turns:
    """Lets calls through one after another, in the order of their numbers: 0, 1, 2, …"""

    def __init__(self) -> None:
        self._now = 0
        self._waiting: dict[int, anyio.Event] = {}

    @contextlib.asynccontextmanager
    async def turn(self, number: int) -> AsyncIterator[None]:
        if number != self._now:
            self._waiting[number] = anyio.Event()
            await self._waiting[number].wait()
        try:
            yield
        finally:
            self._now = number + 1
            if following := self._waiting.pop(self._now, None):
                following.set()


def _bytes(embeddings: M3Embeddings | None) -> int:
    """Return the size of the vectors in memory."""
    if embeddings is None:
        return 0
    size = 0
    for component in embeddings.components:
        if component == "dense":
            size += embeddings.dense.nbytes
        elif component == "sparse":
            size += embeddings.sparse.data.nbytes + embeddings.sparse.indices.nbytes
        else:
            size += embeddings.multivectors.rows.nbytes
    return size


def _cut_documents(documents: Sequence[Document], embeddings: M3Embeddings) -> Iterator[CutDocument]:
    counts, kept = embeddings.token_counts, embeddings.kept_token_counts
    for i in np.flatnonzero(embeddings.truncated).tolist():
        yield CutDocument(
            documents[i].id,
            None if counts is None else int(counts[i]),
            None if kept is None else int(kept[i]),
        )


def bounded(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield documents in batches of bounded text size, so that memory is bounded for texts of any length."""
    batch: list[Document] = []
    total = 0
    for document in documents:
        size = _text_bytes(document)
        if batch and (len(batch) == BATCH_DOCUMENTS or total + size > BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(document)
        total += size
    if batch:
        yield batch


def _text_bytes(document: object) -> int:
    """Return the size of a document's text; 0 for what is not a document, which the check will refuse."""
    text: object = document.text if isinstance(document, Document) else ""
    if not isinstance(text, str):
        return 0
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
