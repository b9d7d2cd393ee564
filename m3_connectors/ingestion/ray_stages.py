"""What the processes of an ingestion on Ray do: read a part of the sources, cut and encode, write.

A batch of documents travels through the stages as one row, of which each stage makes one other row. When a process
dies, Ray gives its row to another: the batch is then begun, written and acknowledged again, under the same ids.
"""

from __future__ import annotations

import dataclasses
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from m3_connectors.blocking import Index, connect, run_on, store_batches, writer_of
from m3_connectors.documents import CheckedDocuments, Document, check_documents
from m3_connectors.embeddings import Component, M3Embeddings
from m3_connectors.errors import Busy, InvalidInput, M3Error
from m3_connectors.index import Encoder
from m3_connectors.ingestion.chunking import Chunking
from m3_connectors.ingestion.failures import RefusedDocument, TolerantWriter, reason_of
from m3_connectors.ingestion.ledger import Version, content_hash, stored_hash
from m3_connectors.ingestion.origin import Origin
from m3_connectors.ingestion.ray_ledger import Answer
from m3_connectors.ingestion.run import cut_documents, refused_document, with_cut
from m3_connectors.ingestion.sharding import Shard
from m3_connectors.writing import CutDocument, RefusedPart, bounded

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMN = "batch"
_LONGEST_WAIT_FOR_LOCK_SECONDS = 60.0
_DELETED_AT_ONCE = 1000
_MOST_REFUSED_IN_A_ROW = 100


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every process of a run knows.

    Attributes:
        url: The store.
        collection: The name of the collection.
        options: The options of the store.
        encoder: Creates the encoder.
        model: The fingerprint of its model.
        components: What is stored.
        chunking: How documents are cut.
        shard: Which documents the run takes care of.
        wait_seconds: For how long a writing process waits for a store that is down.
    """

    url: str
    collection: str
    options: Mapping[str, Any]
    encoder: Callable[[], Encoder]
    model: str
    components: tuple[Component, ...]
    chunking: Chunking
    shard: Shard
    wait_seconds: float


@dataclasses.dataclass
class Read:
    """Documents of a part, and what could not be read among them."""

    part: int
    origin: Origin
    documents: list[Document] = dataclasses.field(default_factory=list)
    positions: list[int] = dataclasses.field(default_factory=list)
    skipped: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Told:
    """What became of the documents of a batch so far; the last row of a batch is nothing else.

    Attributes:
        part: The part that they come from.
        origin: Where that is.
        read: How many they are.
        skipped: What was read and is not a document.
        refused: The documents that are not stored.
        repeated: The ids that several documents have.
        cut: The chunks of which only the beginning is searchable, also those of unchanged documents.
        chunks: The number of chunks stored.
        tokens: The number of their tokens; 0 if the encoder does not count them.
        batches: The number of batches stored.
        pooled: The number of those whose multi-vector rows were pooled.
        encoding_seconds: For how long they were encoded.
        writing_seconds: For how long they were written.
        waited_seconds: For how long the store was waited for.
    """

    part: int
    origin: Origin
    read: int = 0
    skipped: list[Any] = dataclasses.field(default_factory=list)
    refused: list[RefusedDocument] = dataclasses.field(default_factory=list)
    repeated: list[str] = dataclasses.field(default_factory=list)
    cut: list[CutDocument] = dataclasses.field(default_factory=list)
    chunks: int = 0
    tokens: int = 0
    batches: int = 0
    pooled: int = 0
    encoding_seconds: float = 0.0
    writing_seconds: float = 0.0
    waited_seconds: float = 0.0


@dataclasses.dataclass
class Encoded:
    """The chunks of a batch with their embeddings.

    Attributes:
        told: What became of its documents so far.
        documents: Those that must be stored.
        versions: Their versions.
        chunks: Their chunks that were encoded.
        embeddings: The embeddings of these; None if there are none.
        refused: The chunks that could not be encoded.
    """

    told: Told
    documents: list[Document] = dataclasses.field(default_factory=list)
    versions: list[Version] = dataclasses.field(default_factory=list)
    chunks: list[Document] = dataclasses.field(default_factory=list)
    embeddings: M3Embeddings | None = None
    refused: list[RefusedPart] = dataclasses.field(default_factory=list)


class Reading:
    """Reads parts: a function for Ray, from rows with a part each to rows with a batch each.

    Args:
        read: Yields the documents of a part; everything else that it yields is a record that was skipped.
        shard: The documents that count.
        only: The positions to read, by part; None reads all.
    """

    def __init__(
        self,
        read: Callable[[Any], Iterable[Any]],
        shard: Shard,
        only: Mapping[int, frozenset[int]] | None,
    ) -> None:
        self._read = read
        self._shard = shard
        self._only = only

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Read the parts of some rows."""
        for number, origin, part in unpacked(rows):
            yield from (packed(batch) for batch in self._batches(number, origin, part))

    def _batches(self, number: int, origin: Origin, part: Any) -> Iterator[Read]:
        batch = Read(number, origin)
        positions: list[int] = []

        def wanted() -> Iterator[Document]:
            position = -1
            for found in self._read(part):
                if not isinstance(found, Document):
                    if self._only is None:
                        batch.skipped.append(found)
                    continue
                position += 1
                (document,) = check_documents([found])
                if self._shard.has(document.id) and (self._only is None or position in self._only[number]):
                    positions.append(position)
                    yield document

        for documents in bounded(wanted()):
            batch.documents = documents
            batch.positions, positions[: len(documents)] = positions[: len(documents)], []
            yield batch
            batch.skipped = []
        if batch.skipped:
            batch.documents, batch.positions = [], []
            yield batch


