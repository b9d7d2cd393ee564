"""One ``add`` call: documents are encoded and written in batches of bounded size.

A batch is encoded while the one before it is written, so a call takes the time of the slower of the two, and at most
two batches with their vectors are in memory.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

import anyio
import anyio.lowlevel
import numpy as np

from m3_connectors.backends.base import Backend
from m3_connectors.backends.checks import check_stored
from m3_connectors.backends.pooling import long_documents
from m3_connectors.documents import Document, check_documents
from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings
from m3_connectors.errors import InvalidInput

_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 64_000
"""About 16,000 tokens: 64 MB of float32 multi-vectors at 1,024 dimensions, and seconds of encoding."""

MOST_CUT_NAMED = 1000
"""The number of truncated documents that a report lists; ``on_cut`` is called for every one."""

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
class AddReport:
    """The result of ``add``.

    Attributes:
        written: The number of documents stored; each id is counted once.
        duplicates: Ids that occurred more than once in the call; the last document of each was kept.
        truncated: The number of documents whose text was longer than the encoder's maximum and was truncated.
        lost_tokens: The number of tokens that were cut off, over all documents.
        cut: The truncated documents with their token counts. Only the first 1,000 are listed, to keep the
            report small; ``add`` calls ``on_cut`` for every one.
        pooled: The number of long documents whose multi-vector rows were pooled, as the storage specifies.
        encoding_seconds: For how long texts were being encoded; the rest of the call waited for documents or for
            the store.
    """

    written: int
    duplicates: tuple[str, ...] = ()
    truncated: int = 0
    lost_tokens: int = 0
    cut: tuple[CutDocument, ...] = ()
    pooled: int = 0
    encoding_seconds: float = dataclasses.field(default=0.0, compare=False)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A batch that the store has acknowledged; the first step of a call has none.

    Attributes:
        documents: The documents of the batch; of those with the same id, the last.
        cut: Those of them whose text was truncated.
        embeddings: What was stored for them, row i for document i; None for the first step.
    """

    documents: Sequence[Document] = ()
    cut: Sequence[CutDocument] = ()
    embeddings: M3Embeddings | None = None


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """A batch that can be written.

    Attributes:
        batch: The documents as they were given.
        documents: Those of them that are written: of a repeated id, the last.
        embeddings: Their embeddings.
        components: The components that were encoded; None for embeddings that the caller gave.
    """

    batch: Sequence[Document]
    documents: Sequence[Document]
    embeddings: M3Embeddings
    components: tuple[Component, ...] | None


