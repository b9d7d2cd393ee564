"""The directory of a collection on disk: its record, what else may lie there, and the collections side by side."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from m3_connectors.backends.base import Schema
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.qdrant.failures import BACKEND, broken, translated
from m3_connectors.errors import AlreadyExists, CollectionNotFound, Corrupt, InvalidInput, NotFound

FIRST_SHARD = "shard"
"""Name of the directory with the engine's files in a new collection."""

_SHARD = re.compile(r"shard(-[0-9a-f]{32})?")


def write_record(home: Path, schema: Schema, name: str) -> None:
    """Record the schema, and the directory whose shard counts, in one step."""
    with open(home / "m3.json.tmp", "w", encoding="utf-8") as file:
        json.dump({**schema.to_json(), "shard": name}, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(home / "m3.json.tmp", home / "m3.json")


def read_record(home: Path) -> tuple[Schema, str]:
    """The schema, and the directory whose shard counts.

    Raises:
        CollectionNotFound: There is no record.
        Corrupt: It cannot be read.
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
    """The collections in a directory, and shards that another program made there.

    Raises:
        NotFound: There is no such directory.
        InvalidInput: It is a file.
    """
    with translated("list", directory):
        check_directory(directory)
        if not directory.exists():
            raise NotFound(f"there is no directory {directory}.", backend=BACKEND, operation="list")
        homes = [path for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")]
        ours = [home for home in homes if (home / "m3.json").exists()]
        others = [home for home in homes if home not in ours and (home / "edge_config.json").exists()]
    return [
        *(CollectionInfo.read(home.name, lambda home=home: read_record(home)[0]) for home in ours),  # type: ignore[misc]
        *(CollectionInfo.other(home.name) for home in others),
    ]


def remove_other_shards(home: Path, name: str) -> None:
    """Remove what killed processes left behind: copies that the record does not name."""
    for left in home.glob("shard*"):
        if left.name != name and _SHARD.fullmatch(left.name):
            shutil.rmtree(left, ignore_errors=True)


def check_directory(directory: Path) -> None:
    """Raise InvalidInput if a file lies where the directory of collections should be."""
    if directory.exists() and not directory.is_dir():
        raise InvalidInput(f"{directory} is no directory: give qdrant:DIRECTORY, such as qdrant:./data.")


def no_collection(home: Path, operation: str) -> CollectionNotFound:
    """The error for a directory without a record."""
    message = (
        f"{home} is no collection of m3-connectors: it has no m3.json.\n  Use another directory or name."
    )
    return CollectionNotFound(message, backend=BACKEND, operation=operation)


def sync(directory: Path) -> None:
    """Make a rename in this directory survive a power cut, where the system lets directories be synced."""
    if os.name == "posix":
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_absent(home: Path) -> None:
    """Raise AlreadyExists if anything lies where a new collection should be."""
    if home.exists():
        message = f"{home} is there.\n  Open it, drop it, or use another collection name."
        if not (home / "m3.json").exists():
            what = "a directory" if home.is_dir() else "a file"
            message = (
                f"{home} is {what} of something else.\n  Use another collection name or another directory."
            )
        raise AlreadyExists(message, backend=BACKEND, operation="create")
