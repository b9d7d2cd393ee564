"""``m3 train``: train a model as a configuration says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from m3_connectors.cli.console import err, out, print_json, working
from m3_connectors.cli.options import Debug, Json


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Such as recipes/m3-tiny.toml.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="Folder of training pairs, instead of the configuration's."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="DIR", help="Where to write the model, instead of the configuration's."
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="DIR",
            help="Token cache and state of the run; the same command goes on from there.",
            show_default="work-CONFIG",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a model on pairs of queries and passages (JSONL), and tune its weights on held-out ones."""
    from m3_connectors.training.run import train as run

    def show(record: dict[str, Any]) -> None:
        if record.get("step", 0) % 20 == 0:
            err.print(_line(record), soft_wrap=True)

    with working("training"):
        weights = run(config, data=data, output=output, work=work, report=show)
    if as_json:
        print_json({"config": str(config), "weights": weights})
        return
    for method, values in weights.items():
        out.print(f"{method:13} {' '.join(f'{value:g}' for value in values)}")


def _line(record: dict[str, Any]) -> str:
    if "step" not in record:
        return "  ".join(f"{name} {value}" for name, value in record.items() if not isinstance(value, dict))
    rate = record["tokens"] / max(record["seconds"], 1e-9)
    return f"step {record['step']:6}  loss {record['loss']:.3f}  {rate:,.0f} tokens/s  {record['source']}"
