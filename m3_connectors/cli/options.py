"""Arguments and options that several commands share, and what their values mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

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
        help="Hub name or directory. [dim]default: the collection's own model, else BAAI/bge-m3[/dim]",
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


def parse_weights(value: str, method: str) -> Weights:
    """The value of ``--weights`` for one method.

    Raises:
        typer.BadParameter: Neither a file nor two or three numbers.
        InvalidInput: A file without weights for this method, a negative weight.
    """
    if Path(value).is_file():
        return Weights.load(value, method)
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{value!r} is neither a file nor numbers such as 1,0.3,1.", param_hint="--weights"
        ) from None
    if len(numbers) not in (2, 3):
        raise typer.BadParameter(f"{value!r} has {len(numbers)} numbers: give 3.", param_hint="--weights")
    return Weights(*numbers)


def choose_method(methods: Mapping[str, Method], name: str, weights: str | None) -> Method:
    """The values of ``--method`` and ``--weights`` as a method.

    Args:
        methods: The methods by name under their default weights.
        name: Value of ``--method``, one of them.
        weights: Value of ``--weights``.

    Raises:
        typer.BadParameter: Weights for a method that has none to choose, or no weights.
        InvalidInput: As ``parse_weights``.
    """
    if weights is None:
        return methods[name]
    if name not in WEIGHTED:
        raise typer.BadParameter(
            f"method {name} ranks by one score: weights are for {' and '.join(WEIGHTED)}.",
            param_hint="--weights",
        )
    return methods[name].weighted(*parse_weights(weights, name))


def parse_json_object(value: str, option: str) -> dict[str, Any]:
    """The value of an option that takes a JSON object.

    Raises:
        typer.BadParameter: It is none.
    """
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"{value!r} is not JSON: {error}", param_hint=option) from None
    if not isinstance(parsed, dict):
        raise typer.BadParameter(f"{value!r} is not a JSON object.", param_hint=option)
    return parsed
