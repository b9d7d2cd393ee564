"""AdamW that updates only the table rows of a batch, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from m3_connectors.training.forward import TABLES, TouchedRows
from m3_connectors.training.ranges import STRICT, NotNegative, Positive, Share, ShareBelow1


@dataclass(frozen=True, config=STRICT)
class OptimizerSettings:
    """The settings of AdamW and of its schedule.

    Attributes:
        learning_rate: The peak rate of the layers.
        table_learning_rate: The peak rate of the word and position embeddings.
        betas: The decay of the first and second moments.
        epsilon: The constant that is added to the root of the second moment.
        weight_decay: The weight decay of matrices; biases, layer norms and tables have none.
        warm_up: The share of the run in which the rate increases.
        final_share: The share of the peak rate at the end of the cosine.
        clip: The maximum norm of the whole gradient; ``inf`` disables clipping.

    Raises:
        ValidationError: A value is out of range, or not a number.
    """

    learning_rate: Positive = 1e-3
    table_learning_rate: Positive = 2e-3
    betas: tuple[ShareBelow1, ShareBelow1] = (0.9, 0.98)
    epsilon: Positive = 1e-8
    weight_decay: NotNegative = 0.01
    warm_up: ShareBelow1 = 0.03
    final_share: Share = 0.01
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=True)

    def rate_factor(self, progress: float) -> float:
        """Return the share of the peak rate at a share of the run: a linear increase, then a cosine."""
        if progress < self.warm_up:
            return progress / self.warm_up
        done = (min(progress, 1.0) - self.warm_up) / (1 - self.warm_up)
        return self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * done))


class RowAdamW:
    """AdamW for all parameters; of the tables, only the rows that a step used are updated.

    The embeddings are nearly all of a small model's parameters, and a batch uses few of their rows: an update
    of all rows would cost more than the layers. The moments of an unused row do not change.

    Args:
        parameters: The parameters by name; updated in place.
        settings: The settings.
    """

    def __init__(self, parameters: Mapping[str, Tensor], settings: OptimizerSettings) -> None:
        self._parameters = dict(parameters)
        self._settings = settings
        self._first = {name: torch.zeros_like(value) for name, value in self._parameters.items()}
        self._second = {name: torch.zeros_like(value) for name, value in self._parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, tables: Mapping[str, TouchedRows], rate_factor: float) -> float:
        """Clip the gradients, update the parameters and clear the gradients; skip a norm that is not finite.

        Args:
            tables: The rows that were used, with their gradients, by parameter name.
            rate_factor: The factor for the peak rates.

        Returns:
            The norm of the whole gradient, before clipping.
        """
        settings = self._settings
        gradients = {
            name: value.grad
            for name, value in self._parameters.items()
            if name not in TABLES and value.grad is not None
        }
        touched = {name: rows for name, rows in tables.items() if rows.values.grad is not None}
        norm = _norm([*gradients.values(), *(rows.values.grad for rows in touched.values())])
        if not math.isfinite(norm):
            return norm
        scale = min(1.0, settings.clip / (norm + 1e-6))
        self.steps += 1
        for name, gradient in gradients.items():
            value = self._parameters[name]
            if value.dim() > 1:
                value.mul_(1 - settings.learning_rate * rate_factor * settings.weight_decay)
            change = self._change(self._first[name], self._second[name], gradient * scale)
            value.sub_(change, alpha=settings.learning_rate * rate_factor)
            value.grad = None
        for name, rows in touched.items():
            first, second = self._first[name][rows.numbers], self._second[name][rows.numbers]
            assert rows.values.grad is not None
            change = self._change(first, second, rows.values.grad * scale)
            rate = settings.table_learning_rate * rate_factor
            self._parameters[name].index_copy_(0, rows.numbers, rows.values.detach() - rate * change)
            self._first[name].index_copy_(0, rows.numbers, first)
            self._second[name].index_copy_(0, rows.numbers, second)
        return norm

    def _change(self, first: Tensor, second: Tensor, gradient: Tensor) -> Tensor:
        """Update both moments in place and return the step direction, with bias correction."""
        beta1, beta2 = self._settings.betas
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (second / (1 - beta2**self.steps)).sqrt_().add_(self._settings.epsilon)
        return first / (1 - beta1**self.steps) / root

    def state(self) -> dict[str, Tensor]:
        """Return the moments and the step count as a flat dict, for a checkpoint."""
        state = {f"first.{name}": value for name, value in self._first.items()}
        state |= {f"second.{name}": value for name, value in self._second.items()}
        return state | {"steps": torch.tensor(self.steps)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a state that ``state`` returned."""
        for name in self._parameters:
            self._first[name].copy_(state[f"first.{name}"])
            self._second[name].copy_(state[f"second.{name}"])
        self.steps = int(state["steps"])


def _norm(gradients: Iterable[Tensor | None]) -> float:
    norms = [gradient.norm() for gradient in gradients if gradient is not None]
    # One transfer from the device, not one for each parameter.
    return math.sqrt(sum(norm**2 for norm in torch.stack(norms).tolist())) if norms else 0.0
