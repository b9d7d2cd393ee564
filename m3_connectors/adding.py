"""One call of ``add``: documents in batches of bounded size, encoded and written one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

import anyio.lowlevel

from m3_connectors.backends.base import Backend
from m3_connectors.backends.checks import check_stored
from m3_connectors.backends.pooling import long_documents
from m3_connectors.documents import Document, check_documents
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import InvalidInput

_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 64_000
"""About 16,000 tokens: 64 MB of float32 multi-vectors at 1,024 dimensions, seconds of encoding."""

Encode = Callable[[list[str]], Awaitable[M3Embeddings]]


@dataclasses.dataclass(frozen=True)
class AddReport:
    """What ``add`` did.

    Attributes:
        written: Documents stored, each id counted once.
        duplicates: Ids that came more than once in the call; the last one was kept.
        truncated: Documents whose text was longer than the encoder's maximum and was cut.
        pooled: Long documents whose multi-vector rows were pooled, as the collection's storage says.
    """

    written: int
    duplicates: tuple[str, ...] = ()
    truncated: int = 0
    pooled: int = 0


class Adding:
    """Stores the batches of one call and counts.

    Args:
        backend: Where to.
        encode: Texts to embeddings, for batches that come without.
    """

    def __init__(self, backend: Backend, encode: Encode) -> None:
        self._backend = backend
        self._encode = encode
        self._written: set[str] = set()
        self._duplicates: dict[str, None] = {}
        self._truncated = 0
        self._pooled = 0

    def batches(
        self, documents: Iterable[Document], embeddings: M3Embeddings | None
    ) -> Iterator[tuple[list[Document], M3Embeddings | None]]:
        """The call's documents in batches. A list, and embeddings given, are checked whole before the first.

        Raises:
            InvalidInput: Something is not fit to be stored; for a list, before anything was.
            ModelMismatch: The embeddings are another model's than the collection's.
        """
        if isinstance(documents, Document | str | bytes | Mapping) or not isinstance(documents, Iterable):
            raise InvalidInput(
                f"documents is {type(documents).__name__}: give a list (or any iterable) of Document."
            )
        if embeddings is not None:
            if not isinstance(embeddings, M3Embeddings):
                raise InvalidInput(
                    f"embeddings is {type(embeddings).__name__}: give M3Embeddings, as encode does."
                )
            documents = check_documents(documents)
            check_stored(self._backend.schema, self._backend.collection, len(documents), embeddings)
        elif isinstance(documents, Sequence):
            documents = check_documents(documents)
        start = 0
        for batch in _bounded(documents):
            yield (
                check_documents(batch),
                None if embeddings is None else embeddings[start : start + len(batch)],
            )
            start += len(batch)

    async def store(self, batch: Sequence[Document], embeddings: M3Embeddings | None) -> None:
        """Write one batch; of an id that comes twice, the last one."""
        last = {document.id: i for i, document in enumerate(batch)}
        repeated = (d.id for i, d in enumerate(batch) if d.id in self._written or last[d.id] != i)
        self._duplicates |= dict.fromkeys(repeated)
        kept = sorted(last.values())
        chosen = [batch[i] for i in kept]
        if embeddings is None:
            embeddings = await self._encode([document.text for document in chosen])
        elif len(kept) < len(batch):
            embeddings = M3Embeddings.concatenate([embeddings[i] for i in kept])
        # Encoding in a thread is not cancelled: a call cancelled meanwhile must not write any more.
        await anyio.lowlevel.checkpoint()
        await self._backend.upsert(chosen, embeddings)
        self._written.update(last)
        self._truncated += embeddings.truncated_count
        self._pooled += int(long_documents(self._backend.schema.storage, embeddings).sum())

    @property
    def report(self) -> AddReport:
        """What was stored so far."""
        return AddReport(len(self._written), tuple(self._duplicates), self._truncated, self._pooled)


def _bounded(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in batches of bounded text, so that memory is bounded whatever their length."""
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
