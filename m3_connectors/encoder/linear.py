"""Transformer layers for encoding: packed weights, fused operations, bounded buffers.

On a CPU, oneDNN multiplies by weights that were reordered once (packed) faster than PyTorch multiplies by
plain weights, and adds the bias, GELU or the residual while the product is still in registers. PyTorch
exposes this under private names only, so the code checks whether they work; otherwise it uses
``torch.nn.functional``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3_connectors.encoder.model import Attention, Layer, M3Model, Projection

_ROWS_AT_ONCE = 1024
"""The number of rows that pass through the feed-forward block together: their widened form fits the cache."""


class PackedLinear(nn.Module):
    """A linear layer with packed weights.

    Args:
        linears: Layers with the same input, computed as one product; their outputs are concatenated.
    """

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        weight = torch.cat([linear.weight for linear in linears])
        self.bias = torch.cat([linear.bias for linear in linears]).detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def forward(self, rows: Tensor) -> Tensor:
        """Compute ``W rows + b``."""
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]

    def gelu(self, rows: Tensor) -> Tensor:
        """Compute ``gelu(W rows + b)`` in the exact form."""
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "gelu", [], "none")  # type: ignore[no-any-return]

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        """Compute ``W rows + b + residual``, rounded once."""
        return torch.ops.mkldnn._linear_pointwise.binary(rows, residual, self.weight, self.bias, "add")  # type: ignore[no-any-return]


class PlainLinear(nn.Module):
    """The same operations with ``torch.nn.functional``."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.cat([linear.weight for linear in linears]).detach()
        self.bias = torch.cat([linear.bias for linear in linears]).detach()

    def forward(self, rows: Tensor) -> Tensor:
        """Compute ``W rows + b``."""
        return F.linear(rows, self.weight, self.bias)

    def gelu(self, rows: Tensor) -> Tensor:
        """Compute ``gelu(W rows + b)`` in the exact form."""
        return F.gelu(self.forward(rows))

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        """Compute ``W rows + b + residual``."""
        return self.forward(rows) + residual


FastLinear = PackedLinear | PlainLinear


class FastLayer(nn.Module):
    """A transformer layer equivalent to ``model.Layer``: q, k and v in one product, without gradients.

    Args:
        layer: The layer that provides the weights.
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
        """Compute ``[tokens, d]`` from ``[tokens, d]``."""
        q, k, v = self.qkv(hidden).view(hidden.shape[0], 3, self.heads, -1).unbind(1)
        mixed = attention(q, k, v, lengths).view(hidden.shape)
        del q, k, v
        at_once = _ROWS_AT_ONCE if hidden.device.type == "cpu" else len(hidden)
        parts = zip(torch.split(mixed, at_once), torch.split(hidden, at_once), strict=True)
        return torch.cat([self._feed_forward(self.attention_output(*part)) for part in parts])

    def _feed_forward(self, rows: Tensor) -> Tensor:
        return self.output(self.widen.gelu(rows), rows)  # type: ignore[no-any-return]


class _FastProjection(nn.Module):
    """Computes ``LayerNorm(residual + W inner)``."""

    def __init__(self, projection: Projection, linear: type[FastLinear]) -> None:
        super().__init__()
        self.dense = linear(projection.dense)
        self.LayerNorm = projection.LayerNorm

    def forward(self, inner: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense.plus(inner, residual))  # type: ignore[no-any-return]


def speed_up(model: M3Model) -> None:
    """Replace a model's layers in place by faster ones that cannot be trained, and free the plain weights."""
    weight = model.colbert_linear.weight
    linear = PackedLinear if weight.device.type == "cpu" and packs(weight.dtype) else PlainLinear
    for i, layer in enumerate(model.encoder.layer):
        assert isinstance(layer, Layer)
        model.encoder.layer[i] = FastLayer(layer, linear)
    if linear is PackedLinear:
        model.colbert_linear = PackedLinear(model.colbert_linear)  # type: ignore[assignment]


@functools.cache
def packs(dtype: torch.dtype) -> bool:
    """Return whether this PyTorch has the private operators for a dtype, with correct results."""
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
