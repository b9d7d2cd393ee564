"""``m3 ingest verify``: compare a collection with its ledger."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.backends.urls import redacted
from m3_connectors.cli.console import err, out, plural, print_json
from m3_connectors.cli.options import Collection, Debug, Json, check_store
from m3_connectors.errors import CollectionNotFound, InvalidInput

if TYPE_CHECKING:
    from m3_connectors.ingestion import Verification

_NAMED = 20

To = Annotated[
    str, typer.Option("--to", metavar="URL", help="The store, such as qdrant:./data.", show_default=False)
]


def verify(
    to: To,
    collection: Collection = DEFAULT_COLLECTION,
    hashes: Annotated[
        bool,
        typer.Option(
            "--hashes",
            help="Also read the stored texts and metadata, and compare them with what was written.",
        ),
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare a collection with its ledger, and name what is missing or changed; the next m3 ingest stores it again.

    The exit code is 1 if something is missing or changed, or if an earlier version of a document was found.
    """
    from m3_connectors.blocking import connect
    from m3_connectors.ingestion import Ledger, ledger_path, verify_dropped
    from m3_connectors.ingestion import verify as compare

    check_store(to, collection)
    path = ledger_path(to, collection)
    if not path.exists():
        raise InvalidInput(
            f'collection "{collection}" of {redacted(to)} has no ledger on this machine ({path} does not exist).\n'
            "  m3 ingest writes it; run m3 ingest on the machine that filled the collection."
        )
    with Ledger(path, to, collection) as ledger:
        try:
            with connect(to, collection, create=False) as index:
                found = compare(index, ledger, hashes=hashes)
        except CollectionNotFound as error:
            err.print(str(error).splitlines()[0], markup=False, soft_wrap=True)
            found = verify_dropped(ledger)
    if json:
        print_json({"url": redacted(to), "collection": collection, **dataclasses.asdict(found)})
    else:
        print_verification(found)
    if not found.agrees:
        raise typer.Exit(1)


def print_verification(found: Verification) -> None:
    """Print what a comparison found, and on stderr the first documents that are missing or changed."""
    missing = f"{found.missing:,} of {plural(found.documents, 'document')} missing in the store"
    if not found.missing:
        missing = f"{plural(found.documents, 'document')}, none missing"
    parts = [missing]
    if found.changed is not None:
        parts.append(f"{found.changed:,} changed" if found.changed else "none changed")
    parts.append(f"{found.stored:,} ids in the store")
    if found.stale:
        parts.append(f"{found.stale:,} of them left by earlier versions")
    if found.unknown:
        parts.append(f"{found.unknown:,} of them written by other programs")
    if found.unhashed:
        parts.append(f"{plural(found.unhashed, 'document')} without hashes, of an earlier version of m3")
    out.print(f"  {' · '.join(parts)}", markup=False, soft_wrap=True)
    _name("missing", found.missing_ids, found.missing)
    _name("changed", found.changed_ids, found.changed or 0)
    if not found.agrees:
        err.print(
            "  marked in the ledger: the next m3 ingest of their sources stores them again and removes what earlier "
            "versions left",
            markup=False,
            soft_wrap=True,
        )


def _name(what: str, ids: Sequence[str], count: int) -> None:
    for id in ids[:_NAMED]:
        err.print(f"  {what}: {id!r}", markup=False, soft_wrap=True)
    if count > _NAMED:
        err.print(f"  … and {count - _NAMED:,} more {what}; --json names the first 1,000")
