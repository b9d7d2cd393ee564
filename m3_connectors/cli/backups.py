"""``m3 export`` and ``m3 import``: a collection to a folder of Parquet files, and back into any store."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3_connectors.backends.registry import DEFAULT_COLLECTION, is_persistent
from m3_connectors.backends.schema import Storage
from m3_connectors.backends.urls import redacted
from m3_connectors.cli.console import duration, out, plural, print_json, warn
from m3_connectors.cli.documents import open_existing
from m3_connectors.cli.options import Collection, Components, Debug, Json, Url, check_store
from m3_connectors.cli.progress import Progress
from m3_connectors.cli.sources import (
    LongDocuments,
    MultivectorDtype,
    PoolFactor,
    PoolFromRows,
    storage_of,
)
from m3_connectors.errors import NotFound
from m3_connectors.shards import EmbeddingsFolder

if TYPE_CHECKING:
    from m3_connectors.blocking import Index

Folder = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="The folder of the embeddings.", show_default=False),
]


def export(
    url: Url,
    folder: Folder,
    collection: Collection = DEFAULT_COLLECTION,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a collection with all its vectors to a folder of Parquet files: a backup, or a copy for another store.

    An earlier export in the folder is replaced when the new one is complete.
    """
    check_store(url, collection)
    with open_existing(url, collection) as index, Progress() as progress:
        total = index.count()
        report = index.export(
            folder, progress=lambda count: progress.update("writing", count, total, unit="documents")
        )
    if json:
        print_json({"folder": str(folder), **_rounded(dataclasses.asdict(report))})
        return
    parts = [plural(report.documents, "document"), plural(report.files, "file"), _size(report.bytes)]
    out.print(
        f"  {' · '.join([*parts, duration(report.seconds), f'in {folder}'])}", markup=False, soft_wrap=True
    )


def import_(
    folder: Folder,
    url: Url,
    collection: Collection = DEFAULT_COLLECTION,
    long_documents: LongDocuments = None,
    pool_factor: PoolFactor = None,
    pool_from_rows: PoolFromRows = None,
    components: Components = None,
    multivector_dtype: MultivectorDtype = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Store the documents of a folder that m3 export or m3 ingest --save-embeddings wrote. No model is needed.

    A new collection has the storage of the exported one, unless options say otherwise. Documents with the same ids are
    replaced.
    """
    check_store(url, collection)
    storage = storage_of(components, multivector_dtype, long_documents, pool_factor, pool_from_rows)
    if not is_persistent(url):
        raise typer.BadParameter(
            f"{redacted(url)} is discarded when this command ends. Use a folder such as qdrant:./data.",
            param_hint="URL",
        )
    saved = EmbeddingsFolder(folder)
    saved.check_finished()
    with open_for(saved, url, collection, storage) as index, Progress() as progress:
        total = saved.document_count()
        report = index.import_(
            folder, progress=lambda count: progress.update("storing", count, total, unit="documents")
        )
        count = index.count()
    if json:
        document = {"url": redacted(url), "collection": collection, "count": count}
        print_json({**document, **_rounded(dataclasses.asdict(report))})
        return
    for change in report.changes:
        warn(change)
    parts = [plural(report.documents, "document")]
    if report.truncated:
        parts.append(
            f"{report.truncated:,} truncated to the model's limit, {report.lost_tokens:,} tokens lost"
        )
    parts.append(duration(report.seconds))
    out.print(f"  {' · '.join(parts)}", markup=False, soft_wrap=True)


def open_for(saved: EmbeddingsFolder, url: str, collection: str, storage: Storage | None) -> Index:
    """Open a collection for saved embeddings, or create it with the storage of those, unless another one is given."""
    from m3_connectors.blocking import connect

    try:
        return connect(url, collection, storage=storage, create=False)
    except NotFound:
        return connect(url, collection, model=saved.schema.model, storage=storage or saved.schema.storage)


def _rounded(report: dict[str, object]) -> dict[str, object]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in report.items()}


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
