"""``m3 train``: train a model from a configuration."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from m3_connectors.cli.console import INTERRUPTED, err, out, print_json, warn
from m3_connectors.cli.options import Debug, Json
from m3_connectors.cli.progress import Progress, acknowledging_interrupts
from m3_connectors.cli.train_plan import show_plan
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
    shown = _Shown()
    try:
        with shown.following():
            if dry_run:
                plans = request.plan(shown)
            else:
                weights = request.train(shown, lambda: shown.stopping)
    except KeyboardInterrupt:
        err.print(shown.where_it_goes_on(), markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    if dry_run:
        show_plan(*plans, as_json=as_json)
    elif as_json:
        print_json({"config": str(config) if config else None, "weights": weights})
    else:
        for method, values in weights.items():
            out.print(f"{method:13} {' '.join(f'{value:g}' for value in values)}")


class _Shown:
    """Shows a run to the user: each phase, the first step at once, and then the progress."""

    def __init__(self) -> None:
        self.stopping = False
        """Whether Ctrl-C was pressed during training: the run ends after the current step, which is saved."""
        self._in_steps = False
        self._steps: int | None = None
        self._progress = Progress()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        with (
            self._progress,
            acknowledging_interrupts(self._progress, self._what_now, self._interrupt),
        ):
            yield

    def __call__(self, record: dict[str, Any]) -> None:
        if "step" in record:
            self._show_step(record)
        elif record["event"] == "phase":
            self._in_steps = record["phase"] == "training"
            if record["phase"] != "training":  # training prints its first line with its first step
                self._say(f"· {record['phase']}")
            self._progress.update(record["phase"])
        elif record["event"] == "warning":
            warn(record["message"])
        elif record["event"] == "groups":
            for group in record["groups"]:
                self._say(
                    f"· passages of up to {group['group']:,} tokens: {group['steps']:,} steps, "
                    f"{group['token_share']:.0%} of the tokens, loss {group['loss']:.3f}, "
                    f"{group['padding']:.0%} padding in its batches, {group['tokens_per_second']:,} tokens/s"
                )
        elif record["event"] == "start_from":
            revision = f"@{record['revision'][:7]}" if record["revision"] else ""
            self._say(f"· starting from {record['model']}{revision}")

    def where_it_goes_on(self) -> str:
        if self._steps is None:
            return "Stopped before the first step. Run the same command to continue."
        if self.stopping:
            return f"Stopped: {self._steps:,} steps are saved. Run the same command to continue."
        return "Stopped. Run the same command to continue from the last saved state."

    def _show_step(self, record: dict[str, Any]) -> None:
        rate = record["tokens"] / max(record["seconds"], 1e-9)
        note = f"loss {record['loss']:.3f} · {rate:,.0f} tokens/s · {record['source']}"
        if self._steps is None:
            self._say(f"step {record['step']:6}  {note}")
        self._steps = record["step"] + 1
        self._progress.update("training", self._steps, unit="steps", share=record["share_done"], note=note)

    def _what_now(self) -> str:
        return "Stopping after this step, which will be saved" if self._in_steps else "Stopping"

    def _interrupt(self) -> None:
        if not self._in_steps:
            raise KeyboardInterrupt
        self.stopping = True

    def _say(self, line: str) -> None:
        err.print(line, markup=False, soft_wrap=True)
