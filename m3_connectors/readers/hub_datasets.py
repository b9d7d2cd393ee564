"""Read datasets of Hugging Face, streamed: one document per row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote

from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.readers.columnar import ArrowRows
from m3_connectors.readers.inputs import Input
from m3_connectors.readers.outcomes import Outcome, reason_of
from m3_connectors.readers.settings import ReadSettings
from m3_connectors.readers.urls import Url

PREFIX = "hf://datasets/"
_ROWS_AT_ONCE = 256
_PARAMETERS = ("split", "config", "revision", "data_dir", "data_files")


def is_dataset(url: Url) -> bool:
    """Return whether a URL names a dataset, ``hf://datasets/OWNER/NAME``, and not files of its repository."""
    name = url.text.partition("?")[0].removeprefix(PREFIX)
    return url.text.startswith(PREFIX) and (name.startswith("/") or name.rstrip("/").count("/") < 2)


def read_dataset(file: Input, settings: ReadSettings) -> Iterator[Outcome]:
    """Yield the rows of a split of a dataset as documents, without loading it into memory or onto the disk.

    The parameters of the URL are ``split`` (``train`` by default), ``config``, ``revision``, ``data_dir`` and
    ``data_files``, as those of ``datasets.load_dataset``. A name that begins with a slash is a folder of this machine.

    Raises:
        MissingDependency: The package ``datasets`` is not installed.
        InvalidInput: There is no such dataset, or reading it failed; the message contains only the reason.
    """
    assert isinstance(file.path, Url)
    name, arguments = _parsed(file.path)
    try:
        import datasets
    except ImportError:
        raise MissingDependency("datasets", "datasets") from None
    try:
        rows = datasets.load_dataset(name, streaming=True, **arguments)
        # Arrow, because other formats decode images and sounds.
        batches = iter(rows.with_format("arrow").iter(_ROWS_AT_ONCE))
        first = next(batches, None)
    except Exception as error:  # noqa: BLE001 (each loader raises errors of its own)
        raise InvalidInput(f"cannot be opened: {_reason(error)}") from None
    if first is None:
        return
    table = ArrowRows(
        first.schema, f"{name}/{arguments.get('name', 'default')}/{arguments['split']}", settings.fields
    )
    unknown = settings.fields.unknown(first.schema.names)
    if unknown is not None:
        raise InvalidInput(unknown)
    yield from table.left_out()
    try:
        for batch in itertools.chain([first], batches):
            yield from table.outcomes(batch.combine_chunks().to_batches())
    except Exception as error:  # noqa: BLE001
        raise InvalidInput(f"ends after row {table.count:,} with an error: {_reason(error)}") from None


def _parsed(url: Url) -> tuple[str, dict[str, Any]]:
    """Return the name of a dataset and the arguments of ``load_dataset``."""
    name, _, parameters = url.text.removeprefix(PREFIX).partition("?")
    found = parse_qs(parameters, keep_blank_values=True)
    unknown = [key for key in found if key not in _PARAMETERS]
    if unknown:
        raise InvalidInput(f"unknown parameter {unknown[0]!r}, only {', '.join(_PARAMETERS)}")
    arguments: dict[str, Any] = {"split": "train"}
    for key, values in found.items():
        if key == "data_files":
            arguments[key] = values
        elif len(values) > 1 or not values[0]:
            raise InvalidInput(f"give one value for {key!r}")
        else:
            arguments["name" if key == "config" else key] = values[0]
    name, at, revision = unquote(name).rstrip("/").partition("@")
    if at:
        arguments.setdefault("revision", revision)
    return name, arguments


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {reason_of(error)}"
