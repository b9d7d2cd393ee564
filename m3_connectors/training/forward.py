"""Computes differentiable representations of texts, efficiently on a CPU, with one process or several.

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
from m3_connectors.training.ranks import ALONE, Ranks
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
    numbers, inverse = torch.unique(
        torch.cat([torch.arange(FIRST_PIECE, device=ids.device), ids]), return_inverse=True
    )
    values = table.detach()[numbers].requires_grad_()
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
    return torch.cat(
        [
            fused_attention(*part) if part[3][0] > LONG or q.is_cuda else padded_attention(*part)
            for part in parts
        ]
    )


def fused_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Compute exact attention with PyTorch's kernel, which stores no square matrix: for long texts and for GPUs."""
    if len(lengths) == 1:
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
    sizes = torch.tensor(lengths, device=q.device)
    inside = torch.arange(max(lengths), device=q.device)[None, :] < sizes[:, None]
    padded = [part.new_zeros(*inside.shape, *part.shape[1:]) for part in (q, k, v)]
    for room, part in zip(padded, (q, k, v), strict=True):
        room[inside] = part
    q, k, v = (room.transpose(1, 2) for room in padded)
    mask = inside[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)[inside]


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
        ranks: The processes that share the texts of a step.
    """

    def __init__(
        self, model: M3Model, dtype: torch.dtype, *, tokens_at_once: int = 0, ranks: Ranks = ALONE
    ) -> None:
        self.ranks = ranks
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
        device = dense.device
        lengths = torch.tensor([len(text) for text in texts], device=device)
        ids = torch.from_numpy(np.concatenate(texts)).to(device)
        counts = [len(text) - 1 for text in texts]
        rows = torch.ones(len(ids), dtype=torch.bool, device=device)
        rows[lengths.cumsum(0) - lengths] = False
        owner = torch.repeat_interleave(torch.arange(len(texts), device=device), lengths)
        lexical = ~torch.isin(ids, _UNWEIGHTED_IDS.to(device))
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

        With several processes, this one computes its share, and all get the outputs of all texts.

        Args:
            head: What is kept of the states.
            texts: The token ids of each text.
            first_positions: The position of each text's ``<s>``; 0 by default.
            all_words: Whether the objective trains all word embeddings, not only those of the texts.

        Returns:
            The outputs of the head in the order of the texts, and the table rows, which are those of all texts.
        """
        parameters = dict(self._model.named_parameters())
        device = parameters[WORDS].device
        shares = [
            sorted(share, key=lambda i: len(texts[i])) for share in self.ranks.shares(list(map(len, texts)))
        ]
        order = [i for share in shares for i in share]
        lengths = [len(texts[i]) for i in order]
        ids = torch.from_numpy(np.concatenate([texts[i] for i in order])).to(device)
        shifts = [0] * len(texts) if first_positions is None else [first_positions[i] for i in order]
        positions = torch.cat(
            [torch.arange(shift, shift + n, device=device) for shift, n in zip(shifts, lengths, strict=True)]
        )
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
            starts = torch.tensor([0, *lengths[:-1]], device=device).cumsum(0)
            return head(hidden, starts, working)

        text = sum(map(len, shares[: self.ranks.rank]))
        # A rank without a text computes the first one and keeps no row of it: it takes part in all sums.
        own = range(text, text + len(shares[self.ranks.rank])) or range(1)
        parts = self.sub_batches(lengths[own.start : own.stop])
        outputs, text, done = [], own.start, sum(lengths[: own.start])
        for count in parts:
            here = lengths[text : text + count]
            span = slice(done, done + sum(here))
            part = (local_ids[span], local_positions[span] - first, here)
            outputs.append(
                states(*part) if len(parts) == 1 else checkpoint(states, *part, use_reentrant=False)
            )
            text, done = text + count, span.stop
        joined = [torch.cat(pieces) for pieces in zip(*outputs, strict=True)]
        del outputs
        gathered = self._from_all_ranks(
            joined, len(own), [[len(texts[i]) for i in share] for share in shares]
        )
        return tuple(_in_order(output, order, lengths) for output in gathered), tables

    def _from_all_ranks(
        self, outputs: Sequence[Tensor], texts: int, lengths: Sequence[Sequence[int]]
    ) -> Sequence[Tensor]:
        """Return the outputs of all ranks, one rank after the other.

        Args:
            outputs: The outputs of this rank.
            texts: The number of texts that they are of.
            lengths: The lengths of the texts of each rank.
        """
        if self.ranks.size == 1:
            return outputs
        counts = [
            [len(share) if len(output) == texts else sum(share) for share in lengths] for output in outputs
        ]
        here = self.ranks.rank
        return self.ranks.gather(
            [out[: count[here]] for out, count in zip(outputs, counts, strict=True)], counts
        )

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
    if len(output) != len(order):
        starts = np.cumsum([0, *lengths])
        place = np.concatenate([np.arange(starts[p], starts[p + 1]) for p in place])
    return output[torch.from_numpy(place).to(output.device)]


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
