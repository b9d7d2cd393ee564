"""``m3 ingest --shard I/N``: one of several runs that store the documents of the same sources together."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from m3_connectors.cli.opening import advice
from m3_connectors.errors import Busy, InvalidInput


def _check_shard(value: str | None) -> str | None:
    from m3_connectors.ingestion import Shard

    try:
        return None if value is None else str(Shard.parse(value))
    except InvalidInput as error:
        raise typer.BadParameter(str(error)) from None


ShardText = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        callback=_check_shard,
        help="Store only part I of N equal parts, by a hash of the ids. N runs, one for each I, on one machine or "
        "many, store every document once.",
        show_default="all documents",
    ),
]


def report_suffix(shard: str | None, suffix: str) -> str:
    """Return the suffix of report files: runs of several shards in one folder must not replace each other's."""
    return suffix if shard is None else f".{shard.replace('/', '-of-')}{suffix}"


def shown_shard(shard: str | None) -> str:
    """Return the shard for the beginning of the summary."""
    return "" if shard is None else f"shard {shard}: "


def sharing(shard: str | None) -> contextlib.AbstractContextManager[None]:
    """Say how shards can share a store that only one process can open at a time."""
    if shard is None:
        return contextlib.nullcontext()
    return advice(
        "Run the shards one after the other, or store into a server, such as qdrant+http://HOST:6333.", Busy
    )
