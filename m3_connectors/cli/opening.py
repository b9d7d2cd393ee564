"""Which model a command uses, and the index that it works on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from m3_connectors.cli.console import working
from m3_connectors.embeddings import ModelInfo
from m3_connectors.errors import M3Error, ModelFormat, NotFound

if TYPE_CHECKING:
    from m3_connectors.blocking import Index
    from m3_connectors.encoder.encoder import M3Encoder
    from m3_connectors.index import Description

DEFAULT_MODEL = "BAAI/bge-m3"


def load_encoder(model: str, *, revision: str | None = None, max_length: int | None = None) -> M3Encoder:
    """The encoder of a hub name or directory; PyTorch is imported here and not before."""
    with working(f"loading {model} …"):
        from m3_connectors.encoder.encoder import M3Encoder

        return M3Encoder(model, revision=revision, max_length=max_length)


def choose_encoder(
    url: str, collection: str, model: str | None, *, create: bool, max_length: int | None = None
) -> M3Encoder:
    """The encoder for a collection.

    Args:
        url: The store.
        collection: Name in the store.
        model: As ``--model`` gives it; None takes the model that wrote the collection, else ``DEFAULT_MODEL``.
        create: It is no error if the collection is not there.
        max_length: Most tokens of a text; the model's own by default.

    Raises:
        NotFound: No such collection, and ``create`` is false; raised before a model is loaded.
        ModelFormat: The model that wrote the collection cannot be loaded again from its name alone.
    """
    written_by: ModelInfo | None = None
    try:
        written_by = describe(url, collection).schema.model
    except NotFound:
        if not create:
            raise
    if model is not None:
        return load_encoder(model, max_length=max_length)
    if written_by is None:
        return load_encoder(DEFAULT_MODEL, max_length=max_length)
    return _load_again(written_by, collection, max_length)


def open_index(url: str, collection: str, model: str | None, *, create: bool) -> Index:
    """A collection with its encoder; arguments and errors as ``choose_encoder``'s.

    Raises:
        ModelMismatch: The collection was written by another model.
    """
    from m3_connectors.blocking import connect

    encoder = choose_encoder(url, collection, model, create=create)
    return connect(url, collection, encoder=encoder, create=create)


def describe(url: str, collection: str) -> Description:
    """What a collection says about itself.

    Raises:
        NotFound: There is none; says how to make it.
    """
    from m3_connectors.blocking import connect

    try:
        with connect(url, collection, create=False) as index:
            return index.describe()
    except NotFound as error:
        error.add_note(f"  Fill it first:  m3 index {url} SOURCE     or name another one with --collection.")
        raise


def _load_again(info: ModelInfo, collection: str, max_length: int | None) -> M3Encoder:
    remedy = "\n  Say where it is: --model DIRECTORY, or M3_MODEL=DIRECTORY."
    # Without a revision it was a directory: no hub has it.
    name = info.name if info.revision else find_model(info.name)
    if name is None:
        raise ModelFormat(
            f'collection "{collection}" was written by {info}, and no such directory is found from here.{remedy}'
        )
    try:
        return load_encoder(name, revision=info.revision, max_length=max_length)
    except M3Error as error:
        reason = str(error).splitlines()[0]
        raise ModelFormat(
            f'collection "{collection}" was written by {info}, which cannot be loaded: {reason}{remedy}'
        ) from error


def find_model(name: str) -> str | None:
    """A model directory by its path, or by the last parts of it, which are all that a collection records.

    Looked for below the current directory and its parents; opening a collection then compares fingerprints, so
    that a namesake is refused. None if there is none.
    """
    here = Path.cwd()
    places = (base / Path(name).expanduser() for base in (here, *here.parents))
    return next((str(place) for place in places if (place / "config.json").is_file()), None)
