"""Fine-tuning of all three functions, with self-knowledge distillation after a warm-up (section 3.3)."""

from __future__ import annotations

import torch

from m3_connectors.training.forward import split
from m3_connectors.training.losses import objective, score_all
from m3_connectors.training.stages.pairs import PairStage
from m3_connectors.training.stages.stage import Outcome


class Finetune(PairStage):
    """L until ``run.distil_from``, then L_final."""

    def loss(self, step: int, share_done: float) -> Outcome:
        """Compute L or L_final of a step."""
        batch = self.sampler.batch(step)
        shown, tables = self._encoder(batch.queries + batch.passages, self.first_positions(batch, step))
        loss, parts = objective(
            score_all(*split(shown, len(batch))),
            torch.from_numpy(batch.targets),
            self._config.loss,
            cross_lingual=torch.from_numpy(batch.cross_lingual),
            self_distillation=share_done >= self._config.run.distil_from,
        )
        return Outcome(loss, parts, tables, self.counts(batch))
