"""Exact attention for encoding: each text of a batch attends to itself only, and scores stay small.

PyTorch's fused CPU kernel reaches a quarter of the machine's bfloat16 product rate; two plain products with a
softmax between them, over tiles whose scores stay in the cache, reach most of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_ROWS = 256
"""Query rows of a tile; texts up to this long take all their heads in one product."""
TILE_HEADS = 2


def tiled_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention for the CPU, of the meaning of ``model.padded_attention``; not differentiable.

    Args:
        q: ``[tokens, heads, head_size]``; k and v too, any strides.
        lengths: Tokens of each text; texts of one length next to each other are computed together.

    Returns:
        ``[tokens, heads, head_size]``, contiguous.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    scale = q.shape[-1] ** -0.5
    for start, count, length in _runs(lengths):
        rows = slice(start, start + count * length)
        if length <= TILE_ROWS:
            qs, ks, vs = (x[rows].view(count, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
            scores = torch.matmul(qs * scale, ks.transpose(-1, -2))
            out[rows] = (scores.softmax(-1) @ vs).transpose(1, 2).flatten(0, 1)
            continue
        qs, ks, vs = (x[rows].transpose(0, 1) for x in (q, k, v))
        for h in range(0, q.shape[1], TILE_HEADS):
            heads = slice(h, h + TILE_HEADS)
            keys, values = (ks[heads] * scale).transpose(-1, -2), vs[heads].contiguous()
            for at in range(0, length, TILE_ROWS):
                tile = slice(at, at + TILE_ROWS)
                scores = torch.bmm(qs[heads, tile], keys)
                out[rows][tile, heads] = torch.bmm(scores.softmax(-1), values).transpose(0, 1)
    return out


def fused_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """The same through PyTorch's fused kernels, for GPUs."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for start, count, length in _runs(lengths):
        rows = slice(start, start + count * length)
        qs, ks, vs = (x[rows].view(count, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        out[rows] = F.scaled_dot_product_attention(qs, ks, vs).transpose(1, 2).flatten(0, 1)
    return out


def _runs(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """``(first row, texts, length)`` of each run of equal lengths."""
    row = i = 0
    while i < len(lengths):
        count = 1
        while i + count < len(lengths) and lengths[i + count] == lengths[i]:
            count += 1
        yield row, count, lengths[i]
        row += count * lengths[i]
        i += count
