"""Contrastive pre-training of the dense vector on unsupervised pairs, in large batches (sections 3.1 and 3.3)."""

from __future__ import annotations

import torch

from m3_connectors.training.losses import contrastive, mean_of, prefix_scores
from m3_connectors.training.stages.pairs import PairStage
from m3_connectors.training.stages.stage import Outcome


class Unsupervised(PairStage):
    """L_dense with in-batch negatives; the heads of the sparse weights and multi-vectors are not trained."""

    judged_by = ("dense",)
    trains_prefixes = True

    def loss(self, step: int, share_done: float) -> Outcome:
        """Compute L_dense of a step."""
        batch = self.batch(step)
        dense, tables = self._encoder.dense(batch.queries + batch.passages, self.first_positions(batch, step))
        queries, passages = dense[: len(batch)], dense[len(batch) :]
        targets, ignored = (
            torch.from_numpy(each).to(dense.device) for each in (batch.targets, batch.ignored)
        )
        settings = self._config.loss
        scores = (queries @ passages.T, *prefix_scores(queries, passages, settings.matryoshka))
        loss = mean_of(contrastive(score, targets, settings.temperature, ignored=ignored) for score in scores)
        return Outcome(loss, {"dense": loss.item()}, tables, self.counts(batch))
