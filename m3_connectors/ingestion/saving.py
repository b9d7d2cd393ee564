"""Keep the embeddings of a run in a folder, and make the folder equal to the collection at its end.

A batch is written to the folder after the store has acknowledged it, and its shard may be complete only later. A
process that is killed in between leaves the folder behind the collection. The folder may also have been begun after
documents were stored, and it has documents that were removed since. At the end of a run, it is therefore compared
with the collection: what it lacks is read from the store, which takes no model.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m3_connectors.blocking import Index, scan_chosen
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.shards import ContentIndex, EmbeddingsFolder, ShardWriter

_REMOVED_AT_ONCE = 10_000


@dataclasses.dataclass(frozen=True)
class SavedReport:
    """What a run did to a folder of embeddings.

    Attributes:
        documents: The number of documents that the folder has now.
        written: The number of documents whose embeddings this run computed and wrote.
        read: The number of documents that the folder lacked, read from the store.
        removed: The number of documents that the collection no longer has.
    """

    documents: int
    written: int
    read: int
    removed: int


class EmbeddingsKeeper:
    """Writes the embeddings of a run to a folder; a context manager.

    Give ``on_embedded`` to ``ingest``, and call ``finish`` after it.

    Args:
        folder: The folder, which is created. It must be empty or hold embeddings of the same collection.
        index: The collection.

    Raises:
        InvalidInput: The folder has other files or embeddings of another collection.
        MissingDependency: pyarrow is not installed.
    """

    def __init__(self, folder: Path, index: Index) -> None:
        self._index = index
        self._writer = ShardWriter(folder, index.schema)
        self._written = 0

    def on_embedded(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """Write a batch that the store has acknowledged."""
        self._writer.write_encoded(documents, embeddings)
        self._written += len(documents)

    def finish(self) -> SavedReport:
        """Make the folder equal to the collection: all texts of the collection are read and compared.

        Raises:
            InvalidInput: A file of the folder is damaged.
            BackendError: The store failed.
        """
        self._writer.flush()
        there = ContentIndex(EmbeddingsFolder(self._writer.folder))
        read = count = 0

        def lacking(documents: list[Document]) -> list[Document]:
            nonlocal count
            count += len(documents)
            same = there.holds(documents)
            return [documents[i] for i in np.flatnonzero(~same)]

        for part in scan_chosen(self._index, lacking):
            self._writer.write(*part)
            read += len(part[0])
        gone = there.not_asked_for()
        removed = 0
        while ids := list(itertools.islice(gone, _REMOVED_AT_ONCE)):
            self._writer.remove(ids)
            removed += len(ids)
        self._writer.finish()
        return SavedReport(count, self._written, read, removed)

    def __enter__(self) -> EmbeddingsKeeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
