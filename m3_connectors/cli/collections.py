"""``m3 collections``: list the collections of a store."""

from __future__ import annotations

from rich.table import Table

from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.cli.console import one_line, out, plural, print_json, print_table
from m3_connectors.cli.options import Debug, Json, Url, check_store


def collections(url: Url, json: Json = False, debug: Debug = False) -> None:
    """List the collections of a store with their model, documents, components and storage."""
    check_store(url, DEFAULT_COLLECTION)
    from m3_connectors.blocking import list_collections

    found = list_collections(url)
    if json:
        print_json({"collections": [_as_json(one) for one in found]})
        return
    ours, others = [one for one in found if one.is_ours], [one for one in found if not one.is_ours]
    if ours:
        print_table(_table(ours))
    else:
        out.print("  this store contains no collection of m3-connectors")
    if others:
        names = ", ".join(one_line(one.name) for one in others[:10])
        more = ", …" if len(others) > 10 else ""
        out.print(
            f"  and {plural(len(others), 'collection')} of other programs: {names}{more}",
            style="dim",
            markup=False,
            soft_wrap=True,
        )


def _as_json(info: CollectionInfo) -> dict[str, object]:
    schema = info.schema
    return {
        "name": info.name,
        "documents": info.count,
        "model": schema and str(schema.model),
        "components": schema and list(schema.components),
        "adding": schema and schema.adding,
        "storage": schema and schema.to_json()["storage"],
        "made_by_m3": info.is_ours,
        "problem": info.problem,
    }


def _table(found: list[CollectionInfo]) -> Table:
    table = Table(box=None, pad_edge=True, padding=(0, 1), header_style="dim")
    for name in ("collection", "documents", "model", "components", "storage"):
        table.add_column(name, justify="right" if name == "documents" else "left", overflow="fold")
    for one in found:
        count = "?" if one.count is None else f"{one.count:,}"
        if one.schema is None:
            table.add_row(one_line(one.name), count, "?", "", one.problem)
            continue
        storage = one.schema.storage
        rows = f"{storage.multivector_dtype}, long documents: {storage.pooling}"
        components = ", ".join(one.schema.components)
        if one.schema.adding:
            components += f" (adding {one.schema.adding})"
        table.add_row(one_line(one.name), count, str(one.schema.model), components, one.problem or rows)
    return table
