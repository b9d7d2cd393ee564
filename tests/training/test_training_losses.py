"""The objectives of section 3.3 against definitions written out loop by loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m3_connectors.training.losses import (
    LossSettings,
    Representations,
    Scores,
    contrastive,
    distilled,
    late_interaction,
    lexical_scores,
    objective,
)


def naive_late_interaction(q: Tensor, q_counts: list[int], p: Tensor, p_counts: list[int]) -> Tensor:
    return torch.stack(
        [
            torch.stack([(one @ other.T).max(1).values.mean() for other in p.split(p_counts)])
            for one in q.split(q_counts)
        ]
    )


counts = st.lists(st.integers(1, 7), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(counts, counts, st.integers(0, 2**31))
def test_late_interaction_and_its_gradients_are_those_of_the_definition(
    q_counts: list[int], p_counts: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(sum(q_counts), 6, generator=generator, requires_grad=True)
    p = torch.randn(sum(p_counts), 6, generator=generator, requires_grad=True)
    outer = torch.randn(len(q_counts), len(p_counts), generator=generator)

    ours = late_interaction(q, q_counts, p, p_counts)
    ours_gradients = torch.autograd.grad((ours * outer).sum(), (q, p))
    naive = naive_late_interaction(q, q_counts, p, p_counts)
    naive_gradients = torch.autograd.grad((naive * outer).sum(), (q, p))

    torch.testing.assert_close(ours, naive, atol=1e-5, rtol=1e-5)
    for one, other in zip(ours_gradients, naive_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_late_interaction_in_bfloat16_takes_the_same_rows_as_in_float32() -> None:
    generator = torch.Generator().manual_seed(3)
    q_counts, p_counts = [3, 9, 1], [40, 7, 300]
    q = torch.nn.functional.normalize(torch.randn(13, 32, generator=generator), dim=1).bfloat16()
    p = torch.nn.functional.normalize(torch.randn(347, 32, generator=generator), dim=1).bfloat16()
    narrow = late_interaction(q, q_counts, p, p_counts)
    wide = late_interaction(q.float(), q_counts, p.float(), p_counts)
    # A bfloat16 product is off by at most 2**-9 of itself; a wrong row would be off by far more.
    torch.testing.assert_close(narrow, wide, atol=4e-3, rtol=0)


def representations(texts: list[dict[int, list[float]]], width: int = 4) -> Representations:
    """Texts given as the weights of each token's occurrences."""
    ids, weights, owners = [], [], []
    for number, text in enumerate(texts):
        for token, values in text.items():
            ids += [token] * len(values)
            weights += values
            owners += [number] * len(values)
    return Representations(
        dense=torch.zeros(len(texts), width),
        token_ids=torch.tensor(ids, dtype=torch.int64),
        token_weights=torch.tensor(weights, dtype=torch.float32).requires_grad_(),
        token_text=torch.tensor(owners, dtype=torch.int64),
        rows=torch.zeros(len(texts), width),
        row_counts=[1] * len(texts),
    )


