"""The directory of a collection on disk: its record, its other files, and the list of collections."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from m3_connectors.backends.base import Schema
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.qdrant.edge.errors import BACKEND, broken, translated
from m3_connectors.errors import AlreadyExists, CollectionNotFound, Corrupt, InvalidInput, NotFound
from m3_connectors.files import replacing

FIRST_SHARD = "shard"
"""The name of the directory with the engine's files in a new collection."""

_SHARD = re.compile(r"shard(-[0-9a-f]{32})?")


def write_record(home: Path, schema: Schema, name: str) -> None:
    """Write the schema and the name of the active shard directory atomically."""
    record = json.dumps({**schema.to_json(), "shard": name}, indent=1, ensure_ascii=False)
    with replacing(home / "m3.json", durable=True) as partial:
        partial.write_text(record, encoding="utf-8")


def read_record(home: Path) -> tuple[Schema, str]:
    """Read the schema and the name of the active shard directory.

    Raises:
        CollectionNotFound: There is no record.
        Corrupt: The record cannot be read.
    """
    try:
        raw = json.loads((home / "m3.json").read_text(encoding="utf-8"))
        name = raw.get("shard", FIRST_SHARD)
        if not _SHARD.fullmatch(name):
            raise ValueError(f"shard is {name!r}")
        return Schema.from_json(raw), name
    except FileNotFoundError:
        raise no_collection(home, "open") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(broken(f"m3.json: {error}", home), backend=BACKEND, operation="open") from error


def collections_in(directory: Path) -> list[CollectionInfo]:
    """Return the collections in a directory, and shards there that another program created.

    Raises:
        NotFound: The directory does not exist.
        InvalidInput: The path is a file.
    """
    with translated("list", directory):
        check_directory(directory)
        if not directory.exists():
            raise NotFound(
                f"there is no directory {directory}.\n  Check the path, or index documents into it first.",
                backend=BACKEND,
                operation="list",
            )
        homes = [path for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")]
        ours = [home for home in homes if (home / "m3.json").exists()]
        others = [home for home in homes if home not in ours and (home / "edge_config.json").exists()]
    return [
        *(CollectionInfo.read(home.name, lambda home=home: read_record(home)[0]) for home in ours),  # type: ignore[misc]
        *(CollectionInfo.other(home.name) for home in others),
    ]


def remove_other_shards(home: Path, name: str) -> None:
    """Delete copies that the record does not name, which killed processes left behind."""
    for left in home.glob("shard*"):
        if left.name != name and _SHARD.fullmatch(left.name):
            shutil.rmtree(left, ignore_errors=True)


def check_directory(directory: Path) -> None:
    """Raise InvalidInput if the path for the directory of collections is a file."""
    if directory.exists() and not directory.is_dir():
        raise InvalidInput(f"{directory} is not a directory.\n  Use qdrant:DIRECTORY, such as qdrant:./data.")


def no_collection(home: Path, operation: str) -> CollectionNotFound:
    """Return the error for a directory without a record."""
    message = (
        f"{home} is not a collection of m3-connectors: it has no m3.json.\n  Use another directory or name."
    )
    return CollectionNotFound(message, backend=BACKEND, operation=operation)


def check_absent(home: Path) -> None:
    """Raise AlreadyExists if the path of a new collection already exists."""
    if home.exists():
        message = f"{home} already exists.\n  Open it, drop it, or use another collection name."
        if not (home / "m3.json").exists():
            what = "a directory" if home.is_dir() else "a file"
            message = (
                f"{home} already exists and is {what} that m3-connectors did not create.\n"
                "  Use another collection name or another directory."
            )
        raise AlreadyExists(message, backend=BACKEND, operation="create")
