"""``m3 bench plan``: calculate bytes, memory, nodes and the cost of a query."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Annotated, Any

import typer
from rich.table import Table

from m3_connectors.backends.planning import Formula, Plan, Shape, formula_of
from m3_connectors.backends.precision import PRECISIONS
from m3_connectors.backends.stores import STORES, stores_with
from m3_connectors.cli.console import out, print_json, print_table, warn
from m3_connectors.cli.options import Debug, Json, at_least, components_of, names_of
from m3_connectors.embeddings import COMPONENTS
from m3_connectors.errors import M3Error

_STORES = dict.fromkeys(store.name for store in STORES if store.plan)
_DTYPES = ",".join(PRECISIONS)
_NAMES = ("B", "kB", "MB", "GB", "TB", "PB")
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def _count(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 1 <= number < float("inf"):
        raise typer.BadParameter(f"'{value}' is not valid; give a number of at least 1, such as 100e6.")
    return number


def _memory(value: str) -> float:
    """Return ``64GB``, ``512 MB`` or ``6.4e10`` in bytes; units are decimal."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:[eE]\d+)?) ?([KMGTkmgt]?)[bB]?", value.strip())
    number = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if not 0 < number < float("inf"):
        raise typer.BadParameter(f"'{value}' is not valid; give a size in bytes, such as 64GB.")
    return number


def _long_documents(value: str) -> str:
    if value not in ("split", "error"):
        raise typer.BadParameter(
            f"'{value}' is not valid; choose split or error, or pool rows with --pool-factor."
        )
    return value


def _stores(value: str | None) -> str | None:
    return None if value is None else names_of(stores_with("plan"))(value)


def _factors(value: str | None) -> str | None:
    return None if value is None else ",".join(str(at_least(1)(one.strip())) for one in value.split(","))


def _dtypes(value: str | None) -> str | None:
    return None if value is None else names_of(PRECISIONS)(value)


