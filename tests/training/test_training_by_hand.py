"""Every loss against a computation of its own in float64, with plain loops over queries and passages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_connectors.training.distillation import Teaching
from m3_connectors.training.losses import LossSettings, Scores, contrastive, distilled, objective

Rows = Sequence[Sequence[float]]


def hand_softmax(row: Sequence[float], columns: Sequence[int], tau: float) -> dict[int, float]:
    top = max(row[column] for column in columns)
    powers = {column: math.exp((row[column] - top) / tau) for column in columns}
    total = math.fsum(powers.values())
    return {column: power / total for column, power in powers.items()}


def hand_log(row: Sequence[float], column: int, columns: Sequence[int], tau: float) -> float:
    """The logarithm of the softmax at one column, over some columns."""
    top = max(row[other] for other in columns)
    return (row[column] - top) / tau - math.log(math.fsum(math.exp((row[o] - top) / tau) for o in columns))


class ByHand:
    """A batch: scores as nested lists, float64."""

    def __init__(self, case: dict[str, Any], loss: LossSettings) -> None:
        self.case, self.loss, self.tau = case, loss, loss.temperature

    def columns(self, query: int) -> list[int]:
        return [p for p in range(self.case["passages"]) if not self.case["ignored"][query][p]]

    def query_loss(self, row: Sequence[float], query: int) -> float:
        target, columns = self.case["targets"][query], self.columns(query)
        plain = -hand_log(row, target, columns, self.tau)
        teacher = self.case["teacher"][query]
        group = [p for p in range(self.case["passages"]) if not math.isnan(teacher[p])]
        if self.loss.kd == "none" or not group:
            return plain
        share = hand_softmax(teacher, group, self.loss.kd_temperature)
        if self.loss.kd == "kl":
            kl = -math.fsum(share[p] * hand_log(row, p, group, self.tau) for p in group)
            return plain + self.loss.kd_weight * kl
        ordered = [target, *sorted((p for p in group if p != target), key=lambda p: (-teacher[p], p))]
        kd = math.fsum(
            -share[p] * hand_log(row, p, [c for c in columns if c not in ordered[:place]], self.tau)
            for place, p in enumerate(ordered)
        )
        return (1 - self.loss.kd_weight) * plain + self.loss.kd_weight * kd

    def mean(self, rows: Rows, of: Callable[[Sequence[float], int], float], lexical: bool) -> float:
        queries = [
            query
            for query in range(len(rows))
            if not (lexical and self.loss.mask_lexical_across_languages and self.case["cross"][query])
        ]
        return math.fsum(of(rows[query], query) for query in queries) / max(1, len(queries))

    def objective(self, self_distillation: bool) -> float:
        views, w, lam = self.case["scores"], self.loss.inter_weights, self.loss.lambdas
        inter = [
            [
                math.fsum(w[view] * views[view][q][p] for view in range(3))
                for p in range(self.case["passages"])
            ]
            for q in range(self.case["queries"])
        ]
        parts = [self.mean(views[view], self.query_loss, view == 1) for view in range(3)]
        plain = (
            math.fsum(a * b for a, b in zip(lam, parts, strict=True))
            + self.mean(inter, self.query_loss, False)
        ) / 4
        if not self_distillation:
            return plain

        def student(row: Sequence[float], query: int) -> float:
            columns = self.columns(query)
            teacher = hand_softmax(inter[query], columns, self.tau)
            return -math.fsum(teacher[p] * hand_log(row, p, columns, self.tau) for p in columns)

        students = [self.mean(views[view], student, view == 1) for view in range(3)]
        return (plain + math.fsum(a * b for a, b in zip(lam, students, strict=True)) / 3) / 2


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A batch with masks, cross-lingual queries and a teacher's scores of some groups."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    queries, passages = int(rng.integers(1, 6)), int(rng.integers(1, 10))
    targets = rng.integers(0, passages, queries)
    ignored = rng.random((queries, passages)) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    ignored[np.arange(queries), targets] = False
    teacher = np.where(rng.random((queries, passages)) < 0.5, rng.normal(0, 3, (queries, passages)), np.nan)
    teacher[np.arange(queries), targets] = rng.normal(2, 3, queries)
    teacher[ignored] = np.nan
    teacher[rng.random(queries) < 0.3] = np.nan
    return {
        "queries": queries,
        "passages": passages,
        "scores": rng.uniform(-1, 1, (3, queries, passages)).tolist(),
        "targets": targets.tolist(),
        "ignored": ignored.tolist(),
        "teacher": teacher.tolist(),
        "cross": (rng.random(queries) < 0.3).tolist(),
    }


def ours(
    case: dict[str, Any], loss: LossSettings, self_distillation: bool, dtype: torch.dtype
) -> torch.Tensor:
    value, _ = objective(
        Scores(*(torch.tensor(view, dtype=dtype) for view in case["scores"])),
        torch.tensor(case["targets"]),
        loss,
        cross_lingual=torch.tensor(case["cross"]),
        self_distillation=self_distillation,
        ignored=torch.tensor(case["ignored"]),
        teacher_scores=torch.tensor(case["teacher"], dtype=dtype),
    )
    return value


LARGEST: dict[str, float] = {}
"""The largest differences, which the notes of a run can print with ``-s``."""


@settings(max_examples=200, deadline=None)
@given(
    cases(),
    st.sampled_from(["none", "kl", "m3_kd"]),
    st.booleans(),
    st.sampled_from([0.02, 0.05, 1.0]),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from([0.5, 1.0]),
    st.booleans(),
)
def test_objectives_are_those_of_plain_loops_in_float64(
    case: dict[str, Any],
    kd: Any,
    self_distillation: bool,
    tau: float,
    kd_weight: float,
    kd_temperature: float,
    masked: bool,
) -> None:
    loss = LossSettings(
        temperature=tau,
        inter_weights=(1.0, 0.3, 0.7),
        lambdas=(1.0, 0.1, 0.6),
        mask_lexical_across_languages=masked,
        kd=kd,
        kd_weight=kd_weight,
        kd_temperature=kd_temperature,
    )
    expected = ByHand(case, loss).objective(self_distillation)
    for dtype, most in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        difference = abs(ours(case, loss, self_distillation, dtype).item() - expected) / max(
            1.0, abs(expected)
        )
        name = f"{'L_final' if self_distillation else 'L'}, kd {kd}, {str(dtype).removeprefix('torch.')}"
        LARGEST[name] = max(LARGEST.get(name, 0.0), difference)
        assert difference < most


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from([0.02, 1.0]))
def test_single_losses_are_those_of_plain_loops_in_float64(case: dict[str, Any], tau: float) -> None:
    for kd in ("none", "kl", "m3_kd"):
        loss = LossSettings(temperature=tau, kd=kd)
        hand = ByHand(case, loss)
        scores = torch.tensor(case["scores"][0], dtype=torch.float64)
        targets, ignored = torch.tensor(case["targets"]), torch.tensor(case["ignored"])
        teacher = torch.tensor(case["teacher"], dtype=torch.float64)
        teaching = None if kd == "none" else Teaching(teacher, targets, kd)
        value = contrastive(scores, targets, tau, None, ignored, teaching).item()
        expected = hand.mean(case["scores"][0], hand.query_loss, False)
        difference = abs(value - expected) / max(1.0, abs(expected))
        name = f"contrastive{'' if kd == 'none' else f' with {kd}'}, float64"
        LARGEST[name] = max(LARGEST.get(name, 0.0), difference)
        assert difference < 1e-12


@settings(max_examples=30, deadline=None)
@given(cases(), st.sampled_from(["none", "kl", "m3_kd"]), st.booleans())
def test_gradients_are_those_of_finite_differences_and_zero_where_ignored(
    case: dict[str, Any], kd: Any, self_distillation: bool
) -> None:
    loss = LossSettings(temperature=0.5, kd=kd)
    dense = torch.tensor(case["scores"][0], dtype=torch.float64, requires_grad=True)
    others = [torch.tensor(view, dtype=torch.float64) for view in case["scores"][1:]]
    targets, ignored = torch.tensor(case["targets"]), torch.tensor(case["ignored"])
    # The teacher of self-distillation has no gradient: it is held at the scores of this batch.
    fixed = torch.softmax(
        (dense.detach() + 0.3 * others[0] + others[1]).masked_fill(ignored, -torch.inf) / 0.5, 1
    )

    def value(scores: torch.Tensor) -> torch.Tensor:
        if self_distillation:
            return distilled(scores, fixed, 0.5, None, ignored)
        teaching = (
            None
            if kd == "none"
            else Teaching(torch.tensor(case["teacher"], dtype=torch.float64), targets, kd)
        )
        return contrastive(scores, targets, loss.temperature, None, ignored, teaching)

    (gradient,) = torch.autograd.grad(value(dense), dense)
    assert torch.isfinite(gradient).all()
    assert (gradient[ignored] == 0).all()
    assert torch.autograd.gradcheck(value, (dense,), eps=1e-6, atol=1e-6)


def test_m3_kd_with_a_teacher_that_is_sure_of_the_positive_is_the_contrastive_loss() -> None:
    scores = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    teacher = torch.full((2, 5), torch.nan, dtype=torch.float64)
    teacher[:, :3] = torch.tensor([500.0, 0.0, 1.0])
    targets = torch.tensor([0, 0])
    plain = contrastive(scores, targets, 0.1)
    assert contrastive(
        scores, targets, 0.1, None, None, Teaching(teacher, targets, "m3_kd")
    ) == pytest.approx(plain.item())


def test_print_the_largest_differences() -> None:
    for name, difference in sorted(LARGEST.items()):
        print(f"{name:40} {difference:.1e}")
