"""What happens when a document cannot be encoded or written, and when the store is down.

A refused batch is halved until the documents that are refused stand alone: they are set aside, and the rest is stored.
This is only for errors that concern documents. While the store cannot be reached, is overloaded or asks for fewer
requests, the pipeline waits; every other error (full disk, wrong key, no such collection) ends the run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

import anyio

from m3_connectors.backends.base import Backend
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import (
    BackendError,
    InvalidInput,
    M3Error,
    PartialWrite,
    Rejected,
    Throttled,
    Unsupported,
)
from m3_connectors.ingestion.origin import Origin
from m3_connectors.writing import DocumentWriter, Encode, RefusedPart, Vectors

T = TypeVar("T")

Stage = Literal["read", "cut", "encode", "write"]

WAIT_SECONDS = 300.0
"""For how long a run waits for a store that is down, unless told otherwise."""

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 15.0
_MOST_REFUSED_IN_A_ROW = 100
"""If more are refused without one accepted in between, the cause is not in the documents, and the run ends."""


@dataclasses.dataclass(frozen=True)
class RefusedDocument:
    """A document that is not stored, or only in part, because it was refused.

    Attributes:
        document: The document as it was read.
        stage: Where: ``"read"`` (it is not a valid document), ``"cut"``, ``"encode"`` or ``"write"``.
        reason: Why, in one line; of a document that was cut, which chunk was refused.
        origin: Where it comes from.
    """

    document: Document
    stage: Stage
    reason: str
    origin: Origin


@dataclasses.dataclass(frozen=True)
class Wait:
    """The run waits for the store, or goes on.

    Attributes:
        reason: The store's error, in one line.
        waited_seconds: For how long it has been down.
        limit_seconds: After which time the run ends.
        is_over: Whether the store answers again.
    """

    reason: str
    waited_seconds: float
    limit_seconds: float
    is_over: bool = False


OnWait = Callable[[Wait], object]


class TolerantWriter(DocumentWriter):
    """Stores the rest of a batch of which some documents are refused, and waits for a store that is down.

    Args:
        backend: The store to write to.
        encode: Encodes texts.
        wait_seconds: For how long it waits for the store before the error is raised.
        on_wait: Called in the thread of the index before each pause, and when the store answers again.
        as_they_are: Whether the batches have rows that were pooled before, and must not be pooled again.
    """

    def __init__(
        self,
        backend: Backend,
        encode: Encode,
        wait_seconds: float,
        on_wait: OnWait,
        *,
        as_they_are: bool = False,
    ) -> None:
        super().__init__(backend, encode, backend.restore if as_they_are else None)
        self._wait_seconds = wait_seconds
        self._on_wait = on_wait
        self._refused_in_a_row = {"encode": 0, "write": 0}
        self.waited_seconds = 0.0
        """For how long the store was down."""

    async def present(self, ids: Sequence[str]) -> set[str]:
        """Return those of the ids that the store holds."""
        return await self._call(lambda: self._backend.present(ids))

    async def _embed(self, documents: Sequence[Document]) -> Vectors:
        try:
            embeddings = await self._timed(documents)
        except Exception as error:  # a tokenizer or a device may raise anything for a text
            if isinstance(error, M3Error) and not isinstance(error, InvalidInput):
                raise
            if len(documents) == 1:
                return (), None, [self._refused(documents[0], "encode", error)]
        else:
            self._refused_in_a_row["encode"] = 0
            return documents, embeddings, ()
        middle = len(documents) // 2
        parts = [await self._embed(documents[:middle]), await self._embed(documents[middle:])]
        vectors = [vectors for _, vectors, _ in parts if vectors is not None]
        return (
            [document for encoded, _, _ in parts for document in encoded],
            M3Embeddings.concatenate(vectors) if vectors else None,
            [part for _, _, refused in parts for part in refused],
        )

    async def _put(self, documents: Sequence[Document], embeddings: M3Embeddings) -> Sequence[RefusedPart]:
        rows = list(range(len(documents)))
        try:
            await self._call(lambda: self._write(documents, embeddings))
        except (Rejected, InvalidInput, PartialWrite, Unsupported) as error:  # a document may be too large
            if len(documents) == 1:
                return [self._refused(documents[0], "write", error)]
            if isinstance(error, PartialWrite):
                rows = [i for i in rows if documents[i].id in error.failed]
                self._refused_in_a_row["write"] *= len(rows) == len(documents)
        else:
            self._refused_in_a_row["write"] = 0
            return ()
        refused: list[RefusedPart] = []
        for some in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            if some:
                vectors = M3Embeddings.concatenate([embeddings[i] for i in some])
                refused += await self._put([documents[i] for i in some], vectors)
        return refused

    def _refused(
        self, document: Document, stage: Literal["encode", "write"], error: Exception
    ) -> RefusedPart:
        self._refused_in_a_row[stage] += 1
        if self._refused_in_a_row[stage] > _MOST_REFUSED_IN_A_ROW:
            error.add_note(
                f"  {_MOST_REFUSED_IN_A_ROW:,} documents in a row were refused, so the cause is hardly in the "
                "documents: nothing more is tried."
            )
            raise error
        return RefusedPart(document, stage, reason_of(error, document))

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await a call of the store, and repeat it while the store is down."""
        began: float | None = None
        pause = _FIRST_PAUSE_SECONDS
        reason = ""
        while True:
            try:
                result = await call()
            except BackendError as error:
                # Some stores do not repeat a throttled request because a smaller one could succeed, but none did.
                if not (error.retryable or isinstance(error, Throttled)):
                    raise
                asked = error.retry_after_seconds if isinstance(error, Throttled) else None
                began = time.monotonic() if began is None else began
                waited, pause = time.monotonic() - began, max(pause, asked or 0.0)
                if waited + pause > self._wait_seconds:
                    error.add_note(f"  The run waited {waited:.0f} s for the store.")
                    raise
                reason = str(error).splitlines()[0]
                self._on_wait(Wait(reason, waited, self._wait_seconds))
            else:
                if began is not None:
                    waited = time.monotonic() - began
                    self.waited_seconds += waited
                    self._on_wait(Wait(reason, waited, self._wait_seconds, is_over=True))
                return result
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def reason_of(error: Exception, document: Document) -> str:
    """Return the first line of an error about one document."""
    if isinstance(error, PartialWrite):
        return error.failed.get(document.id, str(error)).splitlines()[0]
    said = (str(error) or "no message").splitlines()[0]
    return said if isinstance(error, M3Error) else f"{type(error).__name__}: {said}"