def plan(
    documents: Annotated[
        float, typer.Option("--docs", metavar="N", parser=_count, help="Number of documents, such as 100e6.")
    ],
    tokens: Annotated[
        float,
        typer.Option("--tokens", metavar="N", parser=_count, help="Mean number of tokens per document."),
    ],
    dimension: Annotated[
        int, typer.Option("--dimension", min=1, max=4096, help="Dimension of the model.")
    ] = 1024,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar=_DTYPES,
            callback=_dtypes,
            help="Precisions of multi-vector rows.",
            show_default="all",
        ),
    ] = None,
    pool_factor: Annotated[
        str | None,
        typer.Option(
            "--pool-factor",
            metavar="N1,N2,…",
            callback=_factors,
            help="Numbers of multi-vector rows pooled into one; 1 is no pooling.",
            show_default="1,2,3, or 1 with another choice",
        ),
    ] = None,
    components: Annotated[
        str | None,
        typer.Option(
            "--components",
            metavar="C1,C2,…",
            help="Components that are stored.",
            show_default="all, and also without multi-vectors if no other choice is given",
        ),
    ] = None,
    long_documents: Annotated[
        str,
        typer.Option(
            "--long-documents",
            metavar="split|error",
            callback=_long_documents,
            help="As in Storage. With error, documents that do not fit in one record are refused, and Qdrant "
            "reserves no space for further parts.",
        ),
    ] = "split",
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="S1,S2,…",
            callback=_stores,
            help=f"Stores: {', '.join(_STORES)}, or another that is installed and has formulas.",
            show_default="all",
        ),
    ] = None,
    nodes_memory: Annotated[
        float, typer.Option("--nodes-memory", metavar="BYTES", parser=_memory, help="Memory of one node.")
    ] = "64GB",  # type: ignore[assignment]  # parsed like a typed value
    replicas: Annotated[
        int, typer.Option("--replicas", min=0, help="Number of additional copies of the data.")
    ] = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Calculate bytes, memory, nodes and the cost of a query for a collection that does not exist yet."""
    refused = long_documents == "error"
    given = (dtype, pool_factor, components) != (None, None, None)
    factors = (pool_factor or ("1" if given or refused else "1,2,3")).split(",")
    if refused and factors != ["1"]:
        raise typer.BadParameter(
            "pooling is not valid with --long-documents error; omit one.", param_hint="--pool-factor"
        )
    stored = components_of(components) or COMPONENTS
    of = functools.partial(
        Shape.of_tokens, documents, tokens, dimension, long_documents="error" if refused else "split"
    )
    shapes = [
        of(dtype=precision.name, pool_factor=int(factor), components=stored)
        for kind, precision in PRECISIONS.items()
        if kind in (dtype or _DTYPES).split(",")
        for factor in factors
    ]
    if "multivector" not in stored:  # then all are the same
        shapes = shapes[:1]
    elif not given:
        shapes.append(of(components=("dense", "sparse")))
    formulas = _formulas(store)
    chosen = store.split(",") if store else formulas
    plans = [
        plan
        for name, one in formulas.items()
        if name in chosen
        for plan in sorted(
            (plan for shape in shapes for plan in one.plans(shape)), key=lambda plan: plan.title
        )
    ]
    checked = {name: one.checked for name, one in formulas.items()}
    if json:
        print_json({"plans": [_document(one, nodes_memory, replicas) for one in plans], "checked": checked})
        return
    out.print(
        f"  {int(documents):,} documents of {tokens:g} tokens "
        f"({shapes[0].rows:g} rows of {dimension:,} dimensions), "
        f"{1 + replicas} cop{'y' if not replicas else 'ies'}, nodes of {_bytes(nodes_memory)}",
        markup=False,
        soft_wrap=True,
    )
    print_table(_overview(plans, nodes_memory, replicas))
    if len(factors) > 1 and "multivector" in stored:
        out.print(f"  The columns after disk are for rows {_pooled(int(factors[0]))}.", markup=False)
    if "multivector" in stored:
        out.print("  What each choice loses in quality: docs/storage.md", markup=False)
    for one in reversed({one.title: one for one in reversed(plans)}.values()):
        print_table(_parts(one))
        for note in one.notes:
            out.print(f"  {note}", markup=False, soft_wrap=True)
    for name, error in checked.items():
        if name in chosen:
            out.print(f"  error  {name}: {error}", markup=False, soft_wrap=True)


def _formulas(chosen: str | None) -> dict[str, Formula]:
    """Return the formulas of all stores; one that is at fault is an error if it was chosen, else a warning."""
    formulas: dict[str, Formula] = {}
    for name in stores_with("plan"):
        try:
            formula = formula_of(name)
        except M3Error as error:
            if chosen and name in chosen.split(","):
                raise
            warn(str(error))
        else:
            formulas |= {name: formula} if formula else {}
    return formulas


def _overview(plans: list[Plan], nodes_memory: float, replicas: int) -> Table:
    """Return one row for each store and precision, with the disk size for each factor of pooling."""
    factors = list(dict.fromkeys(one.shape.pool_factor for one in plans if one.shape.keeps_rows)) or [1.0]
    table = Table(box=None, padding=(0, 2), header_style="dim")
    table.add_column("store", style="bold", no_wrap=True)
    table.add_column("rows in", no_wrap=True)
    for name in (
        *(f"disk, {_pooled(factor)}" if factor > 1 else "disk" for factor in factors),
        "memory",
        "nodes",
        "disk per node",
        "bytes per document",
        "read per query",
        "sent per query",
        "MaxSim",
    ):
        table.add_column(name, justify="right")
    table.add_column("MaxSim in")
    by_kind: dict[tuple[str, str], list[Plan]] = {}
    for one in plans:
        by_kind.setdefault((one.title, _rows_in(one.shape)), []).append(one)
    for (store, rows), (one, *others) in by_kind.items():
        nodes = one.nodes(nodes_memory, replicas)
        sizes = [_bytes((1 + replicas) * each.disk_bytes) for each in (one, *others)]
        cost = (
            _bytes(one.cost.read_bytes),
            _bytes(one.cost.wire_bytes),
            f"{2 * one.cost.products / 1e9:,.1f} GFLOP",
            one.cost.where,
        )
        table.add_row(
            store,
            rows,
            *(sizes + [""] * len(factors))[: len(factors)],
            _bytes((1 + replicas) * one.memory_bytes),
            f"{nodes:,}",
            _bytes((1 + replicas) * one.disk_bytes / nodes),
            f"{one.disk_bytes / one.shape.documents:,.0f}",
            *(cost if one.shape.keeps_rows else ["–"] * len(cost)),
        )
    return table


def _rows_in(shape: Shape) -> str:
    return shape.dtype if shape.keeps_rows else "no multi-vectors"


def _pooled(factor: float) -> str:
    return f"pooled by {factor:g}" if factor > 1 else "without pooling"


def _parts(one: Plan) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim", title_justify="left")
    table.add_column(f"{one.title}, {_rows_in(one.shape)}")
    table.add_column("disk, bytes per document", justify="right")
    table.add_column("memory", justify="right")
    table.add_column("formula")
    for part in one.parts:
        table.add_row(
            part.name,
            f"{part.disk_bytes:,.0f}",
            f"{part.memory_bytes:,.0f}",
            f"{part.formula} [dim]{part.source}[/dim]",
        )
    return table


def _document(one: Plan, nodes_memory: float, replicas: int) -> dict[str, Any]:
    return {
        **dataclasses.asdict(one),
        "disk_bytes": (1 + replicas) * one.disk_bytes,
        "memory_bytes": (1 + replicas) * one.memory_bytes,
        "nodes": one.nodes(nodes_memory, replicas),
    }


def _bytes(size: float) -> str:
    """Format a size with three digits and a decimal unit, such as ``64.2 TB``."""
    power = 0
    while size >= 999.5 and power < len(_NAMES) - 1:
        size, power = size / 1000, power + 1
    return f"{size:,.0f} {_NAMES[power]}" if size >= 99.5 or not power else f"{size:,.1f} {_NAMES[power]}"
