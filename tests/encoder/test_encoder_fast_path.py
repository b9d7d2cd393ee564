"""The fast ways of computing a layer mean what the plain ones mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from m3_connectors.encoder import M3Encoder, linear
from m3_connectors.encoder.attention import fused_attention, tiled_attention
from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.linear import FastLayer, FastLinear, PackedLinear, PlainLinear
from m3_connectors.encoder.model import Attention, Layer, padded_attention
from m3_connectors.testing.checkpoints import TEXTS, write_checkpoint

LENGTHS = [1030, 700, 257, 257, 256, 200, 9, 9, 9, 8, 1, 1]
LAYER = ModelConfig(
    vocab_size=100,
    hidden_size=96,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=200,
    max_position_embeddings=2050,
)


def projections(lengths: list[int], *, scale: float = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of three heads as a layer gives them: strided views of one product."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(sum(lengths), 3, 3, 32, generator=generator).unbind(1)
    return q * scale, k, v


@pytest.mark.parametrize("attention", [tiled_attention, fused_attention])
def test_attention_in_float32(attention: Attention) -> None:
    q, k, v = projections(LENGTHS)
    expected = padded_attention(q, k, v, LENGTHS)
    torch.testing.assert_close(attention(q, k, v, LENGTHS), expected, atol=2e-6, rtol=0)


def test_attention_in_bfloat16() -> None:
    q, k, v = (x.bfloat16() for x in projections(LENGTHS))
    expected = padded_attention(q.float(), k.float(), v.float(), LENGTHS)
    ours = tiled_attention(q, k, v, LENGTHS)
    assert ours.dtype is torch.bfloat16
    torch.testing.assert_close(ours.float(), expected, atol=0.03, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [20, 300])
def test_attention_beyond_the_range_of_exp(dtype: torch.dtype, length: int) -> None:
    """Scores of 400 overflow exp2, of -400 vanish; both texts must come out right, and so must their neighbour."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = projections([length] * 3)
    same = torch.randn(32, generator=generator)
    same = same * (400 * 32**0.5) ** 0.5 / same.norm()
    q[:length], k[:length] = same, same * torch.linspace(0.9, 1, length)[:, None, None]
    q[length : 2 * length], k[length : 2 * length] = (
        same,
        -same * torch.linspace(0.9, 1, length)[:, None, None],
    )
    q, k, v = (x.to(dtype) for x in (q, k, v))
    expected = padded_attention(q.float(), k.float(), v.float(), [length] * 3)
    ours = tiled_attention(q, k, v, [length] * 3).float()
    assert torch.isfinite(ours).all()
    if dtype is torch.float32:
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    else:  # scores of 400 are rounded to steps of 2: any exact softmax of them will do
        torch.testing.assert_close(ours[2 * length :], expected[2 * length :], atol=0.03, rtol=0.02)


@pytest.mark.parametrize("kind", [PackedLinear, PlainLinear])
def test_a_fast_layer_is_the_layer(kind: type[FastLinear]) -> None:
    if kind is PackedLinear and not linear.packs(torch.float32):
        pytest.skip("this PyTorch has no packed linear operators for float32")
    torch.manual_seed(0)
    layer = Layer(LAYER).eval().requires_grad_(False)
    hidden = torch.randn(sum(LENGTHS), LAYER.hidden_size)
    expected = layer(hidden, LENGTHS, padded_attention)
    with torch.inference_mode():
        ours = FastLayer(layer, kind)(hidden, LENGTHS, tiled_attention)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)


def test_packed_and_plain_agree_in_bfloat16() -> None:
    if not linear.packs(torch.bfloat16):
        pytest.skip("this PyTorch or this CPU has no packed linear operators for bfloat16")
    torch.manual_seed(0)
    layer = Layer(LAYER).eval().requires_grad_(False)
    hidden = torch.randn(sum(LENGTHS), LAYER.hidden_size)
    expected = layer(hidden, LENGTHS, padded_attention)
    layer = layer.bfloat16()
    with torch.inference_mode():
        for kind in (PackedLinear, PlainLinear):
            ours = FastLayer(layer, kind)(hidden.bfloat16(), LENGTHS, tiled_attention)
            cosine = torch.nn.functional.cosine_similarity(ours.float(), expected, dim=-1)
            assert cosine.min() > 0.9999


def test_without_the_private_operators_plain_products_are_used(
    checkpoint: Path, encoder: M3Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    monkeypatch.setattr(PackedLinear, "__init__", missing)
    linear.packs.cache_clear()
    try:
        plain = M3Encoder(checkpoint, device="cpu", precision="float32")
    finally:
        linear.packs.cache_clear()
    assert isinstance(plain._runner._model.encoder.layer[0].qkv, PlainLinear)
    texts = list(TEXTS.values())
    np.testing.assert_allclose(plain.encode(texts).dense, encoder.encode(texts).dense, atol=1e-5)


def test_bfloat16_agrees_with_float32(tmp_path: Path) -> None:
    """On a wider and deeper random model than the small one; docs/encoder.md has the real size."""
    config = ModelConfig(
        vocab_size=1200,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=1026,
    )
    write_checkpoint(tmp_path, config=config)
    texts = [*TEXTS.values(), " ".join(TEXTS.values()), ""]
    single, half = (
        M3Encoder(tmp_path, device="cpu", precision=precision).encode(texts)
        for precision in ("float32", "bfloat16")
    )
    assert single.dense is not None
    assert half.dense is not None
    assert single.multivectors is not None
    assert half.multivectors is not None
    assert (single.dense * half.dense).sum(1).min() > 0.999
    assert (single.multivectors.rows * half.multivectors.rows).sum(1).min() > 0.998
