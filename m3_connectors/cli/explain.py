"""``m3 explain``: show how a document's score is computed."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.cells import cell_len
from rich.text import Text

from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.cli.console import COMPONENT_LABELS, out, print_json
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
"""The number of tokens and pairs shown; ``--json`` prints all of them."""

_INDENT = 19
"""Width in columns before the first item of a line."""


def explain(
    url: Url,
    query: Annotated[str, typer.Argument(metavar="QUESTION", help="The query.")],
    id: Annotated[
        str, typer.Argument(metavar="ID", help="The id of any document, whether or not it was found.")
    ],
    collection: Collection = DEFAULT_COLLECTION,
    model: Model = None,
    method: MethodName = "all",
    weights: WeightsText = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how a document's score is computed: weighted parts, shared tokens, nearest token pairs."""
    asked = choose_method(method, weights)
    with open_index(url, collection, model) as index:
        explanation = index.explain(query, id, method=asked or index.methods[method])
    if json:
        print_json({"query": query, **explanation.to_dict()})
    else:
        out.print(explanation_lines(explanation), soft_wrap=True)


def explanation_lines(explanation: Explanation) -> Text:
    """Return the sum, the matched tokens and the token pairs, wrapped between items to the terminal's width.

    Print it with ``soft_wrap``, because it is already wrapped.
    """
    parts = [
        f"{COMPONENT_LABELS[name]} {score:.3f} × {weight:g}"
        for name in COMPONENTS
        if (weight := explanation.method.weights.of(name))
        and (score := getattr(explanation.scores, name)) is not None
    ]
    tokens = [f"{m.token} {m.query_weight:.2f}×{m.document_weight:.2f}" for m in explanation.tokens]
    nearest = sorted(explanation.pairs, key=lambda pair: -pair.similarity)
    pairs = [f"{_word(p.query_token)} → {_word(p.document_token)} {p.similarity:.2f}" for p in nearest]
    return Text.assemble(
        f"  {' + '.join(parts)} = ",
        (f"{explanation.score:.3f}", "bold"),
        ("\n  matched tokens   ", "dim"),
        _some(tokens),
        ("\n  token pairs      ", "dim"),
        _some(pairs),
    )


def _word(token: str) -> str:
    return "end of text" if token == "</s>" else token


def _some(items: list[str]) -> str:
    more = [f"… {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    shown = [*items[:_SHOWN], *more] or ["none"]
    room = out.width - _INDENT - len(" ·") if out.is_terminal else None
    lines = [shown[0]]
    for item in shown[1:]:
        longer = f"{lines[-1]} · {item}"
        if room is None or cell_len(longer) <= room:
            lines[-1] = longer
        else:
            lines[-1] += " ·"
            lines.append(item)
    return ("\n" + " " * _INDENT).join(lines)
