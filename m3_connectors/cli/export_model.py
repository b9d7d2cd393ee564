"""``m3 export-model``: a model in the files of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from m3_connectors.cli.console import out, print_json, working
from m3_connectors.cli.opening import DEFAULT_MODEL, advice
from m3_connectors.cli.options import Debug, Json, Model
from m3_connectors.errors import NotFound, Unavailable

_LOADED_BY = {
    "dense": "SentenceTransformer({!r})",
    "sparse": "SparseEncoder({!r}, trust_remote_code=True)",
    "multivector": "MultiVectorEncoder({!r})",
}
"""How sentence-transformers loads each directory."""


def export_model(
    library: Annotated[
        Literal["sentence-transformers"],
        typer.Argument(metavar="LIBRARY", help="sentence-transformers.", show_default=False),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The directory to create.", show_default=False)
    ],
    model: Model = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a model so that another library loads it and computes the same vectors.

    sentence-transformers gets three directories, one for each kind of vector: dense, sparse and multivector.
    """
    chosen = model or DEFAULT_MODEL
    with (
        working(f"exporting {chosen} …"),
        advice("Use a local directory: --model DIRECTORY.", NotFound, Unavailable),
    ):
        from m3_connectors.integrations.sentence_transformers import export

        export(chosen, folder)
    loaded_by = {kind: call.format(str(folder / kind)) for kind, call in _LOADED_BY.items()}
    if json:
        print_json({"folder": str(folder), "loaded_by": loaded_by})
        return
    for call in loaded_by.values():
        out.print(f"  {call}", markup=False, highlight=False, soft_wrap=True)
