"""Arguments and options that several commands share, and the parsing of their values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from m3_connectors.backends.registry import backend_for
from m3_connectors.backends.schema import Storage
from m3_connectors.embeddings import COMPONENTS, Component
from m3_connectors.errors import InvalidInput, MissingDependency, Unsupported
from m3_connectors.filters import parse_filter
from m3_connectors.json_lines import Decoder, NotARecord
from m3_connectors.methods import METHODS, Method, Weights


def _known_method(name: str) -> str:
    if name not in METHODS:
        raise typer.BadParameter(f"{name!r} is not valid; choose one of {', '.join(METHODS)}.")
    return name


Url = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="The store, such as qdrant:./data (the folder is created if it does not exist)."
    ),
]
Collection = Annotated[
    str, typer.Option("--collection", "-c", metavar="NAME", help="Name of the collection.")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        envvar="M3_MODEL",
        help="Hub name, directory or m3-tiny. "
        "[dim]default: the model of the collection, or BAAI/bge-m3[/dim]",
    ),
]
MethodName = Annotated[
    str,
    typer.Option(
        "--method", metavar="METHOD", callback=_known_method, help=f"Ranking method: {', '.join(METHODS)}."
    ),
]
WeightsText = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="W1,W2,W3|FILE",
        help="Weights of the dense, sparse and multi-vector scores, or a weights file. "
        "[dim]default: the weights shipped with the model, or those of the paper[/dim]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else, on stdout.")]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show all warnings, and the traceback if the command fails.")
]


class RunByDefault(TyperGroup):
    """Makes ``m3 bench SCENARIO.toml`` an alias of ``m3 bench run SCENARIO.toml``; also of other groups."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert ``run`` before the first argument, unless it is a command."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


WEIGHTED = ("dense_sparse", "all")
"""The methods that fuse several scores and therefore take weights."""


def at_least(smallest: int) -> Callable[[str], int]:
    """Return a parser for an integer option that rejects values below ``smallest``."""

    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = smallest - 1
        if number < smallest:
            raise typer.BadParameter(f"'{value}' is not valid; give an integer of at least {smallest}.")
        return number

    return parse


Split = Annotated[
    str | None,
    typer.Option(
        "--split", metavar="SPLIT", help="Split of the judgements.", show_default="the paper's, or test"
    ),
]
DatasetStore = Annotated[
    str,
    typer.Option(
        "--to", metavar="URL", help="The store. Documents that are already in it are not encoded again."
    ),
]
DatasetCollection = Annotated[
    str | None,
    typer.Option(
        "--collection",
        "-c",
        metavar="NAME",
        help="Name of the collection.",
        show_default="derived from DATASET",
    ),
]
PassageMaxLength = Annotated[
    int | None,
    typer.Option(
        "--passage-max-length",
        metavar="TOKENS",
        parser=at_least(3),
        help="Truncate documents to this number of tokens.",
        show_default="the model's limit",
    ),
]
QueryMaxLength = Annotated[
    int | None,
    typer.Option(
        "--query-max-length",
        metavar="TOKENS",
        parser=at_least(3),
        help="Truncate queries to this number of tokens.",
        show_default="the model's limit",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Read hub datasets from this folder instead of the hub."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Download the files of the dataset without asking.")]


def one_of(choices: Iterable[str]) -> Callable[[str | None], str | None]:
    """Return a check for an option that takes one name, or is left out."""
    known = tuple(choices)

    def check(name: str | None) -> str | None:
        if name is not None and name not in known:
            raise typer.BadParameter(f"{name!r} is not valid; choose one of {', '.join(known)}.")
        return name

    return check


Components = Annotated[
    str | None,
    typer.Option(
        "--components",
        metavar="C1,C2,…",
        help=f"Components that a new collection stores: {', '.join(COMPONENTS)}. Without multivector it is far "
        "smaller. [dim]default: all three[/dim]",
    ),
]


def components_of(value: str | None) -> tuple[Component, ...] | None:
    """Return the components of ``--components``.

    Raises:
        typer.BadParameter: A name is unknown or repeated, or dense is missing.
    """
    if value is None:
        return None
    try:
        return Storage(components=tuple(name.strip() for name in value.split(","))).components  # type: ignore[misc]
    except InvalidInput as error:
        raise typer.BadParameter(str(error), param_hint="--components") from None


def names_of(known: Iterable[str]) -> Callable[[str], str]:
    """Return a check for an option of comma-separated names; the check removes spaces around the names."""
    choices = tuple(known)

    def check(value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        for name in names:
            if name not in choices:
                raise typer.BadParameter(f"{name!r} is not valid; choose from {', '.join(choices)}.")
        return ",".join(names)

    return check


def check_store(url: str, collection: str, url_hint: str = "URL") -> None:
    """Reject a URL or a collection name that no store accepts, before anything is opened.

    Raises:
        typer.BadParameter: The URL or the name is not valid. A missing adapter is reported later, when the
            store is opened.
    """
    try:
        backend_for(url)
    except (InvalidInput, Unsupported) as error:
        raise typer.BadParameter(str(error), param_hint=url_hint) from None
    except MissingDependency:
        return
    try:
        backend_for(url, collection)
    except InvalidInput as error:
        raise typer.BadParameter(str(error), param_hint="--collection") from None


def choose_method(name: str, weights: str | None) -> Method | None:
    """Return the method that ``--method`` and ``--weights`` describe, or None to use the model's weights.

    Args:
        name: The value of ``--method``, already validated.
        weights: The value of ``--weights``: a weights file, or numbers. dense_sparse takes two numbers, and
            ignores the last of three; all takes three.

    Raises:
        typer.BadParameter: The method takes no weights, or these weights are not valid for it.
        InvalidInput: The file has no weights for this method.
    """
    if weights is None:
        return None
    if name not in WEIGHTED:
        raise _bad_weights(f"method {name} takes no weights; choose {' or '.join(WEIGHTED)}.")
    numbers = list(Weights.load(weights, name)) if Path(weights).is_file() else _numbers(weights)
    if len(numbers) != 3 and not (name == "dense_sparse" and len(numbers) == 2):
        wanted = "2 (dense, sparse)" if name == "dense_sparse" else "3 (dense, sparse, multi-vector)"
        raise _bad_weights(f"{weights!r} has {len(numbers)} numbers; method {name} takes {wanted}.")
    dense, sparse, *rest = numbers
    try:
        return METHODS[name].weighted(dense, sparse, rest[0] if name == "all" else 0)
    except InvalidInput as error:
        raise _bad_weights(f"{weights!r}: {error}") from None


def _numbers(value: str) -> list[float]:
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise _bad_weights(f"{value!r} is neither a file nor a list of numbers such as 1,0.3,1.") from None


def _bad_weights(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="--weights")


def read_filter(value: str | None) -> dict[str, Any] | None:
    """Return the parsed value of ``--filter``.

    Raises:
        typer.BadParameter: The value is not a JSON object, or not a valid filter.
    """
    if value is None:
        return None
    try:
        parsed = Decoder().record(value)
        parse_filter(parsed)
    except NotARecord as error:
        raise _bad_filter(
            f"{value!r} is not valid: {error}. Give one JSON object, such as "
            '{"year": {"$gte": 2020, "$lt": 2024}}; $and joins further conditions.'
        ) from None
    except InvalidInput as error:
        raise _bad_filter(str(error)) from None
    return parsed


def _bad_filter(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="--filter")
