"""The configuration of a fine-tune, from a model and its pairs: the defaults of ``m3 train --from``."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from m3_connectors.embeddings import COMPONENTS, Component
from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.loading import load_config, load_tokenizer
from m3_connectors.errors import InvalidInput
from m3_connectors.training.batches import SHORTEST, LengthGroup
from m3_connectors.training.config import DataSettings, RunSettings, TrainingConfig
from m3_connectors.training.data import PairStore, open_pairs
from m3_connectors.training.lora import LoraSettings
from m3_connectors.training.memory import activation_bytes
from m3_connectors.training.optimizer import OptimizerSettings
from m3_connectors.training.stages.pairs import make_sampler
from m3_connectors.training.validate import make_tasks

BATCH = 64
"""The number of passages of a step, unless there are few."""

FEWEST_STEPS, SMALL_BATCH = 16, 16
"""The smallest number of steps of an epoch: batches are smaller for few pairs, but not smaller than this."""

GROUPS = ((128, 1.0), (512, 1.0), (2048, 0.5), (8192, 0.25))
"""The longest passages of each group in tokens, and the share of the batch: as in the paper's table, longer passages
come in smaller batches."""

LONGEST_QUERY = 512
"""Longer queries are truncated, as in the paper's training."""

HELD_OUT_PAIRS, MOST_HELD_OUT = 100, 0.2
"""How many pairs are held out to measure the result and to tune the weights of the fused methods, and the largest
share of the pairs that is held out for it."""

FEWEST_TO_TUNE = 40
"""With fewer held-out pairs, the weights are not tuned; none is held out then."""

ACTIVATION_BYTES = 4 << 30
"""Steps with more activations are computed in sub-batches."""


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """What a user may set; None for what the pairs and the model decide.

    Attributes:
        epochs: How often each passage is used, unless ``steps`` is given.
        steps: The number of steps.
        batch: The number of passages of a step.
        learning_rate: The peak learning rate.
        train: The heads that are trained.
        lora: Whether low-rank changes are trained instead of the layers of the backbone.
        seed: The seed of all random choices.
        max_length: Passages are truncated to this many tokens; by default only at the maximum of the model.

    Raises:
        InvalidInput: A value is out of range.
    """

    epochs: float = 3.0
    steps: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    train: tuple[Component, ...] = COMPONENTS
    lora: bool = False
    seed: int = 0
    max_length: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("learning_rate", self.learning_rate)):
            if value is not None and not 0 < value < math.inf:
                raise InvalidInput(
                    f"{name} is {value:g}; it must be above 0.\n  Leave it out for the default."
                )
        if unknown := sorted(set(self.train) - set(COMPONENTS)):
            raise InvalidInput(
                f"{', '.join(map(repr, unknown))} is not a head of the model.\n"
                f"  Use {', '.join(COMPONENTS)}, or some of them."
            )


DEFAULTS = FineTuning()


def fine_tuning(
    model: str, data: tuple[Path, ...], output: Path, cache: Path, wanted: FineTuning
) -> TrainingConfig:
    """Return the configuration of a fine-tune of a pre-trained model.

    Args:
        model: A directory, or a hub name such as ``BAAI/bge-m3``.
        data: Files and folders of pairs.
        output: The directory of the model that is written.
        cache: The folder of the token cache, which the run uses too.
        wanted: What the user has set.

    Raises:
        InvalidInput: There are no pairs, or ``wanted`` has a value out of range.
    """
    sizes = load_config(model)
    longest = sizes.max_length if wanted.max_length is None else wanted.max_length
    if not SHORTEST <= longest <= sizes.max_length:
        raise InvalidInput(
            f"the maximum length is {longest:,} tokens; {model} reads {SHORTEST} to {sizes.max_length:,}.\n"
            f"  Use --max-length with a number from {SHORTEST} to {sizes.max_length}, or leave it out."
        )
    tokenizer = load_tokenizer(model)
    settings = DataSettings(
        files=tuple(map(str, data)),
        query_longest=min(LONGEST_QUERY, sizes.max_length),
        language_exponent=1.0,
        linked_sources=(),
        shifted_share=0.0,
    )

    def opened(held_out_share: float) -> PairStore:
        return open_pairs(
            settings.paths, tokenizer, cache, longest=sizes.max_length, held_out_share=held_out_share
        )

    whole = opened(0.0)
    share = min(MOST_HELD_OUT, round(HELD_OUT_PAIRS / len(whole), 4))
    enough = share * len(whole) >= FEWEST_TO_TUNE
    settings = dataclasses.replace(settings, held_out_share=share if enough else 0.0)
    store = opened(settings.held_out_share)
    tasks = make_tasks(store, [""]) if settings.held_out_share else []
    tuned = sum(len(task.queries) for task in tasks) >= FEWEST_TO_TUNE
    passages = len(np.unique(store.passage[~np.asarray(store.held_out)]))
    batch = wanted.batch or min(BATCH, max(SMALL_BATCH, passages // FEWEST_STEPS))
    settings = dataclasses.replace(settings, groups=_groups(longest, batch))
    steps = wanted.steps or math.ceil(
        wanted.epochs * make_sampler(store, settings, wanted.seed).steps_per_epoch
    )
    rate = wanted.learning_rate or learning_rate(sizes, lora=wanted.lora)
    return TrainingConfig(
        output=str(output),
        start_from=model,
        train=wanted.train,
        lora=LoraSettings() if wanted.lora else None,
        data=settings,
        optimizer=OptimizerSettings(learning_rate=rate, table_learning_rate=rate, warm_up=0.1),
        run=RunSettings(
            steps=steps,
            save_every=max(50, math.ceil(steps / 10)),
            distil_from=0.0,
            tokens_at_once=max(longest, ACTIVATION_BYTES // activation_bytes(sizes, 1)),
            seed=wanted.seed,
        ),
        tune_importance={task.name: 1.0 for task in tasks} if tuned else {},
    )


def learning_rate(sizes: ModelConfig, *, lora: bool) -> float:
    """Return the peak learning rate: 1e-5 for a model as wide as BGE-M3, as its authors use, more for narrow ones."""
    rate = 1e-5 * (1024 / sizes.hidden_size) ** 1.5
    return float(f"{rate * (10 if lora else 1):.1g}")


def _groups(longest: int, batch: int) -> tuple[LengthGroup, ...]:
    groups = [
        LengthGroup(min(edge, longest), max(2, round(batch * share)))
        for (edge, share), shorter in zip(GROUPS, (0, *(edge for edge, _ in GROUPS)), strict=False)
        if shorter < longest
    ]
    if longest > groups[-1].longest:
        groups[-1] = dataclasses.replace(groups[-1], longest=longest)
    return tuple(groups)
