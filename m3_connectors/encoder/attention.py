"""Exact attention for encoding: each text of a batch attends to itself only, and the scores fit the cache.

PyTorch's fused CPU kernel reaches a quarter of the machine's bfloat16 product rate. Two matrix products with
a softmax between them, on tiles whose scores fit the cache, reach most of it. Then the softmax dominates the
cost, so it is as short as possible: it uses ``exp2`` without subtracting the maximum, which the range of
bfloat16 and float32 permits, and it divides the (narrow) output instead of the scores. If the sums of a tile
leave a safe range, the tile is computed again with the maximum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_ROWS = 256
"""The query rows of a tile; for texts up to this length, all heads are computed in one product."""
TILE_HEADS = 2
_GROUP_TOKENS = 512
"""The number of tokens of short texts that are computed together: their scores fit the cache too."""
_SAFE_SUMS = (2.0**-60, 2.0**100)


def tiled_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention for the CPU, equivalent to ``model.padded_attention``; not differentiable.

    Args:
        q: ``[tokens, heads, head_size]``, any strides.
        k: As q.
        v: As q.
        lengths: The number of tokens of each text; adjacent texts of equal length are computed together.

    Returns:
        ``[tokens, heads, head_size]``, contiguous.
    """
    heads = q.shape[1]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for start, count, length in _runs(lengths):
        if length > TILE_ROWS:
            for i in range(count):
                rows = slice(start + i * length, start + (i + 1) * length)
                _attend_long(q[rows], k[rows], v[rows], out[rows])
            continue
        texts = max(1, _GROUP_TOKENS // length)
        for i in range(0, count, texts):
            rows = slice(start + i * length, start + min(i + texts, count) * length)
            shape = (-1, length, *q.shape[1:])
            split = [x[rows].view(shape).transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
            mixed = _attend(*split).view(-1, heads, length, q.shape[2])
            out[rows] = mixed.transpose(1, 2).flatten(0, 1)
    return out


def fused_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention for GPUs, with PyTorch's fused kernels."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for start, count, length in _runs(lengths):
        rows = slice(start, start + count * length)
        qs, ks, vs = (x[rows].view(count, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        out[rows] = F.scaled_dot_product_attention(qs, ks, vs).transpose(1, 2).flatten(0, 1)
    return out


def _attend_long(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Compute one text ``[tokens, heads, head_size]``, tile by tile."""
    length, heads, _ = q.shape
    scores = q.new_empty(TILE_HEADS * TILE_ROWS * length)
    for h in range(0, heads, TILE_HEADS):
        qs, ks, vs = (x[:, h : h + TILE_HEADS].transpose(0, 1).contiguous() for x in (q, k, v))
        for row in range(0, length, TILE_ROWS):
            tile = qs[:, row : row + TILE_ROWS]
            size = tile.shape[0] * tile.shape[1] * length
            mixed = _attend(tile, ks, vs, scores[:size].view(*tile.shape[:2], length))
            out[row : row + TILE_ROWS, h : h + TILE_HEADS] = mixed.transpose(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, scores: Tensor | None = None) -> Tensor:
    """Compute attention of ``[n, rows, head_size]`` to ``[n, keys, head_size]``; ``scores`` is a buffer."""
    scale = q.shape[-1] ** -0.5
    powers = torch.bmm(q * (scale * math.log2(math.e)), k.transpose(1, 2), out=scores).exp2_()
    sums = _row_sums(powers)
    low, high = _SAFE_SUMS
    least, most = torch.aminmax(sums)
    if least > low and most < high:  # also false for NaN
        return torch.bmm(powers, v).div_(sums)
    return torch.bmm((torch.bmm(q * scale, k.transpose(1, 2))).softmax(-1), v)


def _row_sums(powers: Tensor) -> Tensor:
    """Sum over the last axis (kept) in float32, from partial sums in the tensor's dtype, which is faster."""
    parts = 8
    if powers.dtype is torch.float32 or powers.shape[-1] % parts:
        return powers.sum(-1, keepdim=True, dtype=torch.float32)
    return powers.unflatten(-1, (parts, -1)).sum(-1).sum(-1, keepdim=True, dtype=torch.float32)  # type: ignore[no-untyped-call,no-any-return]


def _runs(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield ``(first row, texts, length)`` of each run of equal lengths."""
    row = i = 0
    while i < len(lengths):
        count = 1
        while i + count < len(lengths) and lengths[i + count] == lengths[i]:
            count += 1
        yield row, count, lengths[i]
        row += count * lengths[i]
        i += count
