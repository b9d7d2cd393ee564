"""Computes differentiable representations of texts, efficiently on a CPU.

It is efficient for three reasons: the layers run on a bfloat16 copy of the weights, while the float32 master
weights are trained; only the embedding rows that a batch uses take part in the backward pass; and texts are
sorted by length, so that attention needs little padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from m3_connectors.encoder.model import M3Model, padded_attention
from m3_connectors.encoder.tokens import UNWEIGHTED_TOKENS
from m3_connectors.training.losses import Representations
from m3_connectors.training.tokenizer import FIRST_PIECE, FIRST_SPECIALS

WORDS, POSITIONS = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
TABLES = (WORDS, POSITIONS)
"""The parameters of which a batch uses few rows."""

BACKBONE = ("embeddings.", "encoder.")
"""The beginnings of the names of the backbone's parameters."""

_UNWEIGHTED_IDS = torch.tensor([FIRST_SPECIALS.index(token) for token in UNWEIGHTED_TOKENS])


@dataclass(frozen=True)
class TouchedRows:
    """Rows of a table that take part in a step; ``values`` is a leaf that accumulates their gradient."""

    numbers: Tensor
    values: Tensor


def touch(table: Tensor, ids: Tensor) -> tuple[TouchedRows, Tensor]:
    """Copy the rows ``ids`` from a table.

    Rows 0 to 3 are always included, so that the padding row keeps its number. The rows of a frozen table
    accumulate no gradient.

    Returns:
        The rows, and ``ids`` renumbered accordingly.
    """
    numbers, inverse = torch.unique(torch.cat([torch.arange(FIRST_PIECE), ids]), return_inverse=True)
    values = table.detach()[numbers].requires_grad_(table.requires_grad)
    return TouchedRows(numbers, values), inverse[FIRST_PIECE:]


def touch_all(table: Tensor) -> TouchedRows:
    """Copy all rows of a table, for an objective that trains all of them."""
    return TouchedRows(torch.arange(len(table), device=table.device), table.detach().clone().requires_grad_())


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


Head = Callable[[Tensor, Tensor, dict[str, Tensor]], tuple[Tensor, ...]]
"""``(hidden, starts, weights) -> outputs``: what is kept of the states ``[tokens, d]`` of some texts, whose ``<s>``
are at ``starts``. Each output has a row for each text or for each token, in their order."""


