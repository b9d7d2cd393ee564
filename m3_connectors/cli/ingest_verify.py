"""``m3 ingest verify``: compare a collection with its ledger."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.backends.urls import redacted
from m3_connectors.cli.console import err, out, plural, print_json
from m3_connectors.cli.opening import how_to_fill
from m3_connectors.cli.options import Collection, Debug, Json, check_store
from m3_connectors.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from m3_connectors.ingestion import Verification

_NAMED = 20

To = Annotated[
    str, typer.Option("--to", metavar="URL", help="The store, such as qdrant:./data.", show_default=False)
]


def verify(
    to: To, collection: Collection = DEFAULT_COLLECTION, json: Json = False, debug: Debug = False
) -> None:
    """Compare a collection with its ledger by ids, and name what is missing; the next m3 ingest stores it again.

    The exit code is 1 if something is missing, or if an earlier version of a document was found.
    """
    from m3_connectors.blocking import connect
    from m3_connectors.ingestion import Ledger, ledger_path
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
                found = compare(index, ledger)
        except NotFound as error:
            error.args = (str(error).splitlines()[0],)
            count = plural(ledger.document_count(), "document")
            error.add_note(f"  The ledger has {count} of it: all are stored again by the next m3 ingest.")
            error.add_note(f"  {how_to_fill(to, collection)}")
            raise
    if json:
        print_json({"url": redacted(to), "collection": collection, **dataclasses.asdict(found)})
    else:
        print_verification(found)
    if found.missing or found.stale:
        raise typer.Exit(1)


def print_verification(found: Verification) -> None:
    """Print what a comparison found, and the first missing documents on stderr."""
    missing = f"{found.missing:,} of {plural(found.documents, 'document')} missing in the store"
    if not found.missing:
        missing = f"{plural(found.documents, 'document')}, none missing"
    parts = [missing, f"{found.stored:,} ids in the store"]
    if found.stale:
        parts.append(f"{found.stale:,} of them left by earlier versions")
    if found.unknown:
        parts.append(f"{found.unknown:,} of them written by other programs")
    out.print(f"  {' · '.join(parts)}", markup=False, soft_wrap=True)
    for id in found.missing_ids[:_NAMED]:
        err.print(f"  missing: {id!r}", markup=False, soft_wrap=True)
    if found.missing > _NAMED:
        err.print(f"  … and {found.missing - _NAMED:,} more; --json names the first 1,000")
