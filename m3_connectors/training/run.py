"""A complete training run as one call, as used by ``m3 train``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from m3_connectors.errors import InvalidInput
from m3_connectors.files import replacing
from m3_connectors.methods import load_weights
from m3_connectors.training.card import CARD, card, write_card
from m3_connectors.training.checkpoint import import_model
from m3_connectors.training.config import TrainingConfig, load_stages
from m3_connectors.training.disk import naming_a_full_disk
from m3_connectors.training.event_log import EventLog
from m3_connectors.training.fine_tuning import DEFAULTS, FineTuning, fine_tuning
from m3_connectors.training.identity import FINISHED, claim
from m3_connectors.training.pairs import PairFiles
from m3_connectors.training.plan import StagePlan, plan_stages
from m3_connectors.training.ranks import Ranks
from m3_connectors.training.settings_file import to_toml
from m3_connectors.training.statistics import group_statistics
from m3_connectors.training.trainer import Report, Trainer

CONFIGURATION = "training.toml"
"""The configuration that is kept with the model."""

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
    data: PairFiles | None = None,
    output: Path | None = None,
    work: Path | None = None,
    report: Report = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, tuple[float, float, float]]:
    """Train with a configuration, resume if an earlier call stopped, and write the model.

    In a process that torchrun or accelerate has started, this call is one rank of a run of several processes: only
    rank 0 reports and writes, and all return the same weights.

    Args:
        config: The TOML file; its relative paths are relative to its folder.
        data: The folder of pairs, or files and folders; replaces the one in the configuration.
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
    stages = load_stages(config)
    output = output or Path(stages[0].output)

    def write_configuration(stages: list[TrainingConfig]) -> None:
        kept = output / CONFIGURATION
        if config.resolve() != kept.resolve():
            shutil.copyfile(config, kept)

    work = work or Path(f"work-{config.stem}")
    return _run(lambda: stages, data, output, work, report, stop, write_configuration)


def fine_tune(
    model: str,
    data: tuple[Path, ...],
    output: Path,
    *,
    wanted: FineTuning = DEFAULTS,
    work: Path | None = None,
    report: Report = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, tuple[float, float, float]]:
    """Fine-tune a model on pairs with the default settings, and write the configuration with the model.

    Args:
        model: A directory, or a hub name such as ``BAAI/bge-m3``.
        data: Files and folders of pairs.
        output: The directory of the model that is written.
        wanted: What differs from the defaults.
        work: As in ``train``; by default ``work-NAME`` in the current directory, for the name of the output.
        report: As in ``train``.
        stop: As in ``train``.

    Returns:
        The weights of the fused methods that were written with the model, by method.

    Raises:
        InvalidInput, Diverged, KeyboardInterrupt: As in ``train``.
    """
    folder = work or work_folder(output)

    def stages() -> list[TrainingConfig]:
        return [fine_tuning(model, data, output, folder / "tokens", wanted)]

    def write_configuration(stages: list[TrainingConfig]) -> None:
        (output / CONFIGURATION).write_text(configuration(stages[0], output), encoding="utf-8")

    return _run(stages, None, output, folder, report, stop, write_configuration)


def plan(
    config: Path, *, data: PairFiles | None = None, report: Report = lambda record: None
) -> list[StagePlan]:
    """Return what ``train`` would do; nothing is written outside a temporary folder, which is removed.

    Raises:
        InvalidInput: The run would be refused.
    """
    return plan_stages(load_stages(config), data, report)


def plan_fine_tune(
    model: str,
    data: tuple[Path, ...],
    output: Path,
    *,
    wanted: FineTuning = DEFAULTS,
    report: Report = lambda record: None,
) -> list[StagePlan]:
    """Return what ``fine_tune`` would do; see ``plan``."""
    with tempfile.TemporaryDirectory(prefix="m3-train-") as cache:
        config = fine_tuning(model, data, output, Path(cache), wanted)
    return plan_stages([config], None, report)


