"""What a run would do: its data, steps, memory and time, from a few real steps in a temporary folder."""

from __future__ import annotations

import dataclasses
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from m3_connectors.training.checkpoint import Progress, export_model
from m3_connectors.training.config import TrainingConfig
from m3_connectors.training.data import PairStore
from m3_connectors.training.forward import TABLES
from m3_connectors.training.memory import activation_bytes
from m3_connectors.training.pairs import PairFiles
from m3_connectors.training.trainer import Report, Trainer

MEASURED_STEPS = 3
"""The number of steps that are taken to measure time and memory: one of them is not counted, it warms up."""


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What one stage would do.

    Attributes:
        objective: The stage.
        start: The model that it starts from; empty when training from scratch.
        pairs: The number of pairs for training, by source.
        held_out: The number of pairs that are held out.
        languages: The number of pairs for training, by ``query language>passage language``.
        groups: For each length group, its longest passage in tokens, the number of distinct passages for training,
            and the number of passages in a batch.
        truncated_passages: The number of distinct passages that are truncated to the last group.
        truncated_queries: The number of distinct queries that are truncated.
        steps: The number of steps.
        passages_per_step: The mean number of passages in a step.
        tokens_per_step: The mean number of tokens in the measured steps.
        tuned_tasks: The number of tasks of held-out pairs on which the weights of the fused methods are tuned.
        parameters: The number of parameters, and how many of them are trained.
        memory: Estimated bytes, by part.
        peak_bytes: The largest memory of this process so far, with the measured steps.
        tokens_per_second: Of the measured steps.
        seconds: The estimated time of all steps.
    """

    objective: str
    start: str
    pairs: dict[str, int]
    held_out: int
    languages: dict[str, int]
    groups: tuple[tuple[int, int, int], ...]
    truncated_passages: int
    truncated_queries: int
    steps: int
    passages_per_step: float
    tokens_per_step: float
    tuned_tasks: int
    parameters: tuple[int, int]
    memory: dict[str, int]
    peak_bytes: int
    tokens_per_second: float
    seconds: float


def plan_stages(stages: list[TrainingConfig], data: PairFiles | None, report: Report) -> list[StagePlan]:
    """Plan the stages of a run; everything that is written is in a temporary folder, which is removed.

    Raises:
        InvalidInput: The run would be refused.
    """
    plans: list[StagePlan] = []
    with tempfile.TemporaryDirectory(prefix="m3-train-") as folder:
        previous = ""
        for number, settings in enumerate(stages, 1):
            config = dataclasses.replace(settings, start_from=previous) if previous else settings
            work = Path(folder) / str(number)
            trainer = Trainer(config, data or settings.data.paths, work, report)
            plan = _plan(trainer, config)
            plans.append(
                dataclasses.replace(plan, start=f"the model of stage {number - 1}") if previous else plan
            )
            if number < len(stages):
                previous = str(work / "model")
                export_model(trainer.model, trainer.tokenizer, Path(previous))
    return plans


def _plan(trainer: Trainer, config: TrainingConfig) -> StagePlan:
    store, trained = trainer.store, ~np.asarray(trainer.store.held_out)
    records = _measured(trainer, config)
    counted = records[1:] or records
    tokens = [record["tokens"] for record in records]
    rate = sum(record["tokens"] for record in counted) / sum(record["seconds"] for record in counted)
    sizes = [value.numel() for value in trainer.model.parameters()]
    trainable = {
        name: value.numel() for name, value in trainer.model.named_parameters() if value.requires_grad
    }
    moved = sum(trainable.values())
    layers = sum(size for name, size in trainable.items() if name not in TABLES)
    at_once = min(config.run.tokens_at_once or max(tokens), max(tokens))
    width = 2 if config.run.dtype == "bfloat16" else 4
    seconds = config.run.steps * float(np.mean(tokens)) / rate
    return StagePlan(
        objective=config.objective,
        start=config.start_from,
        pairs={source: count for source, count in store.pairs_by_source.items() if count},
        held_out=int((~trained).sum()),
        languages=_languages(store),
        groups=_groups(store, config),
        truncated_passages=int((_lengths(store, store.passage) > config.data.groups[-1].longest).sum()),
        truncated_queries=int((_lengths(store, store.query) > config.data.query_longest).sum()),
        steps=config.run.steps,
        passages_per_step=float(np.mean([record.get("passages", 0) for record in records])),
        tokens_per_step=float(np.mean(tokens)),
        tuned_tasks=len(trainer.tasks),
        parameters=(sum(sizes), moved),
        memory={
            "weights": 4 * sum(sizes),
            "copy of the layers for products": width * sum(sizes),
            "gradients": 4 * layers,
            "moments": 8 * moved,
            "activations": activation_bytes(trainer.model.config, at_once, width),
        },
        peak_bytes=peak_memory(),
        tokens_per_second=rate,
        seconds=min(seconds, config.run.seconds) if config.run.seconds else seconds,
    )


def _measured(trainer: Trainer, config: TrainingConfig) -> list[dict[str, Any]]:
    """Take a few steps from all parts of the run; they change only this trainer."""
    numbers = np.unique(np.linspace(0, config.run.steps - 1, MEASURED_STEPS).astype(int))
    records = []
    for number in numbers:
        trainer.progress = Progress(int(number))
        records.append(trainer.step())
    return records


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _lengths(store: PairStore, texts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the lengths of distinct texts for training, with ``<s>`` and ``</s>``."""
    return np.asarray(store.lengths[np.unique(texts[~np.asarray(store.held_out)])] + 2)


def _languages(store: PairStore) -> dict[str, int]:
    trained = ~np.asarray(store.held_out)
    pairs = zip(store.query_language[trained].tolist(), store.passage_language[trained].tolist(), strict=True)
    counts = Counter(
        store.languages[query] if query == passage else f"{store.languages[query]}>{store.languages[passage]}"
        for query, passage in pairs
    )
    return dict(counts.most_common())


def _groups(store: PairStore, config: TrainingConfig) -> tuple[tuple[int, int, int], ...]:
    groups = config.data.groups
    edges = np.array([group.longest for group in groups[:-1]])
    counts = np.bincount(np.searchsorted(edges, _lengths(store, store.passage)), minlength=len(groups))
    return tuple(
        (group.longest, int(count), group.batch) for group, count in zip(groups, counts, strict=True)
    )
