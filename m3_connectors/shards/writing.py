"""Write a folder of shards: each file is complete before it is listed, and one process writes at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from m3_connectors.backends.checks import check_stored
from m3_connectors.backends.pooling import pool_long
from m3_connectors.backends.qdrant.edge.lock import ProcessLock
from m3_connectors.backends.schema import Schema
from m3_connectors.documents import Document, check_documents
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import Busy, InvalidInput
from m3_connectors.files import replacing, sync_directory
from m3_connectors.shards.folder import LIST, ShardEntry, read_list
from m3_connectors.shards.format import ShardFile, described, pyarrow, record_of, write_ids

SHARD_BYTES = 128 * 2**20
"""A shard is completed when it has about this size."""

_LOCK = ".lock"
_OURS = re.compile(r"(shard|removed)-\d{6,}\.parquet(\.tmp)?")


class ShardWriter:
    """Writes embeddings to a folder; a context manager.

    What is written counts from the moment its shard is complete, after ``SHARD_BYTES``, ``flush`` or the end of the
    block. Only ``finish`` says that everything is there. A process that is killed leaves the shards that were
    complete.

    Args:
        folder: The folder, which is created. It must be empty, or a folder of embeddings of the same collection.
        schema: The collection: its model, components and storage.
        anew: Whether ``finish`` replaces what the folder has; until then, readers find what it had before.
        shard_bytes: The size at which a shard is completed.

    Raises:
        InvalidInput: The folder has other files or embeddings of another collection, or another process writes to it.
        MissingDependency: pyarrow is not installed.
    """

    def __init__(
        self, folder: Path, schema: Schema, *, anew: bool = False, shard_bytes: int = SHARD_BYTES
    ) -> None:
        pyarrow()
        self.folder = folder
        self.schema = dataclasses.replace(schema, adding=None)
        self._shard_bytes = shard_bytes
        self._file: ShardFile | None = None
        self._size = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InvalidInput(f"{folder} is a file.\n  Give a folder, which is created if needed.") from None
        try:
            self._lock = ProcessLock(folder / _LOCK, operation="save")
        except Busy:
            raise InvalidInput(
                f"another process, or another writer of this one, writes to {folder}.\n"
                "  Wait for it, or give another folder."
            ) from None
        try:
            old = self._old_shards()
            self._listed = [] if anew else old
            self._replaced = old if anew else []
            numbers = [int(re.sub(r"\D", "", shard.file)) for shard in old]
            self._next = max(numbers, default=0) + 1
            if not (anew and old):
                self._list(finished=False)
            self._remove_leftovers({shard.file for shard in old})
        except BaseException:
            self._lock.release()
            raise

    @property
    def shards(self) -> Sequence[ShardEntry]:
        """The shards that are complete."""
        return self._listed

    def write(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """Append documents with their embeddings as a collection returns them.

        Raises:
            InvalidInput: A document or vector could not be stored in the collection, or a component is missing.
            ModelMismatch: The embeddings come from another model.
            OSError: The disk is full.
        """
        documents = check_documents(documents)
        embeddings = check_stored(self.schema, str(self.folder), len(documents), embeddings)
        if not documents:
            return
        if self._file is None:
            self._file = ShardFile(self._path("shard", unfinished=True), self.schema)
        self._size += self._file.write(documents, embeddings)
        if self._size >= self._shard_bytes:
            self.flush()

    def write_encoded(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        """Append documents with embeddings from an encoder, whose rows the collection may pool; raises as ``write``."""
        self.write(documents, pool_long(self.schema.storage, embeddings))

    def remove(self, ids: Sequence[str]) -> None:
        """Note that documents no longer exist."""
        self.flush()
        if ids:
            write_ids(self._path("removed", unfinished=True), self.schema, ids)
            self._complete("removed", len(ids))

    def flush(self) -> None:
        """Complete the shard that has been begun: from now on it survives a crash."""
        if self._file is None:
            return
        file, self._file, self._size = self._file, None, 0
        file.close()
        self._complete("shard", file.documents)

    def finish(self) -> None:
        """Complete the last shard and say that everything is there."""
        self.flush()
        self._list(finished=True)
        for shard in self._replaced:
            (self.folder / shard.file).unlink(missing_ok=True)
        self._replaced = []

    def close(self) -> None:
        """Complete the last shard, and let others write to the folder."""
        try:
            self.flush()
        finally:
            self._lock.release(remove=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _old_shards(self) -> list[ShardEntry]:
        """Return the shards that the folder has.

        Raises:
            InvalidInput: They are of another collection, or the folder has other files.
        """
        if not (self.folder / LIST).exists():
            # The list is written before the first shard: shards without it have lost theirs.
            others = sorted({*os.listdir(self.folder)} - {_LOCK, f"{LIST}.tmp"})
            if others:
                raise InvalidInput(
                    f"{self.folder} has files, such as {others[0]!r}, and no {LIST}.\n"
                    "  Give a new or an empty folder."
                )
            return []
        schema, shards, _ = read_list(self.folder)
        if (schema.model, schema.storage) != (self.schema.model, self.schema.storage):
            raise InvalidInput(
                f"{self.folder} has embeddings of another collection ({described(schema)}); this one is "
                f"{described(self.schema)}.\n  Give another folder."
            )
        return shards

    def _complete(self, kind: str, documents: int) -> None:
        path, target = self._path(kind, unfinished=True), self._path(kind)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(path, target)
        sync_directory(self.folder)
        entry = ShardEntry(target.name, documents, target.stat().st_size, kind == "removed")
        self._listed = [*self._listed, entry]
        self._next += 1
        if not self._replaced:
            self._list(finished=False)

    def _list(self, *, finished: bool) -> None:
        record = {
            **record_of(self.schema),
            "finished": finished,
            "shards": [dataclasses.asdict(shard) for shard in self._listed],
        }
        with replacing(self.folder / LIST, durable=True) as partial:
            partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
        sync_directory(self.folder)

    def _path(self, kind: str, *, unfinished: bool = False) -> Path:
        return self.folder / f"{kind}-{self._next:06d}.parquet{'.tmp' if unfinished else ''}"

    def _remove_leftovers(self, listed: set[str]) -> None:
        """Remove what a killed process left behind."""
        for name in os.listdir(self.folder):
            if _OURS.fullmatch(name) and name not in listed:
                (self.folder / name).unlink()
