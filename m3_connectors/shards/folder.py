"""A folder of shards: the list of its files, and its documents in order, the last version of each id.

The list ``embeddings.json`` is replaced after each file that is complete, so a file that a killed process left behind
is never read, and a listed file that is missing is noticed. Documents that were removed are listed in files of ids:
what comes before such a file in the list does not count.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m3_connectors.backends.schema import Schema
from m3_connectors.documents import Document
from m3_connectors.embeddings import Bool, M3Embeddings
from m3_connectors.errors import InvalidInput
from m3_connectors.shards.format import damaged, read, read_ids, schema_of

LIST = "embeddings.json"

Part = tuple[list[Document], M3Embeddings]
"""Some documents, and their embeddings: row i for document i."""

Digests = npt.NDArray[np.bytes_]


@dataclasses.dataclass(frozen=True)
class ShardEntry:
    """A file of a folder.

    Attributes:
        file: Its name.
        documents: The number of documents, or of ids, in it.
        bytes: Its size.
        removes: Whether it has the ids of documents that were removed.
    """

    file: str
    documents: int
    bytes: int
    removes: bool = False


def is_embeddings_folder(path: Path) -> bool:
    """Return whether a path is a folder of embeddings."""
    return (path / LIST).is_file()


class EmbeddingsFolder:
    """The embeddings of a folder, as ``m3 export``, ``Index.export`` or ``m3 ingest --save-embeddings`` wrote them.

    Attributes:
        path: The folder.
        schema: The collection that they are from: model, components and storage.
        is_finished: Whether the run that wrote them came to its end.

    Args:
        path: The folder.

    Raises:
        InvalidInput: It is no such folder, was written by another version, or is damaged; a file is missing.
        MissingDependency: pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.schema, self.shards, self.is_finished = read_list(path)
        for shard in self.shards:
            self._check_size(shard)

    def check_finished(self) -> None:
        """Raise InvalidInput if the run that wrote the embeddings did not come to its end."""
        if not self.is_finished:
            raise InvalidInput(
                f"{self.path} is incomplete: the run that wrote it was interrupted.\n"
                "  Run the same command again. m3 ingest stores what is there in any case."
            )

    def parts(self) -> Iterator[Part]:
        """Yield all documents with their embeddings, in parts of about 16 MB; of repeated ids, the last one.

        The ids are read first: while the parts are read, 16 bytes are held for each document.

        Raises:
            InvalidInput: A file is damaged or of another collection; the message names it.
        """
        for shard, wanted in self.current_shards():
            yield from read(self.path / shard.file, self.schema, wanted)

    def document_count(self) -> int:
        """Return the number of documents that ``parts`` yields; reads the ids."""
        return sum(int(wanted.sum()) for _, wanted in self.current_shards())

    def current_shards(self) -> list[tuple[ShardEntry, Bool]]:
        """Return the shards that have documents which count, and which of theirs do."""
        digests = [self._digests(shard) for shard in self.shards]
        if not digests:
            return []
        # The first of each id from the end is its last.
        backwards = np.concatenate(digests)[::-1]
        _, first = np.unique(backwards, return_index=True)
        current = np.zeros(len(backwards), dtype=np.bool_)
        current[len(backwards) - 1 - first] = True
        parts = np.split(current, np.cumsum([len(part) for part in digests[:-1]]))
        return [
            (shard, part)
            for shard, part in zip(self.shards, parts, strict=True)
            if part.any() and not shard.removes
        ]

    def _digests(self, shard: ShardEntry) -> Digests:
        path = self.path / shard.file
        ids = read_ids(path, self.schema)
        if len(ids) != shard.documents:
            raise damaged(path, f"it has {len(ids)} documents, and {LIST} says {shard.documents}")
        return digests_of(ids)

    def _check_size(self, shard: ShardEntry) -> None:
        path = self.path / shard.file
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise InvalidInput(
                f"{path} is missing.\n  Restore the file from a copy, or save the embeddings again."
            ) from None
        if size != shard.bytes:
            raise damaged(path, f"it has {size} bytes, and {LIST} says {shard.bytes}")


def digests_of(ids: list[str]) -> Digests:
    """Return 16 bytes for each id; of the same length, so that zeros at the end do not matter."""
    digests = (hashlib.blake2b(id.encode(), digest_size=16).digest() for id in ids)
    return np.fromiter(digests, dtype="S16", count=len(ids))


def read_list(path: Path) -> tuple[Schema, list[ShardEntry], bool]:
    """Return the collection, the files and whether the last run came to its end, from the list of a folder.

    Raises:
        InvalidInput: There is no list, or it cannot be read.
    """
    file = path / LIST
    try:
        raw: Any = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidInput(
            f"{path} is no folder of embeddings: it has no {LIST}.\n"
            "  Give a folder that m3 export or m3 ingest --save-embeddings wrote."
        ) from None
    except ValueError as error:
        raise damaged(file, error) from None
    schema = schema_of(raw, file)
    try:
        shards = [ShardEntry(**entry) for entry in raw["shards"]]
        finished = raw["finished"] is True
        outside = any(Path(shard.file).name != shard.file for shard in shards)
    except (KeyError, TypeError) as error:
        raise damaged(file, error) from None
    if outside:
        raise damaged(file, "it names a file outside the folder")
    return schema, shards, finished
