"""Which documents a folder has, by 32 bytes for each: to compare it with a collection of any size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np

from m3_connectors.documents import Document, metadata_json
from m3_connectors.embeddings import Bool
from m3_connectors.shards.folder import EmbeddingsFolder, digests_of
from m3_connectors.shards.format import read_contents


class ContentIndex:
    """The ids and contents of a folder's documents.

    Args:
        folder: The folder.

    Raises:
        InvalidInput: A file is damaged.
    """

    def __init__(self, folder: EmbeddingsFolder) -> None:
        self._folder = folder
        ids, contents = [digests_of([])], [digests_of([])]
        for shard, wanted in folder.current_shards():
            for names, hashes, metadata in read_contents(folder.path / shard.file, folder.schema, wanted):
                ids.append(digests_of(names))
                contents.append(_digests(zip(hashes, metadata, strict=True), len(names)))
        joined, digests = np.concatenate(ids), np.concatenate(contents)
        order = np.argsort(joined)
        self._ids, self._contents = joined[order], digests[order]
        self._asked_for = np.zeros(len(order), dtype=np.bool_)

    def holds(self, documents: Sequence[Document]) -> Bool:
        """Return which of the documents the folder has with the same text and metadata, bool ``[documents]``."""
        ids = digests_of([document.id for document in documents])
        contents = _digests(
            (
                (hashlib.sha256(document.text.encode()).digest(), metadata_json(document.metadata))
                for document in documents
            ),
            len(documents),
        )
        if not len(self._ids):
            return np.zeros(len(documents), dtype=np.bool_)
        places = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        there: Bool = self._ids[places] == ids
        self._asked_for[places[there]] = True
        same: Bool = there & (self._contents[places] == contents)
        return same

    def not_asked_for(self) -> Iterator[str]:
        """Yield the ids of the documents that ``holds`` was not asked for."""
        if self._asked_for.all():
            return
        left = self._ids[~self._asked_for]
        for shard, wanted in self._folder.current_shards():
            for names, _, _ in read_contents(self._folder.path / shard.file, self._folder.schema, wanted):
                isin = np.isin(digests_of(names), left)
                yield from (names[i] for i in np.flatnonzero(isin))


def _digests(
    contents: Iterator[tuple[bytes, str]], count: int
) -> np.ndarray[tuple[int], np.dtype[np.bytes_]]:
    """Return 16 bytes for each hash of a text with its metadata, in whatever order its fields are."""
    digests = (
        hashlib.blake2b(
            text + json.dumps(json.loads(metadata), sort_keys=True).encode(), digest_size=16
        ).digest()
        for text, metadata in contents
    )
    return np.fromiter(digests, dtype="S16", count=count)
