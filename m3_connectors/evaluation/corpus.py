"""Stores a corpus: exactly its documents, encoded as the protocol says, always in the same batches."""

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
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.dataset import Corpus
from m3_connectors.opening import open_or_create

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder

_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 64_000
"""About 16,000 tokens: 64 MB of float32 multi-vectors at 1,024 dimensions, and seconds of encoding."""


async def open_for_corpus(backend: Backend, schema: Schema) -> None:
    """Open or create a collection whose model and components are those of the evaluation.

    Raises:
        ModelMismatch: A different model wrote it.
        InvalidInput: It has other components, or vectors of another precision: its documents are kept, and the record
            would say that they are of this encoder's.
    """
    there = await open_or_create(backend, schema)
    check_model(there.model, backend.collection, schema.model, what="this encoder is")
    if there.model.precision != schema.model.precision:
        raise InvalidInput(
            f'collection "{backend.collection}" was created by {there.model}; this encoder is {schema.model}, so the '
            "evaluation would measure a mixture of both.\n  Choose another collection with --collection."
        )
    if set(there.components) != set(schema.components):
        raise InvalidInput(
            f'collection "{backend.collection}" stores {", ".join(there.components)}, not '
            f"{', '.join(schema.components)}.\n  Choose another collection with --collection."
        )


async def store_corpus(
    collections: Mapping[Backend, Callable[[M3Embeddings], M3Embeddings]],
    encoder: M3Encoder,
    documents: Corpus,
    max_length: int | None,
    progress: Callable[[int], object],
) -> int:
    """Store exactly this corpus in open collections; documents already there with the same text are kept.

    Documents are encoded in batches that depend only on the corpus: if a document of a batch is missing, the
    whole batch is encoded. Thus the vectors are the same to the last bit, however often storing was
    interrupted.

    Args:
        collections: The collections, each with a function that selects what it stores of the embeddings.
        encoder: The encoder.
        documents: The corpus.
        max_length: The maximum number of tokens of a document; by default the encoder's maximum.
        progress: Called with the number of documents stored so far.

    Returns:
        The number of documents that were kept and not encoded again.

    Raises:
        InvalidInput: A collection contains other documents, which would be found together with the corpus.
        BackendError: A store failed; what was stored is kept.
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
    """Return the numbers of the batches that are missing or different in the collection.

    Raises:
        InvalidInput: The collection contains other documents.
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
            f'collection "{backend.collection}" contains {count - known:,} documents that are not in this '
            "corpus, which would make the measures wrong.\n  Choose another collection with --collection."
        )
    return stale


def _batches(documents: Corpus) -> Iterator[list[Document]]:
    """Yield the documents in order, in batches of bounded text size."""
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
