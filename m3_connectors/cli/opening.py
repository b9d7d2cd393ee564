"""Which model a command uses, and the index that it works on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m3_connectors.cli.console import working
from m3_connectors.embeddings import ModelInfo
from m3_connectors.errors import M3Error, ModelFormat, NotFound

if TYPE_CHECKING:
    from m3_connectors.blocking import Index
    from m3_connectors.encoder.encoder import M3Encoder

DEFAULT_MODEL = "BAAI/bge-m3"


def load_encoder(model: str, *, revision: str | None = None, max_length: int | None = None) -> M3Encoder:
    """The encoder of a hub name or directory; PyTorch is imported here and not before."""
    with working(f"loading {model} …"):
        from m3_connectors.encoder.encoder import M3Encoder

        return M3Encoder(model, revision=revision, max_length=max_length)


def open_index(
    url: str, collection: str, model: str | None, *, create: bool, max_length: int | None = None
) -> Index:
    """A collection with an encoder.

    Args:
        url: The store.
        collection: Name in the store.
        model: As ``--model`` gives it; None takes the model that wrote the collection, else ``DEFAULT_MODEL``.
        create: Make the collection if it is not there.
        max_length: Most tokens of a text; the model's own by default.

    Raises:
        NotFound: No such collection, and ``create`` is false; raised before a model is loaded.
        ModelFormat: The model that wrote the collection cannot be loaded again from its name alone.
        ModelMismatch: The collection was written by another model.
    """
    from m3_connectors.blocking import connect

    written_by = _written_by(url, collection, create=create)
    if model is not None:
        encoder = load_encoder(model, max_length=max_length)
    elif written_by is None:
        encoder = load_encoder(DEFAULT_MODEL, max_length=max_length)
    else:
        encoder = _load_again(written_by, collection, max_length)
    return connect(url, collection, encoder=encoder, create=create)


def _written_by(url: str, collection: str, *, create: bool) -> ModelInfo | None:
    from m3_connectors.blocking import connect

    try:
        with connect(url, collection, create=False) as index:
            return index.schema.model
    except NotFound:
        if not create:
            raise
        return None


def _load_again(info: ModelInfo, collection: str, max_length: int | None) -> M3Encoder:
    from pathlib import Path

    remedy = "\n  Say where it is: --model DIRECTORY, or M3_MODEL=DIRECTORY."
    if info.revision is None and not Path(info.name).is_dir():  # it was a directory: no hub has it
        raise ModelFormat(
            f'collection "{collection}" was written by {info}, and there is no such directory here.{remedy}'
        )
    try:
        return load_encoder(info.name, revision=info.revision, max_length=max_length)
    except M3Error as error:
        reason = str(error).splitlines()[0]
        raise ModelFormat(
            f'collection "{collection}" was written by {info}, which cannot be loaded: {reason}{remedy}'
        ) from error
