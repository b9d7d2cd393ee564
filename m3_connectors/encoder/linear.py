"""Transformer layers for encoding: packed weights, fused steps, bounded buffers.

On a CPU, oneDNN multiplies by weights that were reordered once (packed) faster than PyTorch does by plain ones, and
adds the bias, GELU or the residual while the product is still in registers. PyTorch offers that under private names
only, so they are probed for; ``torch.nn.functional`` is the other way, with the same meaning.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3_connectors.encoder.model import Attention, Layer, M3Model, Projection

_ROWS_AT_ONCE = 1024
"""Rows that pass through the feed-forward block together: their widened form stays in the cache."""


class PackedLinear(nn.Module):
    """A linear layer with packed weights.

    Args:
        linears: Layers of one input, computed as one product; their outputs lie side by side.
    """

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        weight = torch.cat([linear.weight for linear in linears])
        self.bias = torch.cat([linear.bias for linear in linears]).detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def forward(self, rows: Tensor) -> Tensor:
        """``W rows + b``."""
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]

    def gelu(self, rows: Tensor) -> Tensor:
        """``gelu(W rows + b)``, the exact form."""
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "gelu", [], "none")  # type: ignore[no-any-return]

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        """``W rows + b + residual``, rounded once."""
        return torch.ops.mkldnn._linear_pointwise.binary(rows, residual, self.weight, self.bias, "add")  # type: ignore[no-any-return]


class PlainLinear(nn.Module):
    """The same through ``torch.nn.functional``."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.cat([linear.weight for linear in linears]).detach()
        self.bias = torch.cat([linear.bias for linear in linears]).detach()

    def forward(self, rows: Tensor) -> Tensor:
        """``W rows + b``."""
        return F.linear(rows, self.weight, self.bias)

    def gelu(self, rows: Tensor) -> Tensor:
        """``gelu(W rows + b)``, the exact form."""
        return F.gelu(self.forward(rows))

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        """``W rows + b + residual``."""
        return self.forward(rows) + residual


FastLinear = PackedLinear | PlainLinear


class FastLayer(nn.Module):
    """One transformer layer of ``model.Layer``'s meaning: q, k and v in one product, no gradients.

    Args:
        layer: Where the weights come from.
        linear: ``PackedLinear`` or ``PlainLinear``.
    """

    def __init__(self, layer: Layer, linear: type[FastLinear]) -> None:
        super().__init__()
        block = layer.attention
        self.heads = block.heads
        self.qkv = linear(block.self.query, block.self.key, block.self.value)
        self.attention_output = _FastProjection(block.output, linear)
        self.widen = linear(layer.intermediate.dense)
        self.output = _FastProjection(layer.output, linear)

    def forward(self, hidden: Tensor, lengths: Sequence[int], attention: Attention) -> Tensor:
        """``[tokens, d]`` to ``[tokens, d]``."""
        q, k, v = self.qkv(hidden).view(hidden.shape[0], 3, self.heads, -1).unbind(1)
        mixed = attention(q, k, v, lengths).view(hidden.shape)
        del q, k, v
        at_once = _ROWS_AT_ONCE if hidden.device.type == "cpu" else len(hidden)
        parts = zip(torch.split(mixed, at_once), torch.split(hidden, at_once), strict=True)
        return torch.cat([self._feed_forward(self.attention_output(*part)) for part in parts])

    def _feed_forward(self, rows: Tensor) -> Tensor:
        return self.output(self.widen.gelu(rows), rows)  # type: ignore[no-any-return]


class _FastProjection(nn.Module):
    """``LayerNorm(residual + W inner)``."""

    def __init__(self, projection: Projection, linear: type[FastLinear]) -> None:
        super().__init__()
        self.dense = linear(projection.dense)
        self.LayerNorm = projection.LayerNorm

    def forward(self, inner: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense.plus(inner, residual))  # type: ignore[no-any-return]


def speed_up(model: M3Model) -> None:
    """Replace a model's layers, in place, by fast ones that cannot be trained; frees the plain weights."""
    weight = model.colbert_linear.weight
    linear = PackedLinear if weight.device.type == "cpu" and packs(weight.dtype) else PlainLinear
    for i, layer in enumerate(model.encoder.layer):
        assert isinstance(layer, Layer)
        model.encoder.layer[i] = FastLayer(layer, linear)
    if linear is PackedLinear:
        model.colbert_linear = PackedLinear(model.colbert_linear)  # type: ignore[assignment]


@functools.cache
def packs(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the private operators for a dtype, and they compute what they should."""
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05}.get(dtype)
    if tolerance is None:
        return False
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 32, dtype=dtype)
    for parameter in linear.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).mul_(0.1).to(dtype)
    rows, residual = (torch.randn(8, width, generator=generator).to(dtype) for width in (64, 32))
    with torch.inference_mode():
        try:
            packed, plain = PackedLinear(linear), PlainLinear(linear)
            pairs = [
                (packed(rows), plain(rows)),
                (packed.gelu(rows), plain.gelu(rows)),
                (packed.plus(rows, residual), plain.plus(rows, residual)),
            ]
        except (AttributeError, RuntimeError, TypeError):
            return False
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs)