class TrainingEncoder:
    """Encodes the texts of a training step.

    Args:
        model: The float32 master weights.
        dtype: The dtype of the layers' products, bfloat16 or float32.
        tokens_at_once: Steps with more tokens are encoded in sub-batches of about this many (section B.3,
            Algorithm 1): the states of their layers are computed again in the backward pass instead of being
            stored, so that memory is that of one sub-batch. Gradients are those of the whole batch. 0 encodes
            every step at once.
    """

    def __init__(self, model: M3Model, dtype: torch.dtype, *, tokens_at_once: int = 0) -> None:
        self._model = model
        self._dtype = dtype
        self._tokens_at_once = tokens_at_once
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
        (dense, weights, vectors), tables = self.apply(self._heads, texts, first_positions)
        starts = np.cumsum([0, *map(len, texts)])
        ids = torch.from_numpy(np.concatenate(texts))
        counts = [len(text) - 1 for text in texts]
        rows = torch.ones(len(ids), dtype=torch.bool)
        rows[torch.from_numpy(starts[:-1])] = False
        owner = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([len(text) for text in texts]))
        lexical = ~torch.isin(ids, _UNWEIGHTED_IDS)
        return Representations(
            dense=dense,
            token_ids=ids[lexical],
            token_weights=weights[lexical],
            token_text=owner[lexical],
            rows=vectors[rows],
            row_counts=counts,
        ), tables

    def dense(
        self, texts: Sequence[NDArray[np.int64]], first_positions: Sequence[int] | None = None
    ) -> tuple[Tensor, dict[str, TouchedRows]]:
        """Return only the dense vectors, float32 ``[texts, d]`` with unit rows, and the table rows."""
        (dense,), tables = self.apply(_dense_head, texts, first_positions)
        return dense, tables

    def apply(
        self,
        head: Head,
        texts: Sequence[NDArray[np.int64]],
        first_positions: Sequence[int] | None = None,
        *,
        all_words: bool = False,
    ) -> tuple[tuple[Tensor, ...], dict[str, TouchedRows]]:
        """Compute a head on the states of texts, in sub-batches if there are many tokens.

        Args:
            head: What is kept of the states.
            texts: The token ids of each text.
            first_positions: The position of each text's ``<s>``; 0 by default.
            all_words: Whether the objective trains all word embeddings, not only those of the texts.

        Returns:
            The outputs of the head in the order of the texts, and the table rows.
        """
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        lengths = [len(texts[i]) for i in order]
        ids = torch.from_numpy(np.concatenate([texts[i] for i in order]))
        shifts = [0] * len(texts) if first_positions is None else [first_positions[i] for i in order]
        positions = torch.cat(
            [torch.arange(shift, shift + n) for shift, n in zip(shifts, lengths, strict=True)]
        )
        parameters = dict(self._model.named_parameters())
        words, local_ids = (touch_all(parameters[WORDS]), ids) if all_words else touch(parameters[WORDS], ids)
        first = self._model.embeddings.first_position
        places, local_positions = touch(parameters[POSITIONS], positions + first)
        tables = {WORDS: words, POSITIONS: places}
        working = {name: parameters[name].to(self._dtype) for name in self._dense_parameters}
        working |= {name: rows.values.to(self._dtype) for name, rows in tables.items()}

        def states(ids: Tensor, positions: Tensor, lengths: list[int]) -> tuple[Tensor, ...]:
            hidden = functional_call(
                self._model, working, (ids, lengths), {"positions": positions, "attention": sorted_attention}
            )
            starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
            return head(hidden, starts, working)

        parts = self.sub_batches(lengths)
        # A frozen backbone stores no states for the backward pass, so there is nothing to compute again.
        at_once = len(parts) == 1 or not any(
            value.requires_grad for name, value in parameters.items() if name.startswith(BACKBONE)
        )
        outputs, done, text = [], 0, 0
        for count in parts:
            here = lengths[text : text + count]
            span = slice(done, done + sum(here))
            part = (local_ids[span], local_positions[span] - first, here)
            outputs.append(states(*part) if at_once else checkpoint(states, *part, use_reentrant=False))
            text, done = text + count, span.stop
        return tuple(
            _in_order(torch.cat(pieces), order, lengths) for pieces in zip(*outputs, strict=True)
        ), tables

    def sub_batches(self, lengths: Sequence[int]) -> list[int]:
        """Return the numbers of texts of the sub-batches."""
        counts, tokens = [0], 0
        for length in lengths:
            if self._tokens_at_once and counts[-1] and tokens + length > self._tokens_at_once:
                counts.append(0)
                tokens = 0
            counts[-1] += 1
            tokens += length
        return counts

    def _heads(self, hidden: Tensor, starts: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Compute the three heads (section 3.2); those of tokens also for ``<s>``."""
        lexical = F.linear(hidden, weights["sparse_linear.weight"], weights["sparse_linear.bias"])
        vectors = F.linear(hidden, weights["colbert_linear.weight"], weights["colbert_linear.bias"])
        return (
            *_dense_head(hidden, starts, weights),
            F.relu(lexical[:, 0].float()),
            F.normalize(vectors.float(), dim=1).to(self._dtype),
        )


def _dense_head(hidden: Tensor, starts: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return (F.normalize(hidden[starts].float(), dim=1),)


def _in_order(output: Tensor, order: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Return rows of sorted texts, one for each text or one for each token, in the order of the texts."""
    place = np.argsort(order)
    if len(output) == len(order):
        return output[torch.from_numpy(place)]
    starts = np.cumsum([0, *lengths])
    return output[torch.from_numpy(np.concatenate([np.arange(starts[p], starts[p + 1]) for p in place]))]


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
