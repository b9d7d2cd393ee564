"""The state of one run: which documents are new or changed, which are under way, and what became of each."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from m3_connectors.adding import Cuts
from m3_connectors.blocking import Index, run_on
from m3_connectors.documents import CheckedDocuments, Document, check_documents
from m3_connectors.embeddings import M3Embeddings, ModelInfo
from m3_connectors.errors import InvalidInput
from m3_connectors.index import Encoder
from m3_connectors.ingestion.chunking import Chunking, TokenSpans
from m3_connectors.ingestion.failures import RefusedDocument, Stage, TolerantWriter, reason_of
from m3_connectors.ingestion.ledger import Ledger, Version, content_hash, stored_hash
from m3_connectors.ingestion.origin import Origin
from m3_connectors.ingestion.progress import IngestProgress
from m3_connectors.ingestion.sharding import Shard
from m3_connectors.passages import FIELD
from m3_connectors.writing import CutDocument, RefusedPart, Stored, bounded

OnCut = Callable[[CutDocument, Origin], object]
OnRefused = Callable[[RefusedDocument], object]

_DELETED_AT_ONCE = 1000
_MOST_NAMED = 1000


@dataclasses.dataclass(frozen=True)
class _Parent:
    """A document that is under way; its chunks are those from ``begin`` to ``end`` of the run."""

    document: Document
    version: Version
    begin: int
    end: int
    replaces: bool


class Run:
    """Follows the documents of one run.

    Args:
        index: The collection.
        writer: Writes into it.
        encoder: The encoder of the index; None for documents that come with their embeddings.
        ledger: The ledger of the collection.
        chunking: How documents are cut.
        origin: Returns where the document comes from that was read last.
        shard: Which documents the run takes care of.
        on_cut: Called with each chunk of which only the beginning is searchable, also of unchanged documents.
        on_refused: Called with each document that cannot be stored.
    """

    def __init__(
        self,
        index: Index,
        writer: TolerantWriter,
        encoder: Encoder | None,
        ledger: Ledger,
        chunking: Chunking,
        origin: Callable[[], Origin],
        shard: Shard,
        on_cut: OnCut,
        on_refused: OnRefused,
    ) -> None:
        self._index = index
        self._writer = writer
        self._ledger = ledger
        self._chunking = chunking
        self._token_spans: TokenSpans | None = getattr(encoder, "token_spans", None)
        model = index.schema.model if encoder is None else encoder.info
        self._how = (fingerprint(model), str(chunking))
        self._origin = origin
        self._shard = shard
        self._on_cut = on_cut
        self._on_refused = on_refused
        self._unread: Exception | None = None
        self._origins: deque[Origin] = deque()
        self._under_way: deque[_Parent] = deque()
        self._latest: dict[str, Version] = {}
        """The version of each document under way that was read last: only this one is acknowledged."""
        self._refused_parts: dict[str, RefusedPart] = {}
        self._cut_parts: dict[str, CutDocument] = {}
        self._parts = self._begun = self._written = 0
        self.read = self.unchanged = self.documents = self.chunks = self.replaced = self.refused = 0
        self.pooled = self.repeated_count = self.tokens = self.batch_count = 0
        self.repeated: list[str] = []
        self.cuts = Cuts()
        ledger.begin_reading()

    def batches(self, documents: Iterable[Document]) -> Iterator[tuple[Sequence[Document], None]]:
        """Yield the chunks of the documents that must be stored, in batches of bounded size.

        If reading fails, what was read before comes first, and then the error is raised.
        """
        for batch in bounded(self._changed(documents)):
            yield CheckedDocuments(batch), None  # of a valid document, the chunks are valid
        if self._unread is not None:
            raise self._unread

    def embedded(
        self, batches: Iterable[tuple[Sequence[Document], M3Embeddings]]
    ) -> Iterator[tuple[Sequence[Document], M3Embeddings]]:
        """Yield the documents that must be stored, with their embeddings; batches are as large as they are given."""
        for documents, embeddings in batches:
            rows = {id(document): i for i, document in enumerate(documents)}
            kept = [rows[id(document)] for document in self._changed(documents)]
            if kept:
                yield [documents[i] for i in kept], embeddings_at(embeddings, kept)

    def begin(self, batch: Sequence[Document]) -> None:
        """Enter the documents whose first chunk is in a batch, before it is encoded and written."""
        first, self._begun = self._begun, self._begun + len(batch)
        self._ledger.begin(p.version for p in self._under_way if first <= p.begin < self._begun)

    def acknowledge(self, stored: Stored) -> None:
        """Enter what the store holds completely now, once it holds nothing of earlier versions."""
        self._written += len(stored.batch)
        self.chunks += len(stored.documents)
        self.pooled += stored.pooled
        self.batch_count += 1
        if stored.embeddings is not None and stored.embeddings.kept_token_counts is not None:
            self.tokens += int(stored.embeddings.kept_token_counts.sum())
        if self._refused_parts or self._cut_parts:
            for document in stored.documents:  # what was noted of earlier versions
                self._refused_parts.pop(document.id, None)
                self._cut_parts.pop(document.id, None)
        self._refused_parts |= {part.document.id: part for part in stored.refused}
        self._cut_parts |= {cut.id: cut for cut in stored.cut}
        whole: list[_Parent] = []
        while self._under_way and self._under_way[0].end <= self._written:
            parent = self._under_way.popleft()
            # Otherwise a later version of the same document is under way, which cleans up after both.
            if self._latest[parent.version.id] is parent.version:
                del self._latest[parent.version.id]
                if not self._is_refused(parent):
                    whole.append(parent)
        versions = [with_cut(parent.version, self._cut_parts) for parent in whole]
        self._delete([id for p in whole for id in self._ledger.left_over(p.version)])
        self._ledger.acknowledge(versions)
        self.documents += len(whole)
        self.replaced += sum(parent.replaces for parent in whole)
        for version in versions:
            self._tell_cut(version)

    def progress(self, seconds: float) -> IngestProgress:
        """Return how far the run is, ``seconds`` after it began."""
        return IngestProgress(
            read=self.read,
            unchanged=self.unchanged,
            documents=self.documents,
            chunks=self.chunks,
            refused=self.refused,
            tokens=self.tokens,
            chunks_under_way=self._begun - self._written,
            waiting_bytes=self._writer.waiting_bytes,
            batches=self.batch_count,
            encoding_seconds=self._writer.encoding_seconds,
            writing_seconds=self._writer.writing_seconds,
            waited_seconds=self._writer.waited_seconds,
            seconds=seconds,
        )

    def remove_gone(self, sources: Sequence[str], unread: Callable[[Version], bool]) -> tuple[int, list[str]]:
        """Remove the documents that their sources no longer have; return how many, and the ids of those kept."""
        gone: dict[str, list[str]] = {}
        kept: dict[str, None] = {}
        for version in self._ledger.gone(sources):
            if not self._shard.has(version.id):
                continue
            if unread(version):
                kept[version.id] = None
            else:
                gone.setdefault(version.id, []).extend(self._ledger.others(version))
        self._delete([stored for ids in gone.values() for stored in ids])
        self._ledger.forget(gone)
        return len(gone), list(kept)

    def _changed(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the chunks of the documents that must be stored."""
        # The ledger is asked about many documents at once.
        for group in bounded(self._valid(documents)):
            ids = [document.id for document in group]
            again = self._ledger.see(ids)
            self.repeated_count += len(again)
            self.repeated += again[: _MOST_NAMED - len(self.repeated)]
            known = self._held(self._ledger.look_up(ids))
            # The answer about documents under way is outdated before the end of the group, when they are stored.
            known |= {id: None for id in ids if id in self._latest}
            moved: list[Version] = []
            for document in group:
                yield from self._parts_of(document, self._origins.popleft(), known, again, moved)
            self._ledger.relocate(moved)

    def _held(self, known: dict[str, Version | None]) -> dict[str, Version | None]:
        """Return versions without those of which the store has just said that it lacks them, or a chunk of them."""
        stored = {id: version.stored_ids for id, version in known.items() if version is not None}
        asked = [id for ids in stored.values() for id in ids]
        there = run_on(self._index, partial(self._writer.present, asked))
        lost = {id for id, ids in stored.items() if not there.issuperset(ids)}
        return {id: None if id in lost else version for id, version in known.items()}

    def _until_failure(self, documents: Iterable[Document]) -> Iterator[Document]:
        try:
            yield from documents
        except Exception as error:  # noqa: BLE001 (raised by ``batches``)
            self._unread = error

    def _valid(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in self._until_failure(documents):
            origin = self._origin()
            try:
                check_documents([document])
            except InvalidInput as error:
                if not isinstance(document, Document):
                    raise
                self.read += 1
                self._see_invalid(document.id)
                self._refuse(document, "read", reason_of(error, document), origin)
                continue
            if not self._shard.has(document.id):
                continue
            self.read += 1
            self._origins.append(origin)
            yield document

    def _see_invalid(self, id: object) -> None:
        """Note that a source still has a document, although it is not valid now: ``sync`` does not remove it."""
        with contextlib.suppress(UnicodeEncodeError):  # no stored document has such an id
            if isinstance(id, str):
                self._ledger.see([id])

    def _parts_of(
        self,
        document: Document,
        origin: Origin,
        known: dict[str, Version | None],
        again: Sequence[str],
        moved: list[Version],
    ) -> Sequence[Document]:
        """Return the chunks of a document; none if it is unchanged or cannot be cut."""
        content = (content_hash(document), *self._how)
        under_way = self._latest.get(document.id)
        before = under_way or known.get(document.id)
        if before is not None and before.what == content:
            self.unchanged += 1
            if under_way is None:
                if (before.source, before.file) != (origin.source, origin.file):
                    before = dataclasses.replace(before, source=origin.source, file=origin.file)
                    moved.append(before)
                self._tell_cut(before)
            return ()
        if self._chunking.kind == "none" and FIELD not in document.metadata:
            # A copy of the chunk itself has the field, and may replace it.
            other = self._ledger.cut_into(document.id)
            if other is not None and other.source != origin.source:
                whose = f"{other.id!r} from {other.source!r}"
                self._refuse(document, "write", f"a chunk of document {whose} has the same id", origin)
                return ()
        try:
            parts = self._chunking.chunks(document, self._token_spans)
        except InvalidInput as error:
            if self._token_spans is None:
                raise
            self._refuse(document, "cut", reason_of(error, document), origin)
            return ()
        version = Version(document.id, 0, origin.source, origin.file, *content)
        if self._chunking.kind != "none":
            version = dataclasses.replace(version, chunks=len(parts), stored=stored_hash(parts))
        begin, self._parts = self._parts, self._parts + len(parts)
        replaces = document.id in known and document.id not in again
        self._under_way.append(_Parent(document, version, begin, self._parts, replaces))
        self._latest[document.id] = version
        known[document.id] = None  # what the ledger said of this document is no longer so
        return parts

    def _is_refused(self, parent: _Parent) -> bool:
        """Return whether a part of a document was refused, after telling so."""
        if not self._refused_parts:
            return False
        refused = refused_document(parent.document, parent.version, self._refused_parts)
        if refused is None:
            return False
        self.refused += 1
        self._on_refused(refused)
        return True

    def _refuse(self, document: Document, stage: Stage, reason: str, origin: Origin) -> None:
        self.refused += 1
        self._on_refused(RefusedDocument(document, stage, reason, origin))

    def _tell_cut(self, version: Version) -> None:
        for cut in cut_documents(version):
            self.cuts.add(cut)
            self._on_cut(cut, Origin(version.source, version.file))

    def _delete(self, ids: list[str]) -> None:
        for start in range(0, len(ids), _DELETED_AT_ONCE):
            run_on(self._index, partial(self._writer.delete, ids[start : start + _DELETED_AT_ONCE]))


def embeddings_at(embeddings: M3Embeddings, rows: Sequence[int]) -> M3Embeddings:
    """Return the embeddings of these texts, at least one, whose numbers increase."""
    ends = [i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1]
    runs = zip([0, *ends], [*ends, len(rows)], strict=True)
    parts = [embeddings[rows[start] : rows[stop - 1] + 1] for start, stop in runs]
    return parts[0] if len(parts) == 1 else M3Embeddings.concatenate(parts)


def fingerprint(info: ModelInfo) -> str:
    """Return what tells the models of stored documents apart."""
    return info.weights_fingerprint or f"{info.name}@{info.revision}"


def refused_document(
    document: Document, version: Version, parts: dict[str, RefusedPart]
) -> RefusedDocument | None:
    """Return the refusal of a document, and remove its parts from those that were refused; None if there are none."""
    ids = version.stored_ids
    refused = [part for id in ids if (part := parts.pop(id, None))]
    if not refused:
        return None
    where = ""
    if version.chunks:
        position = ids.index(refused[0].document.id)
        where = f"chunk {position + 1} of {len(ids)}: "
        if len(refused) > 1:
            where = f"{len(refused)} of {len(ids)} chunks, the first {position + 1}: "
    origin = Origin(version.source, version.file)
    return RefusedDocument(document, refused[0].stage, where + refused[0].reason, origin)


def with_cut(version: Version, parts: dict[str, CutDocument]) -> Version:
    """Return a version with its truncated chunks, which are removed from ``parts``."""
    if not parts:
        return version
    cut = [
        [position, part.token_count, part.kept_token_count]
        for position, id in enumerate(version.stored_ids)
        if (part := parts.pop(id, None))
    ]
    return dataclasses.replace(version, cut=json.dumps(cut) if cut else "")


def cut_documents(version: Version) -> Iterator[CutDocument]:
    """Yield the chunks of a version of which only the beginning is searchable."""
    if version.cut:
        ids = version.stored_ids
        for position, tokens, kept in json.loads(version.cut):
            yield CutDocument(ids[position], tokens, kept)
