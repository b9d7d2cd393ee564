"""Contrastive pre-training of the dense vector on unsupervised pairs, in large batches (sections 3.1 and 3.3)."""

from __future__ import annotations

import torch

from m3_connectors.training.losses import contrastive
from m3_connectors.training.stages.pairs import PairStage
from m3_connectors.training.stages.stage import Outcome


class Unsupervised(PairStage):
    """L_dense with in-batch negatives; the heads of the sparse weights and multi-vectors are not trained."""

    def loss(self, step: int, share_done: float) -> Outcome:
        """Compute L_dense of a step."""
        batch = self.batch(step)
        dense, tables = self._encoder.dense(batch.queries + batch.passages, self.first_positions(batch, step))
        scores = dense[: len(batch)] @ dense[len(batch) :].T
        loss = contrastive(
            scores,
            torch.from_numpy(batch.targets).to(scores.device),
            self._config.loss.temperature,
            ignored=torch.from_numpy(batch.ignored).to(scores.device),
        )
        return Outcome(loss, {"dense": loss.item()}, tables, self.counts(batch))
