"""Fine-tuning of all three functions, with self-knowledge distillation after a warm-up (section 3.3)."""

from __future__ import annotations

from pathlib import Path

import torch

from m3_connectors.training.dense_teacher import TeacherVectors
from m3_connectors.training.forward import split
from m3_connectors.training.losses import Representations, Scores, objective, score_all
from m3_connectors.training.ranks import Ranks
from m3_connectors.training.stages.pairs import PairStage
from m3_connectors.training.stages.stage import Outcome, StageInputs


class Finetune(PairStage):
    """L until ``run.distil_from``, then L_final; with a teacher, also the distance to its dense vectors."""

    def __init__(self, inputs: StageInputs) -> None:
        super().__init__(inputs)
        path = inputs.config.dense_teacher.vectors
        self._teacher = (
            TeacherVectors(Path(path), inputs.store.keys, inputs.model.config.hidden_size) if path else None
        )

    def loss(self, step: int, share_done: float) -> Outcome:
        """Compute L or L_final of a step."""
        batch = self.sampler.batch(step)
        shown, tables = self._encoder(batch.queries + batch.passages, self.first_positions(batch, step))
        loss, parts = objective(
            score_shared(*split(shown, len(batch)), self._encoder.ranks),
            torch.from_numpy(batch.targets).to(shown.dense.device),
            self._config.loss,
            cross_lingual=torch.from_numpy(batch.cross_lingual).to(shown.dense.device),
            self_distillation=share_done >= self._config.run.distil_from,
            ignored=torch.from_numpy(batch.ignored).to(shown.dense.device),
        )
        if self._teacher:
            distance = self._teacher.distance(shown.dense, batch.text_numbers)
            loss = loss + self._config.dense_teacher.weight * distance
            parts["distance"] = distance.item()
        return Outcome(loss, parts, tables, self.counts(batch))


def score_shared(queries: Representations, passages: Representations, ranks: Ranks) -> Scores:
    """Return the scores of every query with every passage; each rank computes those of some of the queries."""
    if ranks.size == 1:
        return score_all(queries, passages)
    ranges = ranks.ranges(queries.row_counts)
    here = ranges[ranks.rank]
    own = split(split(queries, here.stop)[0], here.start)[1]
    scores = score_all(own, passages)
    counts = [len(each) for each in ranges]
    return Scores(*ranks.gather([scores.dense, scores.lexical, scores.multivector], [counts] * 3))
