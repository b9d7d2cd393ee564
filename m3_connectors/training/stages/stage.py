"""What the trainer needs of a stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer
from torch import Tensor, nn

from m3_connectors.encoder.model import M3Model
from m3_connectors.training.config import TrainingConfig
from m3_connectors.training.data import PairStore
from m3_connectors.training.forward import TouchedRows, TrainingEncoder


@dataclass(frozen=True)
class StageInputs:
    """What a stage is built from.

    Attributes:
        config: The configuration of the stage.
        store: The tokenised pairs.
        model: The model that is trained, float32.
        encoder: Encodes texts with it.
        tokenizer: The tokenizer of the model.
        work: The working folder of the stage.
    """

    config: TrainingConfig
    store: PairStore
    model: M3Model
    encoder: TrainingEncoder
    tokenizer: Tokenizer
    work: Path


@dataclass(frozen=True)
class Outcome:
    """What a stage computed for one step.

    Attributes:
        loss: The scalar whose gradient is followed.
        parts: Its components by name, for the log.
        tables: The rows of the embedding tables that accumulate gradients, by parameter name.
        counts: What the step contained, for the log: ``source``, ``queries``, ``passages``, ``tokens``, …
    """

    loss: Tensor
    parts: Mapping[str, float]
    tables: Mapping[str, TouchedRows]
    counts: Mapping[str, Any]


class Stage(ABC):
    """An objective with its batches; the batch and the loss of a step depend only on the seed and the weights.

    Attributes:
        extra: Layers that are trained with the model and are not part of it, such as a decoder; saved with the
            state of the run. None if there are none.
        warnings: What of the data is not used, for the user.
        judged_by: The methods by which a model of the stage can be the best, the first one in place of others. The
            heads that a stage does not train do not fit its backbone until another stage trains them.
        trains_prefixes: Whether ``loss.matryoshka`` has a part in its loss.
    """

    judged_by: ClassVar[Sequence[str]] = ("all", "dense", "sparse", "multi_vec", "dense_sparse")
    trains_prefixes: ClassVar[bool] = False
    extra: nn.Module | None = None
    warnings: list[str]

    @abstractmethod
    def __init__(self, inputs: StageInputs) -> None:
        """Prepare the batches of the stage."""

    @abstractmethod
    def loss(self, step: int, share_done: float) -> Outcome:
        """Compute the loss of a step.

        Args:
            step: The number of the step.
            share_done: The share of the stage that is done, 0 to 1.
        """

    @abstractmethod
    def batch_record(self, step: int) -> dict[str, Any]:
        """Return the texts of a step as JSON values, for the file that explains a loss that is not finite."""
