"""The cheap forward pass of training says what the plain one says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import M3Model, padded_attention
from m3_connectors.training.forward import (
    LONG,
    TrainingEncoder,
    fused_attention,
    sorted_attention,
    split,
)


@pytest.mark.parametrize(
    "lengths", [[3, 5, 5, 9, 40], [1], [2, LONG + 3], [LONG - 1, LONG, LONG + 1, LONG + 1]]
)
def test_sorted_attention_and_its_gradient_are_those_of_the_plain_one(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(sum(lengths), 2, 8, generator=generator, requires_grad=True) for _ in range(3)]
    outer = torch.randn(sum(lengths), 2, 8, generator=generator)
    results = [
        attention(*rows, lengths) for attention in (padded_attention, sorted_attention, fused_attention)
    ]
    gradients = [torch.autograd.grad((result * outer).sum(), rows) for result in results]
    for result, gradient in zip(results[1:], gradients[1:], strict=True):
        torch.testing.assert_close(result, results[0], atol=1e-5, rtol=1e-4)
        for ours, plain in zip(gradient, gradients[0], strict=True):
            torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def model() -> M3Model:
    torch.manual_seed(0)
    return M3Model(ModelConfig(40, 32, 2, 2, 48, 66))


TEXTS = [np.array([0, 7, 9, 9, 30, 2]), np.array([0, 2]), np.array([0, 39, 3, 12, 2]), np.array([0, 7, 2])]


def test_the_order_and_batch_of_texts_do_not_matter(model: M3Model) -> None:
    encoder = TrainingEncoder(model, torch.float32)
    together, _ = encoder(TEXTS)
    starts = np.concatenate([[0], np.cumsum(together.row_counts)])
    assert list(together.row_counts) == [len(text) - 1 for text in TEXTS]
    for number, text in enumerate(TEXTS):
        alone, _ = encoder([text])
        torch.testing.assert_close(together.dense[number], alone.dense[0])
        torch.testing.assert_close(together.rows[starts[number] : starts[number + 1]], alone.rows)
        own = together.token_text == number
        assert together.token_ids[own].tolist() == alone.token_ids.tolist()
        torch.testing.assert_close(together.token_weights[own], alone.token_weights)


def test_the_tokens_without_a_lexical_weight_are_those_of_the_encoder(model: M3Model) -> None:
    shown, _ = TrainingEncoder(model, torch.float32)(TEXTS)
    # <s>, </s> and <unk> (3) are left out; <mask> (39, the last) is not, as in FlagEmbedding.
    assert shown.token_ids.tolist() == [7, 9, 9, 30, 39, 12, 7]
    assert shown.token_text.tolist() == [0, 0, 0, 0, 2, 2, 3]
    assert (shown.token_weights >= 0).all()


def test_positions_shift_a_text_and_nothing_else(model: M3Model) -> None:
    encoder = TrainingEncoder(model, torch.float32)
    still, _ = encoder(TEXTS)
    shifted, tables = encoder(TEXTS, [0, 0, 40, 0])
    torch.testing.assert_close(still.dense[[0, 1, 3]], shifted.dense[[0, 1, 3]])
    assert not torch.allclose(still.dense[2], shifted.dense[2], atol=1e-3)
    assert 42 in tables["embeddings.position_embeddings.weight"].numbers


def test_split_parts_queries_from_passages(model: M3Model) -> None:
    encoder = TrainingEncoder(model, torch.float32)
    queries, passages = split(encoder(TEXTS)[0], 3)
    alone, _ = encoder(TEXTS[3:])
    torch.testing.assert_close(passages.dense, alone.dense)
    torch.testing.assert_close(passages.rows, alone.rows)
    assert passages.token_text.tolist() == alone.token_text.tolist() == [0]
    assert list(queries.row_counts) == [5, 1, 4]
    assert len(queries.rows) == 10


def test_bfloat16_stays_near_float32(model: M3Model) -> None:
    wide, _ = TrainingEncoder(model, torch.float32)(TEXTS)
    narrow, _ = TrainingEncoder(model, torch.bfloat16)(TEXTS)
    assert narrow.rows.dtype == torch.bfloat16
    cosine = (wide.dense * narrow.dense).sum(1)
    assert (cosine > 0.999).all()
