"""``m3 train``: train a model from a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from m3_connectors.cli.console import INTERRUPTED, err, out, print_json
from m3_connectors.cli.options import Debug, Json
from m3_connectors.cli.train_progress import TrainingProgress


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="Configuration, such as recipes/m3-tiny.toml.")
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Folder of training pairs; overrides the configuration."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="DIR", help="Output folder of the model; overrides the configuration."
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="DIR",
            help="Folder for the token cache and the state of the run; run the same command to continue.",
            show_default="work-CONFIG",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a model on pairs of queries and passages (JSONL), and tune its weights on held-out pairs."""
    from m3_connectors.training.ranks import Ranks
    from m3_connectors.training.run import train as run

    shown = TrainingProgress()
    is_first = Ranks.from_environment().is_first
    try:
        with shown.following() if is_first else shown.stopping_silently():
            weights = run(
                config, data=data, output=output, work=work, report=shown, stop=lambda: shown.stopping
            )
    except KeyboardInterrupt:
        if is_first:
            err.print(shown.where_it_goes_on(), markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    if not is_first:
        return
    if as_json:
        print_json({"config": str(config), "weights": weights})
        return
    for method, values in weights.items():
        out.print(f"{method:13} {' '.join(f'{value:g}' for value in values)}")
