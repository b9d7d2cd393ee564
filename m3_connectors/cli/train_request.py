"""What ``m3 train`` was asked to do: a configuration, or a fine-tune without one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from m3_connectors.training.plan import StagePlan


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of the command.

    Attributes:
        config: The configuration, if there is one.
        start: The model that is fine-tuned without a configuration.
        data: Files and folders of pairs.
        output: The directory of the model.
        work: The working folder.
        options: The fields of ``FineTuning`` by name, None for those that were not given.

    Raises:
        typer.BadParameter: The arguments do not belong together.
    """

    config: Path | None
    start: str | None
    data: tuple[Path, ...]
    output: Path | None
    work: Path | None
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.config and self.start:
            raise typer.BadParameter(
                f"{self.config} and --from {self.start} are both given.\n"
                "  Set start_from in the configuration, or leave the configuration out."
            )
        if self.config and (names := sorted(self._given())):
            options = ", ".join(f"--{name.replace('_', '-')}" for name in names)
            raise typer.BadParameter(
                f"{self.config} and {options} are both given.\n"
                f"  Set {', '.join(names)} in the configuration, or use --from instead of a configuration."
            )
        if {"epochs", "steps"} <= self._given().keys():
            raise typer.BadParameter(
                f"--steps {self.options['steps']} and --epochs {self.options['epochs']:g} are both given.\n"
                "  Each sets the number of steps: leave one of them out."
            )
        if not self.config:
            missing = {"--from": self.start, "--data": self.data, "--out": self.output}
            if names := [name for name, value in missing.items() if not value]:
                raise typer.BadParameter(
                    f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missing, and no configuration is given.\n"
                    "  Run m3 train CONFIG.toml, or m3 train --from BAAI/bge-m3 --data pairs.jsonl --out my-m3."
                )

    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if value is not None}

    def plan(self, report: Callable[[dict[str, Any]], None]) -> tuple[list[StagePlan], list[str]]:
        """Return what ``train`` would do, and the folders that it would write."""
        from m3_connectors.training.config import load_stages
        from m3_connectors.training.fine_tuning import FineTuning
        from m3_connectors.training.run import plan, plan_fine_tune, work_folder

        if self.config:
            plans = plan(self.config, data=self.data or None, report=report)
            output = self.output or Path(load_stages(self.config)[0].output)
            work = self.work or Path(f"work-{self.config.stem}")
        else:
            assert self.start and self.output
            output, work = self.output, self.work or work_folder(self.output)
            plans = plan_fine_tune(
                self.start, self.data, output, wanted=FineTuning(**self._given()), report=report
            )
        return plans, [
            f"{output}: the model, its configuration and a log",
            f"{work}: the token cache and the state of the run",
        ]

    def train(
        self, report: Callable[[dict[str, Any]], None], stop: Callable[[], bool]
    ) -> dict[str, tuple[float, float, float]]:
        """Train and return the weights of the fused methods; arguments and errors are those of ``run.train``."""
        from m3_connectors.training.fine_tuning import FineTuning
        from m3_connectors.training.run import fine_tune, train

        if self.config:
            return train(
                self.config,
                data=self.data or None,
                output=self.output,
                work=self.work,
                report=report,
                stop=stop,
            )
        assert self.start and self.output
        return fine_tune(
            self.start,
            self.data,
            self.output,
            wanted=FineTuning(**self._given()),
            work=self.work,
            report=report,
            stop=stop,
        )
