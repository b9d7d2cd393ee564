"""Distillation of the dense vector of another model, from vectors that were computed once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from m3_connectors.errors import InvalidInput
from m3_connectors.training.batches import Batch
from m3_connectors.training.dense_teacher import TeacherVectors
from m3_connectors.training.losses import distilled, mean_of
from m3_connectors.training.stages.pairs import PairStage
from m3_connectors.training.stages.stage import Outcome, StageInputs


class Distil(PairStage):
    """The cosine distance to the teacher's vectors, and the cross-entropy with its similarities in the batch.

    Texts of all pairs are used, whether the pair is relevant or not: the teacher decides what is similar.
    """

    judged_by = ("dense",)
    trains_prefixes = True

    def __init__(self, inputs: StageInputs) -> None:
        settings = inputs.config.dense_teacher
        if not settings.vectors:
            raise InvalidInput(
                f"dense_teacher.vectors is {settings.vectors!r}, but the objective distil needs a file of vectors.\n"
                '  Write the file of teacher vectors as in: [dense_teacher] vectors = "teacher.safetensors"'
            )
        store = inputs.store
        self._teacher = TeacherVectors(Path(settings.vectors), store.keys, inputs.model.config.hidden_size)
        # Pairs of which a text has no vector count as held out: they would teach nothing.
        known = self._teacher.has(store.query) & self._teacher.has(store.passage)
        if not known.any():
            raise InvalidInput(
                f"{settings.vectors} has vectors of {self._teacher.known:,} texts, but of no pair both of the query "
                "and of the passage.\n  Compute the vectors of all queries and passages in the data."
            )
        store = dataclasses.replace(store, held_out=np.asarray(store.held_out) | ~known)
        super().__init__(dataclasses.replace(inputs, store=store))
        if not known.all():
            self.warnings.append(
                f"{(~known).sum():,} of {len(known):,} pairs are not used by the stage distil: {settings.vectors} "
                "has no vector of their query or passage."
            )

    def batch(self, step: int) -> Batch:
        """Return the batch of a step with its texts as they are: the teacher's vectors are of those."""
        return self.sampler.batch(step)

    def loss(self, step: int, share_done: float) -> Outcome:
        """Compute the two losses of a step."""
        batch = self.batch(step)
        texts = batch.text_numbers
        dense, tables = self._encoder.dense(batch.queries + batch.passages, self.first_positions(batch, step))
        known, targets = self._teacher.targets(texts, dense.device)
        is_query = known < len(batch)
        own, widths = dense[known], (*self._config.loss.matryoshka, dense.shape[1])
        # The targets are principal components: their first dimensions approximate the teacher best, too.
        views = [
            (F.normalize(own[:, :width], dim=1), F.normalize(targets[:, :width], dim=1)) for width in widths
        ]
        distance = mean_of((1 - (student * teacher).sum(1)).mean() for student, teacher in views)
        similarity = mean_of(self._similarity(student, teacher, is_query) for student, teacher in views)
        parts = {"distance": distance.item(), "similarity": similarity.item()}
        return Outcome(distance + similarity, parts, tables, self.counts(batch))

    def _similarity(self, student: Tensor, teacher: Tensor, is_query: Tensor) -> Tensor:
        """Return the divergence of the student's similarities from those of the teacher; 0 is perfect."""
        temperature = self._config.dense_teacher.temperature
        wanted = F.softmax(teacher[is_query] @ teacher[~is_query].T / temperature, 1)
        scores = student[is_query] @ student[~is_query].T
        entropy = -(wanted * wanted.clamp(min=1e-30).log()).sum(1).mean()
        return distilled(scores, wanted, temperature) - entropy
