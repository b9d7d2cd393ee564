"""Documents on their way into a collection: read, compared with the ledger, cut, encoded, written, acknowledged.

While a batch is encoded, the one before it is written and the one after it is read and cut. A batch is bounded in
characters (``adding``), so memory does not grow with the corpus.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from m3_connectors.adding import AddReport, OnCut, Stored
from m3_connectors.blocking import Index, encoder_of, store_batches, writer_of
from m3_connectors.documents import Document, check_documents
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import InvalidInput
from m3_connectors.index import Encoder
from m3_connectors.ingestion.chunking import Chunking, TokenSpans
from m3_connectors.ingestion.ledger import Ledger, Version, content_hash, stored_hash
from m3_connectors.ingestion.verifying import Verification, verify

_WHOLE = Chunking()
_DELETED_AT_ONCE = 1000

OnEmbedded = Callable[[Sequence[Document], M3Embeddings], object]
"""Called with the chunks of a batch that the store has acknowledged, and their embeddings, row i for chunk i."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a document comes from.

    Attributes:
        source: The source, such as the path of a folder.
        file: The file of the source.
    """

    source: str = ""
    file: str = ""


@dataclasses.dataclass(frozen=True)
class IngestReport:
    """The result of ``ingest``.

    Attributes:
        read: The number of documents read.
        unchanged: The number of those that the store held already, with the same content, model and chunking.
        documents: The number of documents stored.
        chunks: The number of chunks stored for them; that of the documents if they are not cut.
        replaced: The number of documents of which the ledger knew an earlier version.
        removed: The number of documents removed because their source no longer has them.
        kept: The ids of documents that their source may still have: their file could not be read completely.
        refused: The number of documents that could not be cut or stored.
        missing: What the comparison before the run found missing; None without a comparison.
        add: The report of the writer.
        seconds: How long the run took.
    """

    read: int
    unchanged: int
    documents: int
    chunks: int
    replaced: int
    removed: int
    kept: tuple[str, ...]
    refused: int
    missing: Verification | None
    add: AddReport
    seconds: float

    @property
    def encoder_busy_share(self) -> float:
        """The share of the time in which texts were being encoded, 0 to 1."""
        return min(self.add.encoding_seconds / self.seconds, 1.0) if self.seconds else 0.0


def ingest(
    documents: Iterable[Document],
    index: Index,
    *,
    ledger: Ledger,
    chunking: Chunking = _WHOLE,
    origin: Callable[[], Origin] = Origin,
    sync: Sequence[str] = (),
    unread: Callable[[Version], bool] = lambda _: False,
    check: bool = False,
    progress: Callable[[int, int], object] = lambda stored, unchanged: None,
    on_cut: OnCut | None = None,
    on_embedded: OnEmbedded | None = None,
    on_refused: Callable[[Document, str], object] = lambda document, reason: None,
) -> IngestReport:
    """Store the documents that the collection does not hold yet, and replace those that have changed.

    Running it again with the same documents does nothing. If the store holds fewer documents than the ledger knows,
    both are compared before the run (``verify``), and what is missing is stored again.

    Args:
        documents: The documents, read once.
        index: The collection.
        ledger: The ledger of this collection.
        chunking: How documents are cut.
        origin: Returns where the document comes from that was read last.
        sync: Sources that are read completely by this run: documents that they no longer have are removed.
        unread: Says of such a document that its source may still have it, because reading failed.
        check: Compare store and ledger before the run in any case.
        progress: Called after each batch with the number of documents stored and unchanged so far.
        on_cut: Called with each chunk that was longer than the encoder's maximum.
        on_embedded: Called with each batch and its embeddings when the store has acknowledged it, before the ledger
            does: after an interruption, a batch may come a second time, but none is left out.
        on_refused: Called with each document that cannot be cut, and the reason; the others are stored.

    Raises:
        InvalidInput: The index has no encoder, or one without tokens where documents are cut; or the ledger cannot
            be used.
        BackendError: The store failed. What it has acknowledged is in the ledger.
    """
    began = time.monotonic()
    run = _Run(index, encoder_of(index), ledger, chunking, origin, on_refused)
    missing = verify(index, ledger) if check or index.count() < ledger.stored_count() else None
    adding = writer_of(index)
    for stored in store_batches(index, adding, run.chunks(documents), before=run.begin):
        if stored.embeddings is not None:
            if on_embedded is not None:
                on_embedded(stored.documents, stored.embeddings)
            run.acknowledge(stored)
            if on_cut is not None:
                for cut in stored.cut:
                    on_cut(cut)
            progress(run.documents, run.unchanged)
    removed, kept = run.remove_gone(sync, unread)
    return IngestReport(
        read=run.read,
        unchanged=run.unchanged,
        documents=run.documents,
        chunks=run.chunk_count,
        replaced=run.replaced,
        removed=removed,
        kept=tuple(kept),
        refused=run.refused,
        missing=missing,
        add=adding.report,
        seconds=time.monotonic() - began,
    )


@dataclasses.dataclass(frozen=True)
class _Parent:
    """A document that is under way; its chunks are those from ``begin`` to ``end`` of the run."""

    version: Version
    begin: int
    end: int
    replaces: bool


class _Run:
    def __init__(
        self,
        index: Index,
        encoder: Encoder,
        ledger: Ledger,
        chunking: Chunking,
        origin: Callable[[], Origin],
        on_refused: Callable[[Document, str], object],
    ) -> None:
        self._index = index
        self._ledger = ledger
        self._chunking = chunking
        self._token_spans: TokenSpans | None = getattr(encoder, "token_spans", None)
        self._model = _fingerprint(encoder)
        self._origin = origin
        self._on_refused = on_refused
        self._under_way: deque[_Parent] = deque()
        self._latest: dict[str, Version] = {}
        """The version of each document under way that was read last: only this one is acknowledged."""
        self._batches: deque[int] = deque()
        self._cut = self._begun = self._written = 0
        self.read = self.unchanged = self.documents = self.chunk_count = self.replaced = self.refused = 0

    def chunks(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the chunks of the documents that must be stored."""
        for document in documents:
            self.read += 1
            (document,) = check_documents([document])
            origin = self._origin()
            self._ledger.see(document.id)
            version = Version(
                document.id,
                0,
                origin.source,
                origin.file,
                content_hash(document),
                self._model,
                str(self._chunking),
            )
            under_way = self._latest.get(document.id)
            before = under_way or self._ledger.acknowledged(document.id)
            if before is not None and before.same(version):
                self.unchanged += 1
                if under_way is None and (before.source, before.file) != (version.source, version.file):
                    self._ledger.relocate(version)
                continue
            try:
                parts = self._chunking.chunks(document, self._token_spans)
            except InvalidInput as error:
                if self._token_spans is None:
                    raise
                self.refused += 1
                self._on_refused(document, str(error).splitlines()[0])
                continue
            if self._chunking.kind != "none":
                version = dataclasses.replace(version, chunks=len(parts), stored=stored_hash(parts))
            begin, self._cut = self._cut, self._cut + len(parts)
            replaces = under_way is None and self._ledger.known(document.id) is not None
            self._under_way.append(_Parent(version, begin, self._cut, replaces))
            self._latest[document.id] = version
            yield from parts

    def begin(self, batch: Sequence[Document]) -> None:
        """Enter the documents whose first chunk is in a batch, before it is encoded and written."""
        if not batch:
            return
        first, self._begun = self._begun, self._begun + len(batch)
        self._batches.append(len(batch))
        self._ledger.begin(p.version for p in self._under_way if first <= p.begin < self._begun)

    def acknowledge(self, stored: Stored) -> None:
        """Enter what the store holds completely now, once it holds nothing of earlier versions."""
        self._written += self._batches.popleft()
        self.chunk_count += len(stored.documents)
        whole: list[_Parent] = []
        while self._under_way and self._under_way[0].end <= self._written:
            parent = self._under_way.popleft()
            # Otherwise a later version of the same document is under way, which cleans up after both.
            if self._latest[parent.version.id] is parent.version:
                del self._latest[parent.version.id]
                whole.append(parent)
        versions = [parent.version for parent in whole]
        self._delete([id for version in versions for id in self._ledger.left_over(version)])
        self._ledger.acknowledge(versions)
        self.documents += len(whole)
        self.replaced += sum(parent.replaces for parent in whole)

    def remove_gone(self, sources: Sequence[str], unread: Callable[[Version], bool]) -> tuple[int, list[str]]:
        """Remove the documents that their sources no longer have; return how many, and the ids of those kept."""
        gone: dict[str, list[str]] = {}
        kept: dict[str, None] = {}
        for version in self._ledger.gone(sources):
            if unread(version):
                kept[version.id] = None
            else:
                gone.setdefault(version.id, []).extend(self._ledger.others(version))
        self._delete([stored for ids in gone.values() for stored in ids])
        self._ledger.forget(gone)
        return len(gone), list(kept)

    def _delete(self, ids: list[str]) -> None:
        for start in range(0, len(ids), _DELETED_AT_ONCE):
            self._index.delete(ids[start : start + _DELETED_AT_ONCE])


def _fingerprint(encoder: Encoder) -> str:
    info = encoder.info
    return info.weights_fingerprint or f"{info.name}@{info.revision}"
