"""RetroMAE (arXiv 2205.12035): masked auto-encoding through the state of ``<s>``.

The encoder sees a text of which few tokens are masked; its state of ``<s>`` is all that a weak decoder gets of
it. The decoder predicts every token of the text from that state and from a random sample of the other tokens,
another sample for each position ("enhanced decoding", section 3.3 of that paper), so that the state has to
contain the meaning of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import Layer
from m3_connectors.training.ranges import STRICT, Share, ShareBelow1


@dataclass(frozen=True, config=STRICT)
class RetroMAESettings:
    """The settings of masked auto-encoding.

    Attributes:
        encoder_mask_ratio: The share of a text's tokens that the encoder does not see, at least one token; the
            encoder also predicts them. 0 masks none, and the loss is only that of the decoder.
        decoder_mask_ratio: The share of the other tokens that a position of the decoder does not see; 1 leaves
            only the state of ``<s>``.
        decoder_share: The share of the tokens that the decoder predicts in a step, at random; 1 is the paper's.
            The softmax over the vocabulary takes most of the time of a small model, and this share of it.
        queries: Whether to use queries as texts too.
    """

    encoder_mask_ratio: ShareBelow1 = 0.3
    decoder_mask_ratio: Share = 0.5
    decoder_share: float = Field(default=1.0, gt=0, le=1)
    queries: bool = False


def choose(candidates: NDArray[np.bool_], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return a random share of the candidates, at least one if there are any and the share is above 0."""
    places = np.flatnonzero(candidates)
    count = min(len(places), max(1, round(share * len(places)))) if share else 0
    chosen = np.zeros(len(candidates), np.bool_)
    chosen[rng.permutation(places)[:count]] = True
    return chosen


