"""Export a collection to a folder of embeddings, and put such a folder into a collection."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import anyio.to_thread

from m3_connectors.backends.base import Backend
from m3_connectors.backends.together import together
from m3_connectors.documents import Document
from m3_connectors.embeddings import COMPONENTS, M3Embeddings
from m3_connectors.shards import EmbeddingsFolder, Part, ShardWriter, changes_of, stored_as


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """The result of ``export``.

    Attributes:
        documents: The number of documents written.
        files: The number of Parquet files.
        bytes: Their size.
        seconds: How long the call took.
    """

    documents: int
    files: int
    bytes: int
    seconds: float = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """The result of ``import_``.

    Attributes:
        documents: The number of documents stored.
        truncated: The number of those whose text was longer than the encoder's maximum, as far as the folder says.
        lost_tokens: The number of tokens that were cut off, over all of them.
        changes: What is different in the collection from what was saved, one sentence each; empty if nothing is.
        seconds: How long the call took.
    """

    documents: int
    truncated: int
    lost_tokens: int
    changes: tuple[str, ...]
    seconds: float = dataclasses.field(compare=False)


async def export(
    backend: Backend,
    parts: AsyncIterator[Part],
    folder: str | os.PathLike[str],
    progress: Callable[[int], object] | None,
) -> ExportReport:
    """Write all documents of a collection to a folder; what it had before is replaced at the end."""
    began, count = time.monotonic(), 0
    writer = await anyio.to_thread.run_sync(partial(ShardWriter, Path(folder), backend.schema, anew=True))
    try:
        async for documents, embeddings in parts:
            await anyio.to_thread.run_sync(writer.write, documents, embeddings)
            count += len(documents)
            if progress:
                progress(count)
        await anyio.to_thread.run_sync(writer.finish)
    finally:
        writer.close()
    size = sum(shard.bytes for shard in writer.shards)
    return ExportReport(count, len(writer.shards), size, time.monotonic() - began)


async def restore(
    backend: Backend, folder: str | os.PathLike[str], progress: Callable[[int], object] | None
) -> ImportReport:
    """Store all documents of a folder; the next part is read while one is written."""
    began = time.monotonic()
    saved = await anyio.to_thread.run_sync(EmbeddingsFolder, Path(folder))
    saved.check_finished()
    changes = changes_of(saved.schema, backend.schema, backend.collection, str(saved.path))
    write = restoring(backend, saved)
    count = truncated = lost = 0
    parts = saved.parts()
    following = await anyio.to_thread.run_sync(next, parts, None)
    while following is not None:
        documents, embeddings = following
        # The next part is read while this one is written.
        calls: list[Callable[[], Awaitable[Part | None]]] = [
            partial(write, documents, embeddings),
            partial(anyio.to_thread.run_sync, next, parts, None),
        ]
        _, following = await together(calls)
        count += len(documents)
        truncated += embeddings.truncated_count
        lost += lost_tokens(embeddings)
        if progress:
            progress(count)
    return ImportReport(count, truncated, lost, tuple(changes), time.monotonic() - began)


def restoring(
    backend: Backend, saved: EmbeddingsFolder
) -> Callable[[Sequence[Document], M3Embeddings], Awaitable[None]]:
    """Return the call that stores parts of a folder in a collection."""

    async def write(documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        if backend.schema.components != COMPONENTS:  # another process may add a component
            await backend.renew()
        store = backend.restore if stored_as(saved.schema, backend.schema) else backend.upsert
        await store(documents, embeddings)

    return write


def lost_tokens(embeddings: M3Embeddings) -> int:
    """Return how many tokens of truncated texts were cut off, as far as the counts are known."""
    if embeddings.token_counts is None or embeddings.kept_token_counts is None:
        return 0
    lost = embeddings.token_counts - embeddings.kept_token_counts
    return int(lost[embeddings.truncated].sum())
