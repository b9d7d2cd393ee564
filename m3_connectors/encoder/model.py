"""The network: XLM-RoBERTa and the two heads of M3-Embedding (paper section 3.2), on concatenated texts.

There is no padding outside attention: the texts of a batch are concatenated to ``[tokens, d]``, and only the
attention function handles their boundaries. Parameter names are those of Hugging Face's ``XLMRobertaModel``,
so that published checkpoints load unchanged. The same module is used for training and encoding; encoding
replaces the linear layers and the attention function by faster equivalents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3_connectors.encoder.config import ModelConfig

Attention = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]
"""``(q, k, v, lengths) -> out``: all ``[tokens, heads, head_size]``; text i has ``lengths[i]`` rows."""


def padded_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Exact, differentiable attention within each text: one padded product for all texts.

    It uses two matrix products with a softmax between them, which is faster for training on a CPU than
    PyTorch's fused kernel at these sizes. Memory grows with ``texts * heads * longest ** 2``.
    """
    n, longest, device = len(lengths), max(lengths), q.device
    sizes = torch.as_tensor(lengths, device=device)
    inside = torch.arange(longest, device=device)[None, :] < sizes[:, None]

    def spread(rows: Tensor) -> Tensor:
        padded = rows.new_zeros(n, longest, *rows.shape[1:])
        padded[inside] = rows
        return padded.transpose(1, 2)

    scores = spread(q * q.shape[-1] ** -0.5) @ spread(k).transpose(-1, -2)
    if min(lengths) < longest:
        scores = scores.masked_fill(~inside[:, None, None, :], float("-inf"))
    return (scores.softmax(-1) @ spread(v)).transpose(1, 2)[inside]


def _table(rows: int, width: int, padding: int | None = None) -> nn.Embedding:
    """Create an ``nn.Embedding`` with its usual initialisation, which is skipped on the meta device.

    The normal distribution has no kernel for the meta device: PyTorch would import its reference
    implementations (890 modules, 2 seconds) to initialise nothing.
    """
    weight = torch.empty(rows, width)
    if not weight.is_meta:
        nn.init.normal_(weight)
        if padding is not None:
            weight[padding] = 0
    table: nn.Embedding = nn.Embedding.from_pretrained(weight, freeze=False, padding_idx=padding)  # type: ignore[no-untyped-call]
    return table


class Embeddings(nn.Module):
    """The word, position and token-type embeddings with their layer norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.first_position = config.pad_token_id + 1
        self.word_embeddings = _table(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.position_embeddings = _table(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = _table(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Compute ``[tokens, d]`` from ``[tokens]`` ids and positions (from 0 in each text)."""
        hidden = self.word_embeddings(token_ids) + self.token_type_embeddings.weight[0]
        return self.LayerNorm(hidden + self.position_embeddings(positions + self.first_position))  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """The three projections, named as in the checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)


class Projection(nn.Module):
    """A linear layer, the residual, and their layer norm (checkpoint name ``output``)."""

    def __init__(self, inner: int, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, inner: Tensor, residual: Tensor) -> Tensor:
        """Compute ``LayerNorm(residual + W inner)``."""
        return self.LayerNorm(self.dense(inner) + residual)  # type: ignore[no-any-return]


class AttentionBlock(nn.Module):
    """Self-attention with its output projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.self = SelfAttention(config)
        self.output = Projection(config.hidden_size, config)

    def forward(self, hidden: Tensor, lengths: Sequence[int], attention: Attention) -> Tensor:
        """Compute ``[tokens, d]`` from ``[tokens, d]``."""
        split = (hidden.shape[0], self.heads, -1)
        q, k, v = (
            project(hidden).view(split) for project in (self.self.query, self.self.key, self.self.value)
        )
        return self.output(attention(q, k, v, lengths).reshape(hidden.shape), hidden)  # type: ignore[no-any-return]


class Intermediate(nn.Module):
    """The first, widening half of the feed-forward block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute ``gelu(W hidden)`` in the exact (erf) form."""
        return F.gelu(self.dense(hidden))


class Layer(nn.Module):
    """One transformer layer, normalised after each residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = AttentionBlock(config)
        self.intermediate = Intermediate(config)
        self.output = Projection(config.intermediate_size, config)

    def forward(self, hidden: Tensor, lengths: Sequence[int], attention: Attention) -> Tensor:
        """Compute ``[tokens, d]`` from ``[tokens, d]``."""
        hidden = self.attention(hidden, lengths, attention)
        return self.output(self.intermediate(hidden), hidden)  # type: ignore[no-any-return]


class Stack(nn.Module):
    """The layers (checkpoint name ``encoder``)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class M3Model(nn.Module):
    """XLM-RoBERTa with the sparse and the multi-vector head.

    Args:
        config: The sizes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Stack(config)
        self.sparse_linear = nn.Linear(config.hidden_size, 1)
        self.colbert_linear = nn.Linear(config.hidden_size, config.hidden_size)

    @property
    def layers(self) -> list[Layer]:
        """The transformer layers, first to last."""
        return [cast(Layer, layer) for layer in self.encoder.layer]

    def forward(
        self,
        token_ids: Tensor,
        lengths: Sequence[int],
        *,
        positions: Tensor | None = None,
        attention: Attention = padded_attention,
    ) -> Tensor:
        """Compute the last hidden states of concatenated texts.

        Args:
            token_ids: ``[tokens]`` int64, including ``<s>`` and ``</s>`` of every text.
            lengths: The number of tokens of each text; the sum is ``tokens``.
            positions: ``[tokens]``, the position of each token in its text; 0, 1, 2 … by default.
            attention: Computes exact attention within each text.

        Returns:
            ``[tokens, d]`` in the model's dtype.
        """
        if positions is None:
            positions = torch.cat([torch.arange(n, device=token_ids.device) for n in lengths])
        hidden = self.embeddings(token_ids, positions)
        for layer in self.layers:
            hidden = layer(hidden, lengths, attention)
        return hidden  # type: ignore[no-any-return]
