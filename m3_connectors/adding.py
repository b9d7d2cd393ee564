"""One ``add`` call: its batches, what it counts, and its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from m3_connectors.backends.base import Backend
from m3_connectors.backends.checks import check_stored
from m3_connectors.documents import CheckedDocuments, Document, check_documents
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import InvalidInput
from m3_connectors.writing import CutDocument, OnCut, Stored, bounded

MOST_CUT_NAMED = 1000
"""The number of truncated documents that a report lists; ``on_cut`` is called for every one."""


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


def batches(
    backend: Backend, documents: Iterable[Document], embeddings: M3Embeddings | None
) -> Iterator[tuple[list[Document], M3Embeddings | None]]:
    """Yield the documents of a call in batches of bounded size, checked.

    A list, and embeddings if given, are checked completely before the first batch.

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
        check_stored(backend.schema, backend.collection, len(documents), embeddings)
    elif isinstance(documents, Sequence):
        documents = check_documents(documents)
    checked = isinstance(documents, Sequence)
    start = 0
    for batch in bounded(documents):
        yield (
            CheckedDocuments(batch) if checked else check_documents(batch),
            None if embeddings is None else embeddings[start : start + len(batch)],
        )
        start += len(batch)


class AddTally:
    """Counts the documents of one ``add`` call, each id once, and calls the caller's callbacks."""

    def __init__(self, on_cut: OnCut | None, progress: Callable[[int], object] | None) -> None:
        self._on_cut = on_cut
        self._progress = progress
        self._written: set[str] = set()
        self._duplicates: dict[str, None] = {}
        self._cuts = Cuts()
        self._pooled = 0

    def tell(self, stored: Stored) -> None:
        """Count a batch that has been stored."""
        last = {document.id: i for i, document in enumerate(stored.batch)}
        repeated = (d.id for i, d in enumerate(stored.batch) if d.id in self._written or last[d.id] != i)
        self._duplicates |= dict.fromkeys(repeated)
        self._written.update(last)
        self._pooled += stored.pooled
        for document in stored.cut:
            self._cuts.add(document)
            if self._on_cut:
                self._on_cut(document)
        if self._progress:
            self._progress(len(self._written))

    def report(self, encoding_seconds: float) -> AddReport:
        """The report on what has been stored so far."""
        return AddReport(
            written=len(self._written),
            duplicates=tuple(self._duplicates),
            truncated=self._cuts.count,
            lost_tokens=self._cuts.lost_tokens,
            cut=tuple(self._cuts.first),
            pooled=self._pooled,
            encoding_seconds=encoding_seconds,
        )


class Cuts:
    """Counts truncated documents."""

    def __init__(self) -> None:
        self.count = self.lost_tokens = 0
        self.first: list[CutDocument] = []
        """The first 1,000."""

    def add(self, document: CutDocument) -> None:
        """Count one."""
        self.count += 1
        self.lost_tokens += document.lost_token_count or 0
        if len(self.first) < MOST_CUT_NAMED:
            self.first.append(document)
