"""Fine-tuning of all three functions, with self-knowledge distillation after a warm-up (section 3.3)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from m3_connectors.embeddings import COMPONENTS
from m3_connectors.training.dense_teacher import TeacherVectors
from m3_connectors.training.forward import split
from m3_connectors.training.losses import objective, score_all
from m3_connectors.training.stages.pairs import PairStage
from m3_connectors.training.stages.stage import Outcome, StageInputs


class Finetune(PairStage):
    """L until ``run.distil_from``, then L_final; the losses of heads that are not trained are left out.

    With a teacher, the distance to its dense vectors is added.
    """

    def __init__(self, inputs: StageInputs) -> None:
        super().__init__(inputs)
        loss, trained = self._config.loss, self._config.train
        dense, lexical, multivector = (
            value if head in trained else 0.0 for value, head in zip(loss.lambdas, COMPONENTS, strict=True)
        )
        self._loss = dataclasses.replace(loss, lambdas=(dense, lexical, multivector))
        path = inputs.config.dense_teacher.vectors
        self._teacher = (
            TeacherVectors(Path(path), inputs.store.keys, inputs.model.config.hidden_size) if path else None
        )

    def loss(self, step: int, share_done: float) -> Outcome:
        """Compute L or L_final of a step."""
        batch = self.sampler.batch(step)
        shown, tables = self._encoder(batch.queries + batch.passages, self.first_positions(batch, step))
        loss, parts = objective(
            score_all(*split(shown, len(batch)), self._loss.matryoshka),
            torch.from_numpy(batch.targets),
            self._loss,
            cross_lingual=torch.from_numpy(batch.cross_lingual),
            self_distillation=share_done >= self._config.run.distil_from,
            ignored=torch.from_numpy(batch.ignored),
        )
        if self._teacher:
            distance = self._teacher.distance(shown.dense, batch.text_numbers)
            loss = loss + self._config.dense_teacher.weight * distance
            parts["distance"] = distance.item()
        return Outcome(loss, parts, tables, self.counts(batch))
