"""``m3 train``: train a model from a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from m3_connectors.cli.console import INTERRUPTED, err, out, print_json
from m3_connectors.cli.options import Debug, Json
from m3_connectors.cli.train_plan import show_plan
from m3_connectors.cli.train_progress import TrainingProgress
from m3_connectors.cli.train_request import Request

TUNING = "With --from"


def train(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CONFIG.toml]",
            help="Configuration, such as recipes/m3-tiny.toml.",
            show_default="fine-tune with --from",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Fine-tune this model: a directory or a hub name. Needs no configuration.",
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="File or folder of training pairs, also several times; overrides the configuration.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "--output",
            metavar="DIR",
            help="Output folder of the model; overrides the configuration.",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="DIR",
            help="Folder for the token cache and the state of the run; run the same command to continue.",
            show_default="work-CONFIG or work-OUT",
        ),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            "--epochs", help="How often each passage is used.", show_default="3", rich_help_panel=TUNING
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Number of steps, instead of --epochs.", rich_help_panel=TUNING),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=2,
            help="Number of passages of a step; fewer where they are long.",
            show_default="64, fewer for few pairs",
            rich_help_panel=TUNING,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            help="Peak learning rate.",
            show_default="by the width of the model: 1e-5 for BGE-M3",
            rich_help_panel=TUNING,
        ),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            "--train",
            metavar="HEADS",
            help="Train only these of dense, sparse and multivector, joined by commas.",
            show_default="all three",
            rich_help_panel=TUNING,
        ),
    ] = None,
    lora: Annotated[
        bool,
        typer.Option("--lora", help="Train low-rank changes of the backbone (LoRA).", rich_help_panel=TUNING),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            max=2**63 - 1,
            help="Seed of all random choices.",
            show_default="0",
            rich_help_panel=TUNING,
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            help="Truncate passages to this many tokens.",
            show_default="the model's maximum",
            rich_help_panel=TUNING,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show data, steps, memory and time, from a few steps in memory; write nothing."
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a model on pairs of queries and passages (JSONL), and tune its weights on held-out pairs.

    With a configuration, or in one command: m3 train --from BAAI/bge-m3 --data pairs.jsonl --out my-m3
    """
    from m3_connectors.training.ranks import Ranks

    options = {
        "epochs": epochs,
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "train": heads and tuple(head.strip() for head in heads.split(",")),
        "lora": lora or None,
        "seed": seed,
        "max_length": max_length,
    }
    request = Request(config, start, tuple(data or ()), output, work, options)
    shown = TrainingProgress()
    is_first = Ranks.from_environment().is_first
    try:
        with shown.following() if is_first else shown.stopping_silently():
            if dry_run:
                plans = request.plan(shown)
            else:
                weights = request.train(shown, lambda: shown.stopping)
    except KeyboardInterrupt:
        if is_first:
            err.print(shown.where_it_goes_on(), markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    if not is_first:
        return
    if dry_run:
        show_plan(*plans, as_json=as_json)
    elif as_json:
        print_json({"config": str(config) if config else None, "weights": weights})
    else:
        for method, values in weights.items():
            out.print(f"{method:13} {' '.join(f'{value:g}' for value in values)}")
