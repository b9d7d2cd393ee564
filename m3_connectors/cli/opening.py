"""Which model a command uses, and the index that it works on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.backends.urls import shown
from m3_connectors.cli.console import working
from m3_connectors.embeddings import ModelInfo
from m3_connectors.errors import M3Error, ModelFormat, ModelMismatch, NotFound, Unavailable

if TYPE_CHECKING:
    from m3_connectors.backends.schema import Storage
    from m3_connectors.blocking import Index
    from m3_connectors.encoder.encoder import M3Encoder
    from m3_connectors.index import Description, Encoder

DEFAULT_MODEL = "BAAI/bge-m3"

MISMATCH_ADVICE = "Leave --model (and M3_MODEL) out to use the collection's own, or take another -c NAME."


def load_encoder(model: str, *, revision: str | None = None) -> M3Encoder:
    """The encoder of a hub name or directory; PyTorch is imported here and not before.

    Raises:
        ModelFormat, NotFound, Unauthorised, Unavailable: As M3Encoder raises them.
    """
    with (
        working(f"loading {model} …"),
        advice("Give a directory instead: --model DIRECTORY.", NotFound, Unavailable),
    ):
        from m3_connectors.encoder.encoder import M3Encoder

        return M3Encoder(model, revision=revision)


def check_length(tokens: int | None, encoder: M3Encoder, option: str) -> None:
    """Refuse a length that the model cannot read, before anything is encoded.

    Raises:
        typer.BadParameter: It is one.
    """
    if tokens is not None and tokens > encoder.max_length:
        raise typer.BadParameter(
            f"'{tokens}': this model reads at most {encoder.max_length} tokens.", param_hint=option
        )


def choose_encoder(url: str, collection: str, model: str | None, *, create: bool) -> M3Encoder:
    """The encoder for a collection.

    Args:
        url: The store.
        collection: Name in the store.
        model: As ``--model`` gives it; None takes the model that wrote the collection, else ``DEFAULT_MODEL``.
        create: It is no error if the collection is not there.

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
        return load_encoder(model)
    if written_by is None:
        return load_encoder(DEFAULT_MODEL)
    return _load_again(written_by, collection)


def open_index(
    url: str, collection: str, model: str | None, *, create: bool, storage: Storage | None = None
) -> Index:
    """A collection with its encoder; arguments and errors as ``choose_encoder``'s and ``connect_index``'s."""
    encoder = choose_encoder(url, collection, model, create=create)
    return connect_index(url, collection, encoder, create=create, storage=storage)


def connect_index(
    url: str, collection: str, encoder: Encoder, *, create: bool, storage: Storage | None = None
) -> Index:
    """A collection with this encoder; ``storage`` as ``connect`` takes it.

    Raises:
        ModelMismatch: The collection was written by another model; says what to do about it here.
    """
    from m3_connectors.blocking import connect

    with advice(MISMATCH_ADVICE, ModelMismatch):
        return connect(url, collection, encoder=encoder, create=create, storage=storage)


@contextlib.contextmanager
def advice(advice: str, *kinds: type[M3Error]) -> Iterator[None]:
    """What to do on the command line, instead of what to write in Python."""
    try:
        yield
    except kinds as error:
        error.args = (str(error).splitlines()[0],)
        error.add_note(f"  {advice}")
        raise


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
        error.add_note(f"  {how_to_fill(url, collection)}")
        raise


def how_to_fill(url: str, collection: str) -> str:
    """What to do about a collection that is not there."""
    if url == "memory:":
        return "memory: is empty at every start: use a folder, such as qdrant:./data."
    name = "" if collection == DEFAULT_COLLECTION else f" -c {collection}"
    return f"Fill it first:  m3 index {shown(url)} SOURCE{name}     or name another one with --collection."


def _load_again(info: ModelInfo, collection: str) -> M3Encoder:
    remedy = "\n  Say where it is: --model DIRECTORY, or M3_MODEL=DIRECTORY."
    # Without a revision it was a directory: no hub has it.
    name = info.name if info.revision else find_model(info.name)
    if name is None:
        raise ModelFormat(
            f'collection "{collection}" was written by {info}, and no such directory is found from here.{remedy}'
        )
    try:
        return load_encoder(name, revision=info.revision)
    except M3Error as error:
        reason = str(error).splitlines()[0]
        raise ModelFormat(
            f'collection "{collection}" was written by {info}, which cannot be loaded: {reason}{remedy}'
        ) from error


def find_model(name: str) -> str | None:
    """A model directory by its path, or by the last parts of it, which are all that a collection records.

    Looked for below the current directory and its parents; opening a collection then compares fingerprints, so
    that a namesake is refused. The models of this project are found wherever they are installed. None if there is none.

    Raises:
        ModelFormat: The model is one of this project's, and its package is not installed.
    """
    from m3_connectors.encoder.shipped import shipped_model

    here = Path.cwd()
    places = (base / Path(name).expanduser() for base in (here, *here.parents))
    found = next((place for place in places if (place / "config.json").is_file()), None)
    found = found or shipped_model(Path(name).name)
    return str(found) if found else None