class Encoding:
    """Cuts and encodes batches; an actor with an encoder of its own."""

    def __init__(self, plan: Plan, keeper: Any) -> None:
        self._plan = plan
        self._keeper = keeper
        self._encoder = plan.encoder()
        self._token_spans = getattr(self._encoder, "token_spans", None)
        self._refused_in_a_row = 0

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Encode the batch of one row."""
        (read,) = unpacked(rows)
        return packed(self._encoded(read))

    def _encoded(self, read: Read) -> Encoded:
        encoded = Encoded(Told(read.part, read.origin, len(read.documents), read.skipped))
        last = {document.id: i for i, document in enumerate(read.documents)}
        kept = sorted(last.values())
        versions = [self._version(read.documents[i], read.origin) for i in kept]
        places = [(read.part, read.positions[i]) for i in kept]
        answers: list[tuple[Answer, list[CutDocument]]] = []
        if kept:
            answers = result_of(self._keeper.select.remote(versions, places))
        encoded.told.repeated += [d.id for i, d in enumerate(read.documents) if last[d.id] != i]
        chunks: list[Document] = []
        for i, version, (answer, cut) in zip(kept, versions, answers, strict=True):
            if answer in ("replaced", "later"):
                encoded.told.repeated.append(version.id)
            elif answer == "store":
                chunks += self._cut(read.documents[i], version, encoded)
            encoded.told.cut += cut
        began = time.monotonic()
        if chunks:
            vectors: list[M3Embeddings] = []
            self._embed(chunks, encoded, vectors)
            encoded.embeddings = M3Embeddings.concatenate(vectors) if vectors else None
        encoded.told.encoding_seconds = time.monotonic() - began
        return encoded

    def _cut(self, document: Document, version: Version, encoded: Encoded) -> list[Document]:
        try:
            chunks = self._plan.chunking.chunks(document, self._token_spans)
        except InvalidInput as error:
            if self._token_spans is None:
                raise
            refused = RefusedDocument(document, "cut", reason_of(error, document), encoded.told.origin)
            encoded.told.refused.append(refused)
            return []
        if self._plan.chunking.kind != "none":
            version = dataclasses.replace(version, chunks=len(chunks), stored=stored_hash(chunks))
        encoded.documents.append(document)
        encoded.versions.append(version)
        return chunks

    def _embed(self, chunks: list[Document], encoded: Encoded, vectors: list[M3Embeddings]) -> None:
        """Encode chunks; if that fails, halve them until those that cannot be encoded stand alone."""
        texts = [chunk.text for chunk in chunks]
        try:
            vectors.append(self._encoder.encode(texts, components=self._plan.components))
        except Exception as error:  # a tokenizer or a device may raise anything for a text
            if isinstance(error, M3Error) and not isinstance(error, InvalidInput):
                raise
            if len(chunks) == 1:
                self._refused_in_a_row += 1
                if self._refused_in_a_row > _MOST_REFUSED_IN_A_ROW:
                    raise
                encoded.refused.append(RefusedPart(chunks[0], "encode", reason_of(error, chunks[0])))
                return
        else:
            self._refused_in_a_row = 0
            encoded.chunks += chunks
            return
        self._embed(chunks[: len(chunks) // 2], encoded, vectors)
        self._embed(chunks[len(chunks) // 2 :], encoded, vectors)

    def _version(self, document: Document, origin: Origin) -> Version:
        content = content_hash(document)
        chunking = str(self._plan.chunking)
        return Version(document.id, 0, origin.source, origin.file, content, self._plan.model, chunking)


class Writing:
    """Writes batches and has them acknowledged; an actor with a connection of its own."""

    def __init__(self, plan: Plan, keeper: Any) -> None:
        self._wait_seconds = plan.wait_seconds
        self._index = connect_when_free(plan.url, plan.collection, plan.options)
        self._keeper = keeper

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Write the batch of one row."""
        (encoded,) = unpacked(rows)
        if encoded.versions:
            self._write(encoded)
        return packed(encoded.told)

    def _write(self, encoded: Encoded) -> None:
        told = encoded.told
        refused = {part.document.id: part for part in encoded.refused}
        cut: dict[str, CutDocument] = {}
        writer = writer_of(
            self._index,
            partial(TolerantWriter, wait_seconds=self._wait_seconds, on_wait=lambda wait: None),
        )
        result_of(self._keeper.begin.remote(encoded.versions))
        if encoded.embeddings is not None:
            batch = (CheckedDocuments(encoded.chunks), encoded.embeddings)
            for stored in store_batches(self._index, writer, iter([batch])):
                told.chunks += len(stored.documents)
                told.batches += 1
                told.pooled += stored.pooled
                if stored.embeddings is not None and stored.embeddings.kept_token_counts is not None:
                    told.tokens += int(stored.embeddings.kept_token_counts.sum())
                refused |= {part.document.id: part for part in stored.refused}
                cut |= {part.id: part for part in stored.cut}
        whole: list[Version] = []
        for document, version in zip(encoded.documents, encoded.versions, strict=True):
            if (refusal := refused_document(document, version, refused)) is not None:
                told.refused.append(refusal)
            else:
                whole.append(with_cut(version, cut))
        if whole:
            left_over = result_of(self._keeper.left_over.remote(whole))
            for start in range(0, len(left_over), _DELETED_AT_ONCE):
                run_on(self._index, partial(writer.delete, left_over[start : start + _DELETED_AT_ONCE]))
            result_of(self._keeper.acknowledge.remote(whole))
        told.cut += [part for version in whole for part in cut_documents(version)]
        told.writing_seconds += writer.writing_seconds
        told.waited_seconds += writer.waited_seconds


def connect_when_free(url: str, collection: str, options: Mapping[str, Any]) -> Index:
    """Open the collection; the process that had an embedded store open may be about to end.

    Raises:
        Busy: It does not end.
    """
    until = time.monotonic() + _LONGEST_WAIT_FOR_LOCK_SECONDS
    while True:
        try:
            return connect(url, collection, create=False, **options)
        except Busy:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def delete(index: Index, ids: list[str]) -> None:
    """Delete any number of ids."""
    for start in range(0, len(ids), _DELETED_AT_ONCE):
        index.delete(ids[start : start + _DELETED_AT_ONCE])


def packed(*rows: object) -> pa.Table:
    """Return rows as a table for Ray: numpy would drop the zeros at the end of their bytes."""
    import pyarrow as pa

    values = [pickle.dumps(row, protocol=pickle.HIGHEST_PROTOCOL) for row in rows]
    return pa.table({_COLUMN: pa.array(values, pa.large_binary())})


def unpacked(rows: pa.Table) -> list[Any]:
    """Return the rows of a table."""
    return [pickle.loads(value.as_buffer()) for value in rows.column(_COLUMN)]


def result_of(reference: Any) -> Any:
    """Return what another process of Ray returns."""
    import ray

    return ray.get(reference)
