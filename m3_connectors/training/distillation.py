"""Losses of an external teacher, such as a cross-encoder, that has scored a query's positive and negatives.

The teacher's distribution ``T`` is the softmax of its scores over the query's own group: the positive and the
negatives with a score. The two losses are those of FlagEmbedding's trainer (``kd_loss_type``):

- ``kl``: the cross-entropy of ``T`` with the model's softmax over the group, in addition to ``L_s``.
- ``m3_kd``: in place of ``L_s``, the sum over the group of ``T`` times the contrastive loss of each member against
  all passages of the batch but the members before it. With ``T`` at the positive alone, it is ``L_s``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def without(scores: Tensor, ignored: Tensor | None) -> Tensor:
    """Return the scores with -inf where ``ignored``, which has their shape."""
    return scores if ignored is None else scores.masked_fill(ignored, -torch.inf)


class Teaching:
    """The distribution of a teacher, and its loss.

    Args:
        scores: ``[queries, passages]``, the teacher's scores; NaN outside the groups.
        targets: int64 ``[queries]``, the column of each query's positive, which has a score if any has.
        kind: The loss.
        weight: Its weight; for ``m3_kd`` the share by which it replaces ``L_s``.
        temperature: By which the teacher's scores are divided.
    """

    def __init__(
        self,
        scores: Tensor,
        targets: Tensor,
        kind: Literal["m3_kd", "kl"],
        *,
        weight: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        group = torch.isfinite(scores)
        self._queries = group.any(1).nonzero()[:, 0]
        self._group = group[self._queries]
        known = without(scores[self._queries] / temperature, ~self._group)
        self._teacher = known.softmax(1)
        # The positive first, then the negatives from the best to the worst.
        first = known.scatter(1, targets[self._queries, None], torch.inf)
        self._order = first.argsort(dim=1, descending=True, stable=True)
        self._kind = kind
        self._weight = weight

    def losses(self, logits: Tensor, contrastive: Tensor) -> Tensor:
        """Return the loss of each query; queries without scores keep their contrastive loss.

        Args:
            logits: ``[queries, passages]``, the scores of the model divided by its temperature, -inf for passages
                that are left out.
            contrastive: ``[queries]``, the losses without the teacher.
        """
        own = logits[self._queries]
        taught = self._kl(own) if self._kind == "kl" else self._m3_kd(own)
        if self._kind == "m3_kd":
            taught = taught - contrastive[self._queries]
        return contrastive.index_add(0, self._queries, self._weight * taught)

    def _kl(self, logits: Tensor) -> Tensor:
        logarithms = without(logits, ~self._group).log_softmax(1).masked_fill(~self._group, 0.0)
        return -(self._teacher * logarithms).sum(1)

    def _m3_kd(self, logits: Tensor) -> Tensor:
        total = torch.zeros(len(logits), dtype=logits.dtype, device=logits.device)
        before = torch.zeros_like(self._group)
        sizes = self._group.sum(1)
        for place in range(int(sizes.max()) if len(sizes) else 0):
            rows = (place < sizes).nonzero()[:, 0]
            member = self._order[rows, place]
            losses = F.cross_entropy(without(logits[rows], before[rows]), member, reduction="none")
            total = total.index_add(0, rows, self._teacher[rows, member].to(losses.dtype) * losses)
            before[rows, member] = True
        return total