def work_folder(output: Path) -> Path:
    """Return the working folder of a fine-tune that is written to ``output``, unless another one is given."""
    return Path(f"work-{output.resolve().name}")


def configuration(config: TrainingConfig, folder: Path) -> str:
    """Return a configuration of a fine-tune as TOML, with paths relative to the folder that will contain it."""

    def beside(path: str) -> str:
        return Path(os.path.relpath(Path(path).resolve(), folder.resolve())).as_posix()

    settings = dataclasses.asdict(config)
    for unused in ("tokenizer", "model", "start"):
        del settings[unused]
    settings["output"] = beside(config.output)
    if Path(config.start_from).is_dir():
        settings["start_from"] = beside(config.start_from)
    settings["data"]["files"] = [beside(file) for file in config.data.files]
    del settings["data"]["folder"]
    return to_toml(settings)


def _run(
    make_stages: Callable[[], list[TrainingConfig]],
    data: PairFiles | None,
    output: Path,
    work: Path,
    report: Report,
    stop: Callable[[], bool],
    write_configuration: Callable[[list[TrainingConfig]], None],
) -> dict[str, tuple[float, float, float]]:
    """Train the stages as this rank of the run, and write the model as rank 0."""
    _check_writable(output)
    again = "Free space there and run the same command: it continues from the last saved state."
    with Ranks.from_environment() as ranks, naming_a_full_disk(work, again):
        if not ranks.is_first:
            report = _ignored
        with ranks.first():
            stages = make_stages()
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
                text = card(output.resolve().name, stages, trainer.store, log.records(), weights)
                if (path := write_card(output, text)).name != CARD:
                    message = (
                        f"{output / CARD} was not written by m3 train; the card of this run is in {path}."
                    )
                    report({"event": "warning", "message": message})
                write_configuration(stages)
    return weights


def _ignored(record: dict[str, Any]) -> None:
    """Report nothing: rank 0 does."""


def _written_weights(output: Path) -> dict[str, tuple[float, float, float]]:
    written = load_weights(output / "weights.json")
    return {method: (each.dense, each.sparse, each.multivector) for method, each in written.items()}


def _log(work: Path, ranks: Ranks) -> RunLog:
    return RunLog(work / "log.jsonl" if ranks.is_first else Path(os.devnull))


def _from(settings: TrainingConfig, previous: Path | None) -> TrainingConfig:
    """Return the settings of a stage that starts from the model of the previous one, if there is one."""
    if previous is None:
        return settings
    # Its sparse head is that of the run, not of an untrained checkpoint.
    start = dataclasses.replace(settings.start, fit_sparse_head=False)
    return dataclasses.replace(settings, start_from=str(previous), start=start)


def _middle_stage(
    settings: TrainingConfig,
    data: PairFiles | None,
    work: Path,
    report: Report,
    stop: Callable[[], bool],
    ranks: Ranks,
) -> Path:
    """Train a stage that another one follows, unless that was done before; return its float32 model."""
    finished = work / FINISHED
    if ranks.of_first(finished.is_dir()):
        with ranks.first():
            if ranks.is_first:  # a stage of other settings or pairs is refused, or was not kept
                start = import_model(settings.start_from) if settings.start_from else None
                claim(work, settings, data or settings.data.paths, start)
    if not ranks.of_first(finished.is_dir()):
        with _log(work, ranks) as log:
            trainer = _trained(settings, data, work, log, report, stop, ranks)
            with ranks.first():
                if ranks.is_first:
                    # Renamed when it is whole: a run that was killed before writes it again.
                    partial = work / f"{FINISHED}.new"
                    shutil.rmtree(partial, ignore_errors=True)
                    trainer.finish(partial, torch.float32)
                    partial.rename(finished)
    return finished


def _trained(
    settings: TrainingConfig,
    data: PairFiles | None,
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

    trainer = Trainer(settings, data or settings.data.paths, work, everywhere, ranks)
    log.rewind(trainer.progress.step)
    trainer.measure_start()
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
            "  Set another folder with --out DIR, or in the configuration."
        )
