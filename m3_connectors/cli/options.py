"""Arguments and options that several commands share, and what their values mean."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from m3_connectors.backends.registry import backend_for
from m3_connectors.errors import InvalidInput, MissingDependency, Unsupported
from m3_connectors.filters import MAX_DEPTH, parse_filter
from m3_connectors.methods import METHODS, Method, Weights


def _known_method(name: str) -> str:
    if name not in METHODS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(METHODS)}.")
    return name


Url = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="The store, such as qdrant:./data (a folder that is made if need be)."
    ),
]
Collection = Annotated[
    str, typer.Option("--collection", "-c", metavar="NAME", help="Collection in the store.")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        envvar="M3_MODEL",
        help="Hub name, directory, or m3-tiny. [dim]default: the collection's own model, else BAAI/bge-m3[/dim]",
    ),
]
MethodName = Annotated[
    str,
    typer.Option(
        "--method", metavar="METHOD", callback=_known_method, help=f"How to rank: {', '.join(METHODS)}."
    ),
]
WeightsText = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="W1,W2,W3|FILE",
        help="Weights of dense, sparse and multi-vector scores, or a weights file. "
        "[dim]default: those that the model ships with, else the paper's[/dim]",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure, and all warnings.")]

WEIGHTED = ("dense_sparse", "all")
"""The methods that fuse several scores."""


def at_least(smallest: int) -> Callable[[str], int]:
    """Parses an option's whole number; names the value that it refuses."""

    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = smallest - 1
        if number < smallest:
            raise typer.BadParameter(f"'{value}': give a whole number >= {smallest}.")
        return number

    return parse


Split = Annotated[
    str | None,
    typer.Option("--split", metavar="SPLIT", help="Which judgements.", show_default="the paper's, or test"),
]
DatasetStore = Annotated[
    str,
    typer.Option("--to", metavar="URL", help="The store; what it holds already is not encoded again."),
]
DatasetCollection = Annotated[
    str | None,
    typer.Option(
        "--collection",
        "-c",
        metavar="NAME",
        help="Collection in the store.",
        show_default="named after DATASET",
    ),
]
PassageMaxLength = Annotated[
    int | None,
    typer.Option(
        "--passage-max-length",
        metavar="TOKENS",
        parser=at_least(3),
        help="Cut documents here.",
        show_default="the model's own",
    ),
]
QueryMaxLength = Annotated[
    int | None,
    typer.Option(
        "--query-max-length",
        metavar="TOKENS",
        parser=at_least(3),
        help="Cut queries here.",
        show_default="the model's own",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Files of the hub's datasets, instead of the hub."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Download what the dataset needs without asking.")]


def names_of(known: Iterable[str]) -> Callable[[str], str]:
    """A check of an option that takes names with commas between them; returns them without blanks."""
    choices = tuple(known)

    def check(value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        for name in names:
            if name not in choices:
                raise typer.BadParameter(f"{name!r} is none of {', '.join(choices)}.")
        return ",".join(names)

    return check


def check_store(url: str, collection: str, url_hint: str = "URL") -> None:
    """Refuse a URL or a collection name that no store can have, before anything is opened.

    Raises:
        typer.BadParameter: It is one; an adapter that is not installed is said when the store is opened.
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
    """The values of ``--method`` and ``--weights`` as a method; None without weights: the model's own then.

    Args:
        name: Value of ``--method``, a known one.
        weights: Value of ``--weights``: a weights file, or numbers. dense_sparse takes two, and leaves out the
            third of three; all takes three.

    Raises:
        typer.BadParameter: Weights for a method that has none to choose, or none that it can take.
        InvalidInput: A file without weights for this method.
    """
    if weights is None:
        return None
    if name not in WEIGHTED:
        raise _bad_weights(f"method {name} ranks by one score: weights are for {' and '.join(WEIGHTED)}.")
    numbers = list(Weights.load(weights, name)) if Path(weights).is_file() else _numbers(weights)
    if len(numbers) != 3 and not (name == "dense_sparse" and len(numbers) == 2):
        wanted = "2, dense and sparse" if name == "dense_sparse" else "3, dense, sparse and multi-vector"
        raise _bad_weights(f"{weights!r} has {len(numbers)} numbers: method {name} takes {wanted}.")
    dense, sparse, *rest = numbers
    try:
        return METHODS[name].weighted(dense, sparse, rest[0] if name == "all" else 0)
    except InvalidInput as error:
        raise _bad_weights(f"{weights!r}: {error}") from None


def _numbers(value: str) -> list[float]:
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise _bad_weights(f"{value!r} is neither a file nor numbers such as 1,0.3,1.") from None


def _bad_weights(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="--weights")


def read_filter(value: str | None) -> dict[str, Any] | None:
    """The value of ``--filter``.

    Raises:
        typer.BadParameter: It is no JSON object, or no filter.
    """
    if value is None:
        return None
    try:
        parsed = json.loads(value, object_pairs_hook=_without_repeats)
        if not isinstance(parsed, dict):
            raise _bad_filter(f"{value!r} is not a JSON object.")
        parse_filter(parsed)
    except json.JSONDecodeError as error:
        raise _bad_filter(f"{value!r} is not JSON: {error}") from None
    except RecursionError:
        raise _bad_filter(f"it is nested too deeply: at most {MAX_DEPTH} levels.") from None
    except InvalidInput as error:
        raise _bad_filter(str(error)) from None
    except ValueError:  # Python reads no whole number of more than 4,300 digits
        raise _bad_filter("a whole number in it is too long: whole numbers have 64 bits.") from None
    return parsed


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of a filter; of a name that comes twice, JSON would silently keep the last condition alone."""
    repeated = next((name for name, times in Counter(name for name, _ in pairs).items() if times > 1), None)
    if repeated is not None:
        raise InvalidInput(
            f"{repeated!r} comes twice in one object.\n"
            f'  Write both conditions: {{"$and": [{{"{repeated}": …}}, {{"{repeated}": …}}]}}, '
            'or the operators of one field together: {"year": {"$gte": 2020, "$lt": 2024}}.'
        )
    return dict(pairs)


def _bad_filter(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="--filter")
