"""Which model a command uses, and the index that it works on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from m3_connectors.backends.checks import check_model
from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.backends.urls import shown
from m3_connectors.cli.console import err, working
from m3_connectors.cli.model_directories import directories, find_by_name, remember
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

        encoder = M3Encoder(model, revision=revision)
    directory = Path(model).expanduser()
    if directory.is_dir():
        remember(encoder.info, directory)
    return encoder


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
        ModelFormat: The model that wrote the collection is not found on this machine.
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
    return _load_again(written_by, url, collection)


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


def _load_again(info: ModelInfo, url: str, collection: str) -> M3Encoder:
    """The model that wrote a collection, from the hub or from a directory of the same fingerprint.

    Raises:
        ModelFormat: It is not found here; says which model it is, where it was looked for, and what to do.
    """
    tried: list[str] = []
    if info.revision:
        try:
            return load_encoder(info.name, revision=info.revision)
        except M3Error as error:
            tried.append(str(error).splitlines()[0])
    for directory in directories(info, url):
        try:
            encoder = load_encoder(str(directory))
            check_model(info, collection, encoder.info)
        except ModelMismatch:
            tried.append(f"{directory} holds another model ({_fingerprint(encoder.info)}).")
        except M3Error as error:
            tried.append(f"{directory} cannot be loaded: {str(error).splitlines()[0]}")
        else:
            if directory != find_by_name(info.name):
                err.print(
                    f"the collection's model {info.name} is found in {directory}", style="dim", soft_wrap=True
                )
            return encoder
    places = "below this directory and its parents, beside the store, and among the models used on this machine before"
    raise ModelFormat(
        f'collection "{collection}" was written by {info} ({_fingerprint(info)}), which is not found here.\n'
        + "".join(f"  {reason}\n" for reason in tried)
        + ("" if info.revision else f"  A directory {info.name} was looked for {places}.\n")
        + "  Say where it is: --model DIRECTORY, or M3_MODEL=DIRECTORY."
    )


def _fingerprint(info: ModelInfo) -> str:
    return f"fingerprint {(info.weights_fingerprint or 'unknown')[:12]}"