class DocumentWriter:
    """Stores the batches of one ``add`` call and counts the documents.

    Args:
        backend: The store to write to.
        encode: Encodes the texts of batches that have no embeddings.
        write: Writes a batch; by default, ``upsert`` of the store.
    """

    def __init__(self, backend: Backend, encode: Encode, write: Write | None = None) -> None:
        self._backend = backend
        self._encode = encode
        self._write = write or backend.upsert
        self._written: set[str] = set()
        self._duplicates: dict[str, None] = {}
        self._truncated = self._lost_tokens = 0
        self._cut: list[CutDocument] = []
        self._pooled = 0
        self._encoding_seconds = 0.0
        self._pending: _Encoded | None = None
        self._failure: Exception | None = None

    def batches(
        self, documents: Iterable[Document], embeddings: M3Embeddings | None
    ) -> Iterator[tuple[list[Document], M3Embeddings | None]]:
        """Yield the documents of the call in batches, and at last an empty one: each is given to ``step``.

        A list, and embeddings if given, are checked completely before the first batch. If reading the documents
        fails, the empty batch comes first, so that the batches before are stored, and then the error is raised.

        Raises:
            InvalidInput: A document or a vector cannot be stored. For a list, nothing has been stored yet.
            ModelMismatch: The embeddings come from a different model than the collection's.
        """
        if isinstance(documents, Document | str | bytes | Mapping) or not isinstance(documents, Iterable):
            raise InvalidInput(
                f"documents is {type(documents).__name__}; it must be an iterable of Document.\n"
                "  Pass a list, such as [Document(id, text)]."
            )
        if embeddings is not None:
            if not isinstance(embeddings, M3Embeddings):
                raise InvalidInput(
                    f"embeddings is {type(embeddings).__name__}; it must be M3Embeddings.\n"
                    "  Pass what M3Encoder.encode returns."
                )
            documents = check_documents(documents)
            check_stored(self._backend.schema, self._backend.collection, len(documents), embeddings)
        elif isinstance(documents, Sequence):
            documents = check_documents(documents)
        checked = isinstance(documents, Sequence)
        failure: Exception | None = None
        start = 0
        try:
            for batch in bounded(documents):
                yield (
                    batch if checked else check_documents(batch),
                    None if embeddings is None else embeddings[start : start + len(batch)],
                )
                start += len(batch)
        except Exception as error:  # noqa: BLE001 (raised after the documents before it have been stored)
            failure = error
        yield [], None
        if failure is not None:
            raise failure

    async def step(self, batch: Sequence[Document], embeddings: M3Embeddings | None) -> Stored:
        """Encode a batch while the one before it is written, and return the one that was written.

        After the last batch, an empty one writes what is left. If the encoding fails, the batch before it is written
        and returned, and the next step raises the error.
        """
        if self._failure is not None:
            raise self._failure
        before, self._pending = self._pending, None
        if before is None:
            self._pending = await self._encoded(batch, embeddings) if batch else None
            return Stored()
        if not batch:
            return await self._stored(before)
        refused: Exception | None = None
        stored = Stored()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._encode_next, batch, embeddings)
            try:
                stored = await self._stored(before)
            except Exception as error:  # noqa: BLE001 (a task group would wrap it)
                refused = error
        if refused is not None:
            self._pending = None
            raise refused
        return stored

    async def store(self, batch: Sequence[Document]) -> Stored:
        """Encode and write one batch, for callers that must not read the next one before."""
        return await self._stored(await self._encoded(batch, None))

    async def _encode_next(self, batch: Sequence[Document], embeddings: M3Embeddings | None) -> None:
        try:
            self._pending = await self._encoded(batch, embeddings)
        except Exception as error:  # noqa: BLE001 (the next step raises it)
            self._failure = error

    async def _encoded(self, batch: Sequence[Document], embeddings: M3Embeddings | None) -> _Encoded:
        kept = sorted({document.id: i for i, document in enumerate(batch)}.values())
        documents = [batch[i] for i in kept]
        if embeddings is None:
            components = tuple(self._backend.schema.written)
            return _Encoded(batch, documents, await self._timed(documents), components)
        if len(kept) < len(batch):
            embeddings = M3Embeddings.concatenate([embeddings[i] for i in kept])
        return _Encoded(batch, documents, embeddings, None)

    async def _timed(self, documents: Sequence[Document]) -> M3Embeddings:
        began = time.monotonic()
        try:
            return await self._encode([document.text for document in documents])
        finally:
            self._encoding_seconds += time.monotonic() - began

    async def _stored(self, encoded: _Encoded) -> Stored:
        """Write a batch and count its documents."""
        documents, embeddings, components = encoded.documents, encoded.embeddings, encoded.components
        await self._renew()
        while components is not None and components != tuple(self._backend.schema.written):
            # Another process has begun to add a component: the collection needs it of every document.
            components = tuple(self._backend.schema.written)
            embeddings = await self._timed(documents)
            await self._renew()
        # Encoding runs in a thread and is not cancelled: a call that was cancelled meanwhile must not write.
        await anyio.lowlevel.checkpoint()
        await self._write(documents, embeddings)
        last = {document.id: i for i, document in enumerate(encoded.batch)}
        repeated = (d.id for i, d in enumerate(encoded.batch) if d.id in self._written or last[d.id] != i)
        self._duplicates |= dict.fromkeys(repeated)
        self._written.update(last)
        cut = list(_cut_documents(documents, embeddings))
        self._truncated += len(cut)
        self._lost_tokens += sum(document.lost_token_count or 0 for document in cut)
        self._cut += cut[: MOST_CUT_NAMED - len(self._cut)]
        self._pooled += int(long_documents(self._backend.schema.storage, embeddings).sum())
        return Stored(documents, cut, embeddings)

    async def _renew(self) -> None:
        """Read the record again, in case another process adds a component; it costs a request on some stores."""
        if self._backend.schema.components != COMPONENTS:
            await self._backend.renew()

    def tell(self, stored: Stored, on_cut: OnCut | None, progress: Callable[[int], object] | None) -> None:
        """Call the caller's callbacks for a batch that has been stored."""
        if on_cut:
            for document in stored.cut:
                on_cut(document)
        if progress and stored.documents:
            progress(len(self._written))

    @property
    def report(self) -> AddReport:
        """The report on what has been stored so far."""
        return AddReport(
            written=len(self._written),
            duplicates=tuple(self._duplicates),
            truncated=self._truncated,
            lost_tokens=self._lost_tokens,
            cut=tuple(self._cut),
            pooled=self._pooled,
            encoding_seconds=self._encoding_seconds,
        )


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
    characters = 0
    for document in documents:
        size = len(document.text) if isinstance(document, Document) and isinstance(document.text, str) else 0
        if batch and (len(batch) == _BATCH_DOCUMENTS or characters + size > _BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(document)
        characters += size
    if batch:
        yield batch
