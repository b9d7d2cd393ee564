"""A complete training run as one call, as used by ``m3 train``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from m3_connectors.errors import InvalidInput
from m3_connectors.files import replacing
from m3_connectors.methods import load_weights
from m3_connectors.training.config import TrainingConfig, load_stages
from m3_connectors.training.disk import naming_a_full_disk
from m3_connectors.training.event_log import EventLog
from m3_connectors.training.ranks import Ranks
from m3_connectors.training.statistics import group_statistics
from m3_connectors.training.trainer import Report, Trainer

THINNED = 10
"""The log that is kept with the model has every step whose number is a multiple of this."""


class RunLog:
    """A log with one JSON object per line; a resumed run removes the steps that it will take again.

    Args:
        path: The file; created if it does not exist. ``os.devnull`` keeps nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        """Return the log."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def records(self) -> list[dict[str, Any]]:
        """Return all complete records so far; a line that was truncated by a kill is omitted."""
        found = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def rewind(self, step: int) -> None:
        """Remove the records of step ``step`` and later, which belong to steps that were not saved."""
        if not self._path.is_file():
            return
        kept = [
            record
            for record in self.records()
            if record.get("step", -1) < step and record.get("after", 0) <= step
        ]
        self._file.close()
        with replacing(self._path) as fresh:
            fresh.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8")

    def save_thinned(self, path: Path) -> None:
        """Write every tenth step and all other events."""
        kept = [record for record in self.records() if record.get("step", 0) % THINNED == 0]
        path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


def train(
    config: Path,
    *,
    data: Path | None = None,
    output: Path | None = None,
    work: Path | None = None,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, tuple[float, float, float]]:
    """Train with a configuration, resume if an earlier call stopped, and write the model.

    In a process that torchrun or accelerate has started, this call is one rank of a run of several processes: only
    rank 0 reports and writes, and all return the same weights.

    Args:
        config: The TOML file; its relative paths are relative to its folder.
        data: The folder of pairs; replaces the one in the configuration.
        output: The directory of the model; replaces the one in the configuration.
        work: The folder of the token cache and the state; by default ``work-NAME`` in the current directory.
        report: Called with every record of the log.
        stop: Called after every step; if it returns true, the run stops. The same call resumes from that
            step.

    Returns:
        The weights of the fused methods that were written with the model, by method.

    Raises:
        InvalidInput: The configuration or the data is not valid, or ``work`` belongs to another run.
        Diverged: A loss, a gradient or a weight is not finite; no model is written.
        KeyboardInterrupt: ``stop`` returned true; the state is saved.
        StorageFull: The disk is full; the last saved state is kept.
        AnotherRankFailed: Another process of the run failed, and raised its reason.
    """
    again = "Free space there and run the same command: it continues from the last saved state."
    written = work or Path(f"work-{config.stem}")
    with Ranks.from_environment() as ranks, naming_a_full_disk(written, again):
        return _train(ranks, config, data, output, work, report if ranks.is_first else _ignored, stop)


def _ignored(record: dict[str, Any]) -> None:
    """Report nothing: rank 0 does."""


def _train(
    ranks: Ranks,
    config: Path,
    data: Path | None,
    output: Path | None,
    work: Path | None,
    report: Report,
    stop: Callable[[], bool],
) -> dict[str, tuple[float, float, float]]:
    stages = load_stages(config)
    work = work or Path(f"work-{config.stem}")
    output = output or Path(stages[0].output)
    _check_writable(output)
    previous: Path | None = None
    for number, settings in enumerate(stages[:-1], 1):
        report({"event": "stage", "number": number, "objective": settings.objective})
        previous = _middle_stage(
            _from(settings, previous), data, work / f"{number}-{settings.objective}", report, stop, ranks
        )
    last = _from(stages[-1], previous)
    if len(stages) > 1:
        report({"event": "stage", "number": len(stages), "objective": last.objective})
        work = work / f"{len(stages)}-{last.objective}"
    with _log(work, ranks) as log:
        trainer = _trained(last, data, work, log, report, stop, ranks)
        with ranks.first():
            if not ranks.is_first:
                return _written_weights(output)
            weights = trainer.finish(output)
            log.save_thinned(output / "training_log.jsonl")
            kept = output / "training.toml"
            if config.resolve() != kept.resolve():
                shutil.copyfile(config, kept)
    return weights


def _written_weights(output: Path) -> dict[str, tuple[float, float, float]]:
    written = load_weights(output / "weights.json")
    return {method: (each.dense, each.sparse, each.multivector) for method, each in written.items()}


def _log(work: Path, ranks: Ranks) -> RunLog:
    return RunLog(work / "log.jsonl" if ranks.is_first else Path(os.devnull))


def _from(settings: TrainingConfig, previous: Path | None) -> TrainingConfig:
    """Return the settings of a stage that starts from the model of the previous one, if there is one."""
    return dataclasses.replace(settings, start_from=str(previous)) if previous else settings


def _middle_stage(
    settings: TrainingConfig,
    data: Path | None,
    work: Path,
    report: Report,
    stop: Callable[[], bool],
    ranks: Ranks,
) -> Path:
    """Train a stage that another one follows, unless that was done before; return its float32 model."""
    finished = work / "finished"
    if not ranks.of_first(finished.is_dir()):
        with _log(work, ranks) as log:
            trainer = _trained(settings, data, work, log, report, stop, ranks)
            with ranks.first():
                if ranks.is_first:
                    # Renamed when it is whole: a run that was killed before writes it again.
                    partial = work / "finished.new"
                    shutil.rmtree(partial, ignore_errors=True)
                    trainer.finish(partial, torch.float32)
                    partial.rename(finished)
    return finished


def _trained(
    settings: TrainingConfig,
    data: Path | None,
    work: Path,
    log: RunLog,
    report: Report,
    stop: Callable[[], bool],
    ranks: Ranks,
) -> Trainer:
    """Take all steps of a stage that are not done yet; its records go to the log and to ``report``."""

    events: EventLog | None = None

    def everywhere(record: dict[str, Any]) -> None:
        log.write(record)
        if events:
            events.write(record)
        report(record)

    trainer = Trainer(settings, data or Path(settings.data.folder), work, everywhere, ranks)
    log.rewind(trainer.progress.step)
    with contextlib.ExitStack() as open_files:
        if settings.run.tensorboard and ranks.is_first:
            events = open_files.enter_context(EventLog(work / "tensorboard", trainer.progress.step))
        trainer.run(stop=stop)
        events = None
    if trainer.share_done() < 1:
        raise KeyboardInterrupt
    everywhere({"event": "groups", "groups": group_statistics(log.records())})
    return trainer


def _check_writable(output: Path) -> None:
    """Check before the first step, hours before the model is written, that it can be; creates nothing."""
    nearest = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InvalidInput(
            f"output is {output}, but {nearest} is not {'writable' if nearest.is_dir() else 'a folder'}.\n"
            "  Set another folder with --output DIR, or in the configuration."
        )
