"""Fine-tuning of all three functions, with self-knowledge distillation after a warm-up (section 3.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from m3_connectors.embeddings import COMPONENTS
from m3_connectors.errors import InvalidInput
from m3_connectors.training.dense_teacher import TeacherVectors
from m3_connectors.training.forward import split
from m3_connectors.training.losses import Representations, Scores, objective, score_all
from m3_connectors.training.ranks import Ranks
from m3_connectors.training.stages.pairs import PairStage
from m3_connectors.training.stages.stage import Outcome, StageInputs
from m3_connectors.training.watch import measures


class Finetune(PairStage):
    """L until ``run.distil_from``, then L_final; with a dense teacher, also the distance to its vectors.

    The losses of heads that are not trained are left out.

    Raises:
        InvalidInput: ``loss.kd`` needs the teacher's scores, and the pairs have none; or the weights of the losses of
            all trained heads are 0.
    """

    trains_prefixes = True

    def __init__(self, inputs: StageInputs) -> None:
        super().__init__(inputs)
        loss, trained = self._config.loss, self._config.train
        dense, lexical, multivector = (
            value if head in trained else 0.0 for value, head in zip(loss.lambdas, COMPONENTS, strict=True)
        )
        self._loss = dataclasses.replace(loss, lambdas=(dense, lexical, multivector))
        in_inter = dict(zip(COMPONENTS, loss.inter_weights, strict=True))
        if not any(self._loss.lambdas) and not any(in_inter[head] for head in trained):
            raise InvalidInput(
                f"train is {list(trained)}, but lambdas {list(loss.lambdas)} and inter_weights "
                f"{list(loss.inter_weights)} leave these heads without a loss: nothing would be trained.\n"
                "  Set one of their weights above 0."
            )
        hard = inputs.store.hard
        scored = int((np.isfinite(hard.positive_scores) & (hard.ends > hard.starts)).sum())
        kd = self._config.loss.kd
        if kd != "none" and not scored:
            raise InvalidInput(
                f"loss.kd is {kd!r}, but no line of the pairs has neg, pos_scores and neg_scores.\n"
                "  Add a teacher's scores with m3 score-pairs, or remove kd."
            )
        if kd == "none" and scored:
            self.warnings.append(
                f"the teacher's scores of {scored:,} pairs (pos_scores, neg_scores) are not used.\n"
                '  Set loss.kd to "m3_kd" or "kl" to learn from them.'
            )
        path = inputs.config.dense_teacher.vectors
        self._dense_teacher = (
            TeacherVectors(Path(path), inputs.store.keys, inputs.model.config.hidden_size) if path else None
        )
        texts = len(inputs.store.keys)
        if self._dense_teacher and self._dense_teacher.known < texts:
            self.warnings.append(
                f"{texts - self._dense_teacher.known:,} of {texts:,} texts have no vector in {path}; they learn "
                "nothing from the dense teacher."
            )

    def loss(self, step: int, share_done: float) -> Outcome:
        """Compute L or L_final of a step."""
        batch = self.batch(step)
        shown, tables = self._encoder(batch.queries + batch.passages, self.first_positions(batch, step))
        device = shown.dense.device
        scores = score_shared(*split(shown, len(batch)), self._encoder.ranks, self._loss.matryoshka)
        targets, ignored, cross_lingual = (
            torch.from_numpy(each).to(device) for each in (batch.targets, batch.ignored, batch.cross_lingual)
        )
        loss, parts = objective(
            scores,
            targets,
            self._loss,
            cross_lingual=cross_lingual,
            self_distillation=share_done >= self._config.run.distil_from,
            ignored=ignored,
            teacher_scores=None if batch.teacher is None else torch.from_numpy(batch.teacher).to(device),
        )
        if self._dense_teacher:
            distance = self._dense_teacher.distance(shown.dense, batch.text_numbers)
            loss = loss + self._config.dense_teacher.weight * distance
            parts["distance"] = distance.item()
        watched = measures(scores, targets, ignored, cross_lingual, shown.token_weights)
        return Outcome(loss, parts, tables, self.counts(batch) | watched)


def score_shared(
    queries: Representations, passages: Representations, ranks: Ranks, widths: Sequence[int]
) -> Scores:
    """Return the scores of every query with every passage; each rank computes those of some of the queries."""
    if ranks.size == 1:
        return score_all(queries, passages, widths)
    ranges = ranks.ranges(queries.row_counts)
    here = ranges[ranks.rank]
    own = split(split(queries, here.stop)[0], here.start)[1]
    scores = score_all(own, passages, widths)
    parts = [scores.dense, scores.lexical, scores.multivector, *scores.prefixes]
    dense, lexical, multivector, *prefixes = ranks.gather(
        parts, [[len(each) for each in ranges]] * len(parts)
    )
    return Scores(dense, lexical, multivector, tuple(prefixes))
