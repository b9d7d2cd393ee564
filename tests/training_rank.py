"""One process of a training run of several, for tests: ``python -m training_rank WORLD CASES OUT``.

CASES is a JSON list of changes to the configuration of ``WORLD/tiny.toml``. For each, the process takes a step
with an optimiser that only records, and writes the loss and all gradients to ``OUT``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from m3_connectors.training.config import TrainingConfig
from m3_connectors.training.forward import TouchedRows
from m3_connectors.training.optimizer import RowAdamW
from m3_connectors.training.ranks import Ranks
from m3_connectors.training.trainer import Trainer


class Recorder(RowAdamW):
    """Takes no step; keeps the gradients, those of the tables with all rows."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._all = dict(parameters)
        self.seen: dict[str, Tensor] = {}

    def step(self, tables: Mapping[str, TouchedRows], rate_factor: float) -> float:
        self.seen = {name: value.grad.clone() for name, value in self._all.items() if value.grad is not None}
        for name, rows in tables.items():
            gradient = torch.zeros_like(self._all[name])
            assert rows.values.grad is not None
            self.seen[name] = gradient.index_copy_(0, rows.numbers, rows.values.grad)
        return 0.0


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """Return a configuration with other values; dictionaries change the tables of that name."""
    values = {
        name: changed(getattr(config, name), value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    if "groups" in values:
        values["groups"] = tuple(dataclasses.replace(config.groups[0], **group) for group in values["groups"])
    return dataclasses.replace(config, **values)


def gradients(world: Path, work: Path, case: Mapping[str, Any], ranks: Ranks) -> dict[str, Tensor]:
    """Return the gradients of step 1, with the loss as ``loss``."""
    config = changed(TrainingConfig.load(world / "tiny.toml"), case)
    if teacher := config.dense_teacher.vectors:
        config = changed(config, {"dense_teacher": {"vectors": str(world / teacher)}})
    trainer = Trainer(config, world / "pairs", work, ranks=ranks)
    trainer.progress = dataclasses.replace(trainer.progress, step=1)
    trainer.optimizer = Recorder(trainer._trained.parameters)
    losses = []
    compute = trainer.stage.loss
    trainer.stage.loss = lambda *of: losses.append(outcome := compute(*of)) or outcome  # type: ignore[method-assign, func-returns-value]
    trainer.step()
    return trainer.optimizer.seen | {"loss": losses[0].loss.detach()}


def main(world: str, cases: str, out: str) -> None:
    """Write the gradients of every case."""
    torch.set_num_threads(1)
    with Ranks.from_environment() as ranks:
        for number, case in enumerate(json.loads(cases)):
            found = gradients(Path(world), Path(out) / f"work-{number}", case, ranks)
            save_file(found, Path(out) / f"{number}-{ranks.rank}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
