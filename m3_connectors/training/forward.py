"""Computes differentiable representations of texts, efficiently on a CPU.

It is efficient for three reasons: the layers run on a bfloat16 copy of the weights, while the float32 master
weights are trained; only the embedding rows that a batch uses take part in the backward pass; and texts are
sorted by length, so that attention needs little padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from m3_connectors.encoder.model import M3Model, padded_attention
from m3_connectors.encoder.tokens import UNWEIGHTED_TOKENS
from m3_connectors.training.losses import Representations
from m3_connectors.training.tokenizer import FIRST_PIECE, FIRST_SPECIALS

WORDS, POSITIONS = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
TABLES = (WORDS, POSITIONS)
"""The parameters of which a batch uses few rows."""

_UNWEIGHTED_IDS = torch.tensor([FIRST_SPECIALS.index(token) for token in UNWEIGHTED_TOKENS])


@dataclass(frozen=True)
class TouchedRows:
    """Rows of a table that take part in a step; ``values`` is a leaf that accumulates their gradient."""

    numbers: Tensor
    values: Tensor


def touch(table: Tensor, ids: Tensor) -> tuple[TouchedRows, Tensor]:
    """Copy the rows ``ids`` from a table.

    Rows 0 to 3 are always included, so that the padding row keeps its number.

    Returns:
        The rows, and ``ids`` renumbered accordingly.
    """
    numbers, inverse = torch.unique(torch.cat([torch.arange(FIRST_PIECE), ids]), return_inverse=True)
    values = table.detach()[numbers].requires_grad_()
    return TouchedRows(numbers, values), inverse[FIRST_PIECE:]


def sorted_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Exact attention for texts sorted by length: a few padded products of texts with similar lengths."""
    groups: list[list[int]] = []
    for length in lengths:
        if groups and length <= LONG and length <= 1.15 * groups[-1][0] + 4:
            groups[-1].append(length)
        else:
            groups.append([length])
    # One split instead of many slices: the gradient of each slice is a full tensor filled with zeros.
    rows = [sum(group) for group in groups]
    parts = zip(*(torch.split(x, rows) for x in (q, k, v)), groups, strict=True)
    return torch.cat([_fused(*part) if part[3][0] > LONG else padded_attention(*part) for part in parts])


def _fused(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Compute one long text with PyTorch's kernel, which needs no square matrix."""
    q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)


LONG = 512
"""Texts with more tokens are computed with PyTorch's fused kernel, one by one."""


class TrainingEncoder:
    """Encodes the texts of a training step.

    Args:
        model: The float32 master weights.
        dtype: The dtype of the layers' products, bfloat16 or float32.
    """

    def __init__(self, model: M3Model, dtype: torch.dtype) -> None:
        self._model = model
        self._dtype = dtype
        self._dense_parameters = [name for name, _ in model.named_parameters() if name not in TABLES]

    def __call__(
        self, texts: Sequence[NDArray[np.int64]], first_positions: Sequence[int] | None = None
    ) -> tuple[Representations, dict[str, TouchedRows]]:
        """Encode texts with ``<s>`` and ``</s>``; also return the table rows that accumulate gradients.

        Args:
            texts: The token ids of each text.
            first_positions: The position of each text's ``<s>``; 0 by default.

        Returns:
            The representations in the order of the texts, and the table rows.
        """
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        lengths = [len(texts[i]) for i in order]
        ids = torch.from_numpy(np.concatenate([texts[i] for i in order]))
        shifts = [0] * len(texts) if first_positions is None else [first_positions[i] for i in order]
        positions = torch.cat(
            [torch.arange(shift, shift + n) for shift, n in zip(shifts, lengths, strict=True)]
        )
        parameters = dict(self._model.named_parameters())
        words, local_ids = touch(parameters[WORDS], ids)
        first = self._model.embeddings.first_position
        places, local_positions = touch(parameters[POSITIONS], positions + first)
        tables = {WORDS: words, POSITIONS: places}
        working = {name: parameters[name].to(self._dtype) for name in self._dense_parameters}
        working |= {name: rows.values.to(self._dtype) for name, rows in tables.items()}
        hidden = functional_call(
            self._model,
            working,
            (local_ids, lengths),
            {"positions": local_positions - first, "attention": sorted_attention},
        )
        return self._heads(hidden, ids, lengths, order, working), tables

    def _heads(
        self, hidden: Tensor, ids: Tensor, lengths: list[int], order: list[int], working: dict[str, Tensor]
    ) -> Representations:
        """Compute the three heads (section 3.2), in the order of the texts."""
        starts = np.concatenate([[0], np.cumsum(lengths)])
        place = np.argsort(order)
        counts = [lengths[p] - 1 for p in place]
        rows = torch.from_numpy(np.concatenate([np.arange(starts[p] + 1, starts[p + 1]) for p in place]))
        owner = torch.repeat_interleave(torch.arange(len(order)), torch.tensor(counts))
        tails, tail_ids = hidden[rows], ids[rows]
        lexical = ~torch.isin(tail_ids, _UNWEIGHTED_IDS)
        weights = F.linear(tails, working["sparse_linear.weight"], working["sparse_linear.bias"])
        vectors = F.linear(tails, working["colbert_linear.weight"], working["colbert_linear.bias"])
        return Representations(
            dense=F.normalize(hidden[torch.from_numpy(starts[:-1][place])].float(), dim=1),
            token_ids=tail_ids[lexical],
            token_weights=F.relu(weights[:, 0].float())[lexical],
            token_text=owner[lexical],
            rows=F.normalize(vectors.float(), dim=1).to(self._dtype),
            row_counts=counts,
        )


def split(texts: Representations, first: int) -> tuple[Representations, Representations]:
    """Return the first ``first`` texts, and the others."""
    border = sum(texts.row_counts[:first])
    head = texts.token_text < first
    return (
        Representations(
            texts.dense[:first],
            texts.token_ids[head],
            texts.token_weights[head],
            texts.token_text[head],
            texts.rows[:border],
            texts.row_counts[:first],
        ),
        Representations(
            texts.dense[first:],
            texts.token_ids[~head],
            texts.token_weights[~head],
            texts.token_text[~head] - first,
            texts.rows[border:],
            texts.row_counts[first:],
        ),
    )
