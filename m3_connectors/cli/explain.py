"""``m3 explain``: why a document scores as it does."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.text import Text

from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.cli.console import out, print_json
from m3_connectors.cli.opening import open_index
from m3_connectors.cli.options import (
    Collection,
    Debug,
    Json,
    MethodName,
    Model,
    Url,
    WeightsText,
    choose_method,
)
from m3_connectors.embeddings import COMPONENTS
from m3_connectors.explanation import Explanation

_SHOWN = 8
"""Tokens and pairs that a person gets to see; ``--json`` has them all."""

_LABELS = {"dense": "dense", "sparse": "sparse", "multivector": "multi"}


def explain(
    url: Url,
    query: Annotated[str, typer.Argument(metavar="QUESTION", help="What was looked for.")],
    id: Annotated[str, typer.Argument(metavar="ID", help="A document's id, found or not.")],
    collection: Collection = DEFAULT_COLLECTION,
    model: Model = None,
    method: MethodName = "all",
    weights: WeightsText = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how a document's score comes about: weighted parts, shared tokens, nearest token pairs."""
    with open_index(url, collection, model, create=False) as index:
        explanation = index.explain(query, id, method=choose_method(index.methods, method, weights))
    if json:
        print_json(
            {
                "query": query,
                "id": id,
                "method": method,
                "weights": list(explanation.method.weights),
                "score": explanation.score,
                "scores": dataclasses.asdict(explanation.scores),
                "weighted": dataclasses.asdict(explanation.weighted),
                "tokens": [dataclasses.asdict(match) for match in explanation.tokens],
                "pairs": [dataclasses.asdict(pair) for pair in explanation.pairs],
            }
        )
    else:
        out.print(explanation_lines(explanation))


def explanation_lines(explanation: Explanation) -> Text:
    """The three lines of an explanation: the sum, the matched tokens, the token pairs."""
    parts = [
        f"{_LABELS[name]} {score:.3f} × {weight:g}"
        for name in COMPONENTS
        if (weight := explanation.method.weights.of(name))
        and (score := getattr(explanation.scores, name)) is not None
    ]
    tokens = [f"{m.token} {m.query_weight:.2f}×{m.document_weight:.2f}" for m in explanation.tokens]
    nearest = sorted(explanation.pairs, key=lambda pair: -pair.similarity)
    pairs = [f"{p.query_token} → {p.document_token} {p.similarity:.2f}" for p in nearest]
    return Text.assemble(
        f"  {' + '.join(parts)} = ",
        (f"{explanation.score:.3f}", "bold"),
        ("\n  matched tokens   ", "dim"),
        _some(tokens),
        ("\n  token pairs      ", "dim"),
        _some(pairs),
    )


def _some(items: list[str]) -> str:
    more = [f"… {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return " · ".join([*items[:_SHOWN], *more]) or "none"