def visible(
    rows: NDArray[np.int64], length: int, mask_ratio: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return which positions of a text some positions of the decoder attend to, bool ``[rows, length]``.

    Position 0, the state of ``<s>``, is always visible, a position itself never, and every other position
    independently with probability ``1 - mask_ratio``.
    """
    seen = rng.integers(0, 1 << 16, (len(rows), length), np.uint16) >= mask_ratio * (1 << 16)
    seen[np.arange(len(rows)), rows] = False
    seen[:, 0] = True
    return seen


Visible = Callable[[int], NDArray[np.bool_]]
"""``text -> bool [rows, length]``: which tokens each row of a text attends to."""


class DecoderLayer(Layer):
    """A transformer layer of two streams: each row attends from H1 to its own sample of H2."""

    def forward(  # type: ignore[override]
        self, queries: Tensor, context: Tensor, rows: Sequence[int], lengths: Sequence[int], seen: Visible
    ) -> Tensor:
        """Compute the states ``[rows, d]`` of some positions of concatenated texts.

        Args:
            queries: H1 ``[rows, d]``: the state of ``<s>`` plus the embedding of the row's position.
            context: H2 ``[tokens, d]``: the state of ``<s>``, then the embeddings of the unmasked tokens.
            rows: The number of rows of each text.
            lengths: The number of tokens of each text, ascending.
            seen: Which tokens each row attends to.
        """
        attention = self.attention
        split = (-1, attention.heads, queries.shape[-1] // attention.heads)
        q = attention.self.query(queries).view(split)
        k, v = (project(context).view(split) for project in (attention.self.key, attention.self.value))
        hidden = attention.output(_sampled_attention(q, k, v, rows, lengths, seen).flatten(1), queries)
        return self.output(self.intermediate(hidden), hidden)  # type: ignore[no-any-return]


class Transform(nn.Module):
    """What precedes the product with the word embeddings in XLM-RoBERTa's language model.

    Args:
        config: The sizes of the model.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute ``[rows, d]`` from ``[rows, d]``."""
        return self.LayerNorm(F.gelu(self.dense(hidden)))  # type: ignore[no-any-return]


class RetroMAEHeads(nn.Module):
    """The layers that are trained with the model and are not part of it.

    Attributes:
        decoder: The one layer of the decoder.
        transform: Used for the states of the encoder and of the decoder; their product with the word embeddings
            of the model, plus the bias, are the logits of the pieces.
        bias: The bias of each piece.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.decoder = DecoderLayer(config)
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    @torch.no_grad()
    def initialise(self, words: Tensor, std: float, seed: int) -> None:
        """Draw the matrices, and scale the transform so that the first logits are about as large as 1.

        Args:
            words: The word embeddings ``[vocabulary, d]``, whose norms may be far above 1.
            std: The standard deviation of the matrices.
            seed: The seed of the matrices.
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * std)
                module.bias.zero_()
        self.transform.LayerNorm.weight.fill_(1 / max(1.0, float(words.norm(dim=1).mean())))


_SCORES_AT_ONCE = 1 << 22


def _sampled_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Sequence[int], lengths: Sequence[int], seen: Visible
) -> Tensor:
    """Attend from rows to the visible tokens of their text: padded products of neighbouring texts."""
    outputs, text, first_row, first_token = [], 0, 0, 0
    while text < len(rows):
        # Texts are sorted by length, so that the last of a product is its longest.
        last = text + 1
        while (
            last < len(rows)
            and lengths[last] <= 1.15 * lengths[text] + 4
            and (last + 1 - text) * max(rows[text : last + 1]) * lengths[last] <= _SCORES_AT_ONCE
        ):
            last += 1
        row_counts, token_counts = rows[text:last], lengths[text:last]
        of_rows = slice(first_row, first_row + sum(row_counts))
        of_tokens = slice(first_token, first_token + sum(token_counts))
        inside = _inside(row_counts)
        mask = np.zeros((*inside.shape, max(token_counts)), np.bool_)
        mask[:, :, 0] = True  # also for padding, whose result is not used, but must not be NaN
        for number, (rows_here, tokens_here) in enumerate(zip(row_counts, token_counts, strict=True)):
            mask[number, :rows_here, :tokens_here] = seen(text + number)
        keys = _inside(token_counts)
        out = F.scaled_dot_product_attention(
            _padded(q[of_rows], inside),
            _padded(k[of_tokens], keys),
            _padded(v[of_tokens], keys),
            torch.from_numpy(mask)[:, None].to(q.device),
        )
        outputs.append(out.transpose(1, 2)[torch.from_numpy(inside).to(q.device)])
        text, first_row, first_token = last, of_rows.stop, of_tokens.stop
    return torch.cat(outputs)


def _inside(counts: Sequence[int]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = np.arange(max(counts))[None, :] < np.array(counts)[:, None]
    return inside


def _padded(parts: Tensor, inside: NDArray[np.bool_]) -> Tensor:
    padded = parts.new_zeros(*inside.shape, *parts.shape[1:])
    padded[torch.from_numpy(inside).to(parts.device)] = parts
    return padded.transpose(1, 2)


class _TiedCrossEntropy(torch.autograd.Function):
    """The exact softmax over the vocabulary, whose gradients are computed chunk by chunk with the loss."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, words: Tensor, bias: Tensor, targets: Tensor, weights: Tensor, rows: int
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty(len(targets), dtype=bias.dtype, device=states.device)
        to_states, to_words = torch.empty_like(states), torch.zeros_like(words)
        to_bias = torch.zeros_like(bias)
        working = words.to(states.dtype)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            here, wanted = states[part], targets[part, None]
            logits = (here @ working.T).to(bias.dtype).add_(bias)
            normaliser = logits.logsumexp(1, keepdim=True)
            losses[part] = (normaliser - logits.gather(1, wanted))[:, 0]
            gradient = logits.sub_(normaliser).exp_()
            gradient.scatter_add_(1, wanted, torch.full_like(normaliser, -1.0))
            gradient.mul_(weights[part, None])
            to_bias += gradient.sum(0)
            product = gradient.to(states.dtype)
            to_states[part] = product @ working
            to_words += product.T @ here
        ctx.save_for_backward(to_states, to_words, to_bias)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        to_states, to_words, to_bias = ctx.saved_tensors
        return (
            to_states * scale.to(to_states.dtype),
            to_words * scale,
            to_bias * scale,
            None,
            None,
            None,
        )


_LOGITS_AT_ONCE = 1 << 24


def tied_cross_entropy(
    states: Tensor, words: Tensor, bias: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of ``-log softmax(states @ words.T + bias)`` at the targets.

    The logits exist only for as many rows at once as make 64 MiB.

    Args:
        states: ``[rows, d]``; its dtype is that of the products.
        words: ``[vocabulary, d]``, float32.
        bias: ``[vocabulary]``, float32; the dtype of the softmax.
        targets: int64 ``[rows]``.
        weights: ``[rows]``, in the dtype of the bias.

    Returns:
        The sum, differentiable with respect to the first three, and the loss of each row.
    """
    rows = max(1, _LOGITS_AT_ONCE // len(words))
    return _TiedCrossEntropy.apply(states, words, bias, targets, weights, rows)  # type: ignore[no-any-return]
