"""A corpus in a store: exactly its documents, encoded as the protocol says, each batch always the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread

from m3_connectors.backends.base import Backend
from m3_connectors.backends.checks import check_model
from m3_connectors.backends.schema import Schema
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import InvalidInput, NotFound
from m3_connectors.evaluation.datasets.dataset import Corpus

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder

_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 64_000
"""About 16,000 tokens: 64 MB of float32 multi-vectors at 1,024 dimensions, seconds of encoding."""


async def open_or_create(backend: Backend, schema: Schema) -> None:
    """Open a collection, or make it.

    Raises:
        ModelMismatch: Another model wrote it.
        InvalidInput: It keeps other components, or keeps them otherwise.
    """
    try:
        there = await backend.open()
    except NotFound:
        await backend.create(schema)
        return
    check_model(there.model, backend.collection, schema.model, what="this encoder is")
    if set(there.components) != set(schema.components):
        raise InvalidInput(
            f'collection "{backend.collection}" stores {", ".join(there.components)}, not '
            f"{', '.join(schema.components)}.\n  Name another one with --collection."
        )


async def store_corpus(
    collections: Mapping[Backend, Callable[[M3Embeddings], M3Embeddings]],
    encoder: M3Encoder,
    documents: Corpus,
    max_length: int | None,
    progress: Callable[[int], object],
) -> int:
    """Bring open collections to hold exactly this corpus; what is there with the same text stays.

    Documents are encoded in batches that depend on the corpus alone: a batch of which a document is missing is
    encoded whole. So the vectors are the same to the last bit, however often storing was interrupted.

    Args:
        collections: Each with what it stores of the embeddings.
        encoder: What encodes.
        documents: The corpus.
        max_length: Most tokens of a document; the encoder's own maximum by default.
        progress: Called with the number of documents that are there so far.

    Returns:
        How many documents were not encoded again.

    Raises:
        InvalidInput: A collection holds other documents, which would be found among the corpus's.
        BackendError: A store failed; what was stored stays.
    """
    stale: set[int] = set()
    for backend in collections:
        stale |= await _stale(backend, documents)
    kept = done = sum(
        len(batch) for number, batch in enumerate(_batches(documents)) if stale and number not in stale
    )
    if not stale:
        return len(documents)
    progress(done)
    for number, batch in enumerate(_batches(documents)):
        if number not in stale:
            continue
        texts = [document.text for document in batch]
        encode = partial(encoder.encode, texts, max_length=max_length)
        embeddings = await anyio.to_thread.run_sync(encode)
        for backend, stored in collections.items():
            await backend.upsert(batch, stored(embeddings))
        done += len(batch)
        progress(done)
    return kept


async def _stale(backend: Backend, documents: Corpus) -> set[int]:
    """Numbers of the batches that the collection does not hold as they are.

    Raises:
        InvalidInput: It holds other documents.
    """
    count = await backend.count()
    known = 0
    stale: set[int] = set()
    for number, batch in enumerate(_batches(documents)):
        found: Sequence[Document | None] = [None] * len(batch)
        if count:
            found = await backend.fetch([document.id for document in batch])
        known += sum(document is not None for document in found)
        if any(
            there is None or there.text != wanted.text for there, wanted in zip(found, batch, strict=True)
        ):
            stale.add(number)
    if count > known:
        raise InvalidInput(
            f'collection "{backend.collection}" holds {count - known:,} documents that are not of this corpus: the '
            "measures would be wrong.\n  Name another one with --collection."
        )
    return stale


def _batches(documents: Corpus) -> Iterator[list[Document]]:
    """The documents in order, in batches of bounded text."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        if batch and (len(batch) == _BATCH_DOCUMENTS or characters + len(document.text) > _BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(document)
        characters += len(document.text)
    if batch:
        yield batch
