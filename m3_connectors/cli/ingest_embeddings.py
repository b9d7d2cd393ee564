"""``m3 ingest``: keep embeddings in a folder (``--save-embeddings``), and store such a folder without the model."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3_connectors.backends.schema import Storage
from m3_connectors.cli.backups import open_for
from m3_connectors.cli.console import out, plural, warn
from m3_connectors.shards import EmbeddingsFolder, changes_of, is_embeddings_folder

if TYPE_CHECKING:
    from m3_connectors.blocking import Index
    from m3_connectors.ingestion import EmbeddingsKeeper, SavedReport
    from m3_connectors.readers.inputs import Source

SaveEmbeddings = Annotated[
    Path | None,
    typer.Option(
        "--save-embeddings",
        metavar="DIR",
        help="Keep the embeddings of the collection in a folder of Parquet files; m3 ingest DIR stores it elsewhere.",
    ),
]

_STORAGE = ("long_documents", "pool_factor", "pool_from_rows", "components", "multivector_dtype")
_WITH_EFFECT = (
    *("sources", "to", "collection", "sync", "check", "max_errors", "wait", "json", "debug"),
    *_STORAGE,
)
"""The parameters of ``m3 ingest`` that concern folders of embeddings; the others concern texts or the model."""


def saved_folders(
    sources: Sequence[Source], given: Mapping[str, object], defaults: inspect.Signature
) -> list[EmbeddingsFolder]:
    """Return the folders of embeddings that a command was given; none if its sources are of another kind.

    Args:
        sources: The sources.
        given: The values of all parameters of the command.
        defaults: Its parameters.

    Raises:
        typer.BadParameter: The sources are of both kinds or of different collections, or an option has no effect.
        InvalidInput: A folder is damaged.
    """
    paths = [source for source in sources if isinstance(source, Path) and is_embeddings_folder(source)]
    if not paths:
        return []
    others = [source for source in sources if source not in paths]
    if others:
        raise typer.BadParameter(
            f"folders of embeddings, such as {paths[0]}, cannot be mixed with other sources, such as {others[0]}. "
            "Run one command for each kind.",
            param_hint="SOURCE",
        )
    _check_options(paths[0], given, defaults)
    folders = [EmbeddingsFolder(path) for path in paths]
    first = folders[0].schema
    for folder in folders:
        if (folder.schema.model, folder.schema.storage) != (first.model, first.storage):
            raise typer.BadParameter(
                f"{folders[0].path} and {folder.path} are of collections with different models or storage. "
                "Run one command for each.",
                param_hint="SOURCE",
            )
        if not folder.is_finished:
            warn(
                f"{folder.path} is incomplete, because the run that wrote it was interrupted: storing what is there"
            )
    return folders


def open_target(folder: EmbeddingsFolder, url: str, collection: str, storage: Storage | None) -> Index:
    """Open the collection for the embeddings of a folder, and warn of what will be different in it."""
    index = open_for(folder, url, collection, storage)
    try:
        for change in changes_of(folder.schema, index.schema, collection, str(folder.path)):
            warn(change)
    except BaseException:
        index.close()
        raise
    return index


@contextlib.contextmanager
def saving(folder: Path | None, index: Index) -> Iterator[EmbeddingsKeeper | None]:
    """Keep the embeddings of a run in a folder, if one is given."""
    if folder is None:
        yield None
        return
    from m3_connectors.ingestion import EmbeddingsKeeper

    with EmbeddingsKeeper(folder, index) as keeper:
        yield keeper


def print_saved(saved: SavedReport, folder: Path | None) -> None:
    """Print what a run did to the folder of embeddings."""
    parts = [f"{plural(saved.documents, 'document')} in {folder}"]
    if saved.read:
        parts.append(f"{saved.read:,} of them read from the store")
    if saved.removed:
        parts.append(f"{saved.removed:,} marked as removed")
    out.print(f"  {' · '.join(parts)}", markup=False, soft_wrap=True)


def _check_options(folder: Path, given: Mapping[str, object], defaults: inspect.Signature) -> None:
    for name, parameter in defaults.parameters.items():
        value = given[name]
        # What has no default is no option, such as the context of the command.
        if (
            name in _WITH_EFFECT
            or parameter.default is parameter.empty
            or value == parameter.default
            or (name == "model" and value == os.environ.get("M3_MODEL"))
        ):
            continue
        what = "it" if value is True else value
        raise typer.BadParameter(
            f"{what} has no effect on {folder}, whose documents are cut and embedded already. Omit it.",
            param_hint=f"--{name.replace('_', '-')}",
        )
