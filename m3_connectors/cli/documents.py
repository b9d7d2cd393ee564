"""``m3 get`` and ``m3 delete``: print or delete documents by id or by a filter."""

from __future__ import annotations

import json as jsons
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.cli.console import err, lines_of, one_line, out, plural, print_json, without_controls
from m3_connectors.cli.opening import how_to_fill
from m3_connectors.cli.options import Collection, Debug, Json, Url, check_store, read_filter
from m3_connectors.documents import Document, check_id
from m3_connectors.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from m3_connectors.blocking import Index


def get(
    url: Url,
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Ids of the documents.")],
    collection: Collection = DEFAULT_COLLECTION,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Print documents by id, in this order; the exit code is 1 if one of them does not exist.

    With --json, print one document per line (JSON Lines, which m3 index can read). Missing ids go to stderr.
    """
    check_store(url, collection)
    _check_ids(ids)
    with open_existing(url, collection) as index:
        found = index.get(ids)
    for document in found:
        if document is None:
            continue
        if json:
            sys.stdout.write(_line_of(document) + "\n")
        else:
            _print(document)
    missing = [id for id, document in zip(ids, found, strict=True) if document is None]
    for id in dict.fromkeys(missing):
        err.print(f"document {id!r} does not exist", markup=False, soft_wrap=True)
    if missing:
        raise typer.Exit(1)


def delete(
    url: Url,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID…]", help="Ids of the documents to delete.")
    ] = None,
    collection: Collection = DEFAULT_COLLECTION,
    filter: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="JSON",
            help="""Delete all documents that match, such as '{"year": {"$lt": 2020}}'.""",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete by a filter without asking.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Delete documents by id, or all that match a filter, and print how many were deleted.

    Missing ids are not an error. Before deleting by a filter, the command prints the number of matching
    documents and asks for confirmation; without a terminal, --yes is required.
    """
    check_store(url, collection)
    wanted = read_filter(filter)
    if bool(ids) == (filter is not None):
        raise typer.BadParameter("give either ids or --filter.")
    if filter is not None and not wanted:
        raise typer.BadParameter(
            "an empty filter would delete every document. Give a condition; "
            "Index.drop() removes a whole collection.",
            param_hint="--filter",
        )
    _check_ids(ids or [])
    with open_existing(url, collection) as index:
        if ids:
            deleted = index.delete(ids)
        else:
            passing = index.count(wanted)
            if passing and not yes:
                _ask(passing, collection)
            deleted = index.delete(filter=wanted) if passing else 0
    if json:
        print_json({"deleted": deleted})
        return
    out.print(f"  {plural(deleted, 'document')} deleted")
    absent = len(set(ids or ())) - deleted
    if ids and absent:
        err.print(f"  {plural(absent, 'id')} not found", style="dim")


def _ask(passing: int, collection: str) -> None:
    """Ask the user to confirm.

    Raises:
        typer.BadParameter: stdin is not a terminal, so the user cannot be asked.
        typer.Abort: The user declined.
    """
    what = f'{plural(passing, "document")} of collection "{collection}"'
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            f"this deletes {what}, and stdin is not a terminal; add --yes to confirm.", param_hint="--filter"
        )
    typer.confirm(f"Delete {what}?", abort=True, err=True)


def open_existing(url: str, collection: str) -> Index:
    """Open an existing collection without its model.

    Raises:
        NotFound: It does not exist. The message says how to create it.
    """
    from m3_connectors.blocking import connect

    try:
        return connect(url, collection, create=False)
    except NotFound as error:
        error.args = (lines_of(error)[0],)
        error.add_note(f"  {how_to_fill(url, collection)}")
        raise


def _check_ids(ids: list[str]) -> None:
    for id in ids:
        try:
            check_id(id, "")
        except InvalidInput as error:
            raise typer.BadParameter(str(error).removeprefix("."), param_hint="ID") from None


def _line_of(document: Document) -> str:
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    record = {"id": document.id, "text": document.text, "metadata": dict(document.metadata)}
    return jsons.dumps(record, ensure_ascii=not is_utf8, allow_nan=False)


def _print(document: Document) -> None:
    out.print(Text(one_line(document.id), style="bold"), soft_wrap=True)
    for name, value in document.metadata.items():
        line = f"  {one_line(name)}: {jsons.dumps(value, ensure_ascii=False)}"
        out.print(Text(line, style="dim"), soft_wrap=True)
    for line in document.text.splitlines() or [""]:
        out.print(Text(f"  {without_controls(line)}"), soft_wrap=True)
