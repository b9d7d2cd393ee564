"""Choose the model of a command, and open the index that it works on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from m3_connectors.backends.checks import check_model
from m3_connectors.backends.registry import DEFAULT_COLLECTION, is_persistent
from m3_connectors.backends.urls import redacted
from m3_connectors.cli.console import err, working
from m3_connectors.cli.model_directories import directories, find_by_name, remember
from m3_connectors.cli.options import check_store
from m3_connectors.embeddings import ModelInfo
from m3_connectors.errors import (
    InvalidInput,
    M3Error,
    MissingDependency,
    ModelFormat,
    ModelMismatch,
    NotFound,
    Unavailable,
    Unsupported,
)

if TYPE_CHECKING:
    from m3_connectors.backends.schema import Storage
    from m3_connectors.blocking import Index
    from m3_connectors.encoder.encoder import M3Encoder
    from m3_connectors.remote_encoder import RemoteEncoder

DEFAULT_MODEL = "BAAI/bge-m3"

MISMATCH_ADVICE = (
    "Omit --model and M3_MODEL to use the collection's model, or choose another collection with -c."
)


def is_address(model: str) -> bool:
    """Return whether the name of a model is the address of a server."""
    return model.startswith(("http://", "https://"))


def load_encoder(model: str, *, revision: str | None = None) -> M3Encoder:
    """Return the encoder of a hub name or directory. PyTorch is imported here, because that is slow.

    Raises:
        typer.BadParameter: The model is the address of a server, which this command cannot use.
        ModelFormat, NotFound, Unauthorised, Unavailable: See M3Encoder.
    """
    if is_address(model):
        raise typer.BadParameter(
            f"this command needs the model itself, and {redacted(model)} is a server. "
            "Give a hub name or a directory. m3 index, m3 ingest and m3 search use servers.",
            param_hint="--model",
        )
    with (
        working(f"loading {model} …"),
        advice("Use a local directory: --model DIRECTORY.", NotFound, Unavailable),
        _naming_servers(),
    ):
        from m3_connectors.encoder.encoder import M3Encoder

        encoder = M3Encoder(model, revision=revision)
    directory = Path(model).expanduser()
    if directory.is_dir():
        remember(encoder.info, directory)
    return encoder


def connect_encoder(address: str) -> RemoteEncoder:
    """Return the encoder of a server; its key is in the environment.

    Raises:
        InvalidInput, Unauthorised, NotFound, Unavailable: See RemoteEncoder.
    """
    from m3_connectors.remote_encoder import KEY_VARIABLE, RemoteEncoder

    with working(f"asking {redacted(address)} …"):
        return RemoteEncoder(address, api_key=os.environ.get(KEY_VARIABLE))


def check_length(tokens: int | None, encoder: M3Encoder, option: str) -> None:
    """Reject a length that exceeds the model's limit, before anything is encoded.

    Raises:
        typer.BadParameter: The length exceeds the model's limit.
    """
    if tokens is not None and tokens > encoder.max_length:
        raise typer.BadParameter(
            f"{tokens} exceeds the limit of this model; give at most {encoder.max_length} tokens.",
            param_hint=option,
        )


def choose_encoder(url: str, collection: str, model: str | None) -> M3Encoder:
    """Return the encoder for a collection, which may be missing.

    Args:
        url: The store.
        collection: The name of the collection.
        model: The value of ``--model``; None means the model that wrote the collection, or ``DEFAULT_MODEL``.

    Raises:
        ModelFormat: The model that wrote the collection was not found on this machine.
    """
    from m3_connectors.blocking import connect

    written_by: ModelInfo | None = None
    with contextlib.suppress(NotFound), connect(url, collection, create=False) as index:
        written_by = index.schema.model
    if model is None and written_by is not None:
        return _load_again(written_by, url, collection)
    return load_encoder(model or DEFAULT_MODEL)


def create_index(url: str, collection: str, model: str | None, storage: Storage | None) -> Index:
    """Open a collection with its encoder, or create it; ``storage`` is passed to ``connect``.

    Raises:
        ModelMismatch: Another model wrote the collection. The message names the options that fix it.
    """
    from m3_connectors.blocking import connect

    encoder = (
        connect_encoder(model) if model and is_address(model) else choose_encoder(url, collection, model)
    )
    with advice(MISMATCH_ADVICE, ModelMismatch):
        return connect(url, collection, encoder=encoder, storage=storage)


def open_index(url: str, collection: str, model: str | None) -> Index:
    """Open an existing collection, then load its encoder; the store is opened once.

    Raises:
        typer.BadParameter: The URL or the name of the collection is not valid.
        NotFound: The collection does not exist. The message says how to create it.
        ModelFormat: The model that wrote the collection was not found on this machine.
        ModelMismatch: ``model`` did not write the collection. The message names the options that fix it.
    """
    from m3_connectors.blocking import connect

    try:
        index = connect(url, collection, create=False)
    except NotFound as error:
        error.add_note(f"  {how_to_fill(url, collection)}")
        raise
    except (InvalidInput, Unsupported):
        check_store(url, collection)  # names the argument that is wrong
        raise
    try:
        encoder = _load(model, index.schema.model, url, collection)
        with advice(MISMATCH_ADVICE, ModelMismatch):
            index.use_encoder(encoder)
    except BaseException:
        index.close()
        raise
    return index


@contextlib.contextmanager
def advice(advice: str, *kinds: type[M3Error]) -> Iterator[None]:
    """Replace the advice of an error, which is for Python callers, by advice for the command line."""
    try:
        yield
    except kinds as error:
        error.args = (str(error).splitlines()[0],)
        error.add_note(f"  {advice}")
        raise


@contextlib.contextmanager
def _naming_servers() -> Iterator[None]:
    """Add to the error of a machine without PyTorch what works without it."""
    try:
        yield
    except MissingDependency as error:
        error.add_note("  Or use the model of a server that runs m3 serve: --model http://HOST:PORT.")
        raise


def how_to_fill(url: str, collection: str) -> str:
    """Return the advice for a collection that does not exist."""
    if not is_persistent(url):
        return f"{redacted(url)} is empty when a command starts. Use a folder, such as qdrant:./data."
    name = "" if collection == DEFAULT_COLLECTION else f" -c {collection}"
    return f"Create it:  m3 index {redacted(url)} SOURCE{name}     or choose another one with --collection."


def _load(model: str | None, written_by: ModelInfo, url: str, collection: str) -> M3Encoder | RemoteEncoder:
    """Load the model that the user named, otherwise the one that wrote the collection."""
    if model is None:
        return _load_again(written_by, url, collection)
    return connect_encoder(model) if is_address(model) else load_encoder(model)


def _load_again(info: ModelInfo, url: str, collection: str) -> M3Encoder:
    """Load the model that wrote a collection, from the hub or from a directory with the same fingerprint.

    Raises:
        ModelFormat: The model was not found. The message names the model and the places that were searched.
    """
    tried: list[str] = []
    if info.revision:
        try:
            return load_encoder(info.name, revision=info.revision)
        except MissingDependency:
            raise
        except M3Error as error:
            tried.append(str(error).splitlines()[0])
    for directory in directories(info, url):
        try:
            encoder = load_encoder(str(directory))
            check_model(info, collection, encoder.info)
        except ModelMismatch:
            tried.append(f"{directory} contains another model ({_fingerprint(encoder.info)}).")
        except MissingDependency:
            raise
        except M3Error as error:
            tried.append(f"{directory} cannot be loaded: {str(error).splitlines()[0]}")
        else:
            if directory != find_by_name(info.name):
                err.print(
                    f"using the collection's model {info.name} from {directory}", style="dim", soft_wrap=True
                )
            return encoder
    places = (
        "the current directory and its parents, next to the store, and the models used on this machine before"
    )
    raise ModelFormat(
        f'collection "{collection}" was written by {info} ({_fingerprint(info)}), which was not found here.\n'
        + "".join(f"  {reason}\n" for reason in tried)
        + ("" if info.revision else f"  Searched for a directory {info.name} in: {places}.\n")
        + "  Give its location: --model DIRECTORY, or M3_MODEL=DIRECTORY."
    )


def _fingerprint(info: ModelInfo) -> str:
    return f"fingerprint {(info.weights_fingerprint or 'unknown')[:12]}"