def test_lexical_scores_take_the_maximum_of_a_repeated_token_and_only_shared_tokens() -> None:
    queries = representations([{7: [0.5, 2.0], 9: [1.0]}, {11: [3.0]}])
    passages = representations([{7: [0.25, 0.125], 8: [9.0]}, {9: [4.0], 7: [1.0], 11: [0.5, 0.25]}])
    scores = lexical_scores(queries, passages)
    assert scores.tolist() == [[2.0 * 0.25, 2.0 * 1.0 + 1.0 * 4.0], [0.0, 1.5]]
    scores[0, 0].backward()
    # Only the maximal occurrences carry a gradient.
    assert queries.token_weights.grad is not None
    assert passages.token_weights.grad is not None
    assert queries.token_weights.grad.tolist() == [0.0, 0.25, 0.0, 0.0]
    assert passages.token_weights.grad.tolist() == [2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_lexical_scores_of_queries_without_tokens_are_zero() -> None:
    scores = lexical_scores(representations([{}, {}]), representations([{5: [1.0]}]))
    assert scores.tolist() == [[0.0], [0.0]]


def test_contrastive_is_the_negative_log_share_of_the_own_passage() -> None:
    scores = torch.tensor([[0.5, 0.2, 0.1], [0.3, 0.6, 0.0]])
    targets = torch.tensor([2, 1])
    tau = 0.1
    expected = [
        -math.log(math.exp(row[target] / tau) / sum(math.exp(value / tau) for value in row))
        for row, target in zip(scores.tolist(), targets.tolist(), strict=True)
    ]
    assert contrastive(scores, targets, tau).item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    only_first = contrastive(scores, targets, tau, torch.tensor([True, False]))
    assert only_first.item() == pytest.approx(expected[0], rel=1e-5)
    assert contrastive(scores, targets, tau, torch.tensor([False, False])).item() == 0


def random_scores(seed: int, size: int = 5) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return Scores(*(torch.randn(size, size, generator=generator).requires_grad_() for _ in range(3)))


def test_objective_is_the_paper_s_sum() -> None:
    scores, targets = random_scores(1), torch.arange(5)
    constants = LossSettings(temperature=0.5, inter_weights=(1.0, 0.3, 2.0), lambdas=(1.0, 0.1, 0.7))
    cross = torch.zeros(5, dtype=torch.bool)
    inter = scores.dense + 0.3 * scores.lexical + 2.0 * scores.multivector

    def part(matrix: Tensor) -> Tensor:
        return contrastive(matrix, targets, 0.5)

    plain = (
        part(scores.dense) + 0.1 * part(scores.lexical) + 0.7 * part(scores.multivector) + part(inter)
    ) / 4
    loss, log = objective(scores, targets, constants, cross_lingual=cross, self_distillation=False)
    torch.testing.assert_close(loss, plain)
    assert set(log) == {"dense", "lex", "mul", "inter"}

    teacher = (inter / 0.5).softmax(1).detach()
    students = [distilled(m, teacher, 0.5) for m in (scores.dense, scores.lexical, scores.multivector)]
    distillation = (students[0] + 0.1 * students[1] + 0.7 * students[2]) / 3
    both, _ = objective(scores, targets, constants, cross_lingual=cross, self_distillation=True)
    torch.testing.assert_close(both, (plain + distillation) / 2)


def test_no_gradient_reaches_the_teacher() -> None:
    scores = random_scores(2)
    constants = LossSettings(temperature=0.5, inter_weights=(1.0, 1.0, 1.0), lambdas=(1.0, 0.0, 0.0))
    args = {"cross_lingual": torch.zeros(5, dtype=torch.bool)}
    plain, _ = objective(scores, torch.arange(5), constants, self_distillation=False, **args)
    (without,) = torch.autograd.grad(plain, scores.lexical, retain_graph=True)
    final, _ = objective(scores, torch.arange(5), constants, self_distillation=True, **args)
    (with_teacher,) = torch.autograd.grad(final, scores.lexical)
    # With lambda_lex = 0 the lexical scores act through L_inter alone, which counts half in L_final.
    torch.testing.assert_close(with_teacher, without / 2)


def test_pairs_of_two_languages_are_left_out_of_the_lexical_loss_only() -> None:
    scores, cross = random_scores(3), torch.tensor([True, True, True, True, True])
    masked = LossSettings(mask_lexical_across_languages=True)
    _, log = objective(scores, torch.arange(5), masked, cross_lingual=cross, self_distillation=False)
    assert log["lex"] == 0
    assert log["dense"] > 0
    assert log["mul"] > 0
    assert log["inter"] > 0
    unmasked = LossSettings(mask_lexical_across_languages=False)
    _, log = objective(scores, torch.arange(5), unmasked, cross_lingual=cross, self_distillation=False)
    assert log["lex"] > 0
