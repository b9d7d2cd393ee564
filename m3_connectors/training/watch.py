"""Measures of a step that show whether the scores learn, and the known ways in which a run fails silently."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from m3_connectors.training.losses import Scores

_NAMES = {"dense": "dense", "lexical": "lex", "multivector": "mul"}
_STEPS = 20
"""A failure is one that the mean of so many steps shows."""

_COLLAPSED_SHARE = 0.01
_COLLAPSED_SCORE = 1e-3
_NO_LOSS = 1e-6


@torch.no_grad()
def measures(
    scores: Scores, targets: Tensor, ignored: Tensor, cross_lingual: Tensor, token_weights: Tensor
) -> dict[str, float]:
    """Return measures of a step for the log.

    Args:
        scores: The scores of the batch.
        targets: int64 ``[queries]``, the column of each query's passage.
        ignored: bool ``[queries, passages]``, passages that are neither a target nor a negative.
        cross_lingual: bool ``[queries]``; these have no part in the lexical measures, as they share few tokens.
        token_weights: ``[tokens]``, the lexical weights of all texts.

    Returns:
        For each score (``dense``, ``lex``, ``mul``) ``NAME_positive``, the mean score of the relevant passages, and
        ``NAME_margin``, how much higher it is than the mean of the negatives. ``sparse_active`` is the share of
        tokens with a weight above 0. A measure of nothing is left out.
    """
    shown = {}
    own = torch.zeros_like(ignored).scatter_(1, targets[:, None], True)
    negative = ~own & ~ignored
    for attribute, name in _NAMES.items():
        rows = ~cross_lingual if name == "lex" else torch.ones_like(cross_lingual)
        values = getattr(scores, attribute)[rows]
        if not len(values):
            continue
        positive = values.gather(1, targets[rows, None])[:, 0]
        shown[f"{name}_positive"] = round(positive.mean().item(), 4)
        counts = negative[rows].sum(1)
        if (counts > 0).any():
            others = (values * negative[rows]).sum(1) / counts.clamp(min=1)
            shown[f"{name}_margin"] = round((positive - others)[counts > 0].mean().item(), 4)
    if len(token_weights):
        shown["sparse_active"] = round((token_weights > 0).float().mean().item(), 4)
    return shown


class Watch:
    """Looks at the records of the steps, and says once what goes wrong.

    Args:
        trains_sparse: Whether the sparse head is trained.
    """

    def __init__(self, *, trains_sparse: bool = True) -> None:
        self._last: deque[Mapping[str, Any]] = deque(maxlen=_STEPS)
        self._trains_sparse = trains_sparse
        self._said: set[str] = set()

    def warnings(self, record: Mapping[str, Any]) -> list[str]:
        """Return what is new with the record of this step."""
        self._last.append(record)
        if len(self._last) < _STEPS:
            return []
        found = {
            "sparse": self._sparse() if self._trains_sparse else "",
            "loss": self._loss(),
            **{name: self._margin(name) for name in _NAMES.values()},
        }
        fresh = {what: message for what, message in found.items() if message and what not in self._said}
        self._said |= fresh.keys()
        return [f"step {record['step']}: {message}" for message in fresh.values()]

    def _mean(self, name: str) -> float | None:
        values = [record[name] for record in self._last if name in record]
        return sum(values) / len(values) if values else None

    def _sparse(self) -> str:
        active, positive = self._mean("sparse_active"), self._mean("lex_positive")
        if active is None or (
            active >= _COLLAPSED_SHARE and (positive is None or positive >= _COLLAPSED_SCORE)
        ):
            return ""
        of_positives = (
            "" if positive is None else f", and the mean lexical score of positives is {positive:.2g}"
        )
        return (
            f"the sparse head collapses to zero: {active:.2%} of the tokens have a weight above 0{of_positives}.\n"
            "  A weight at 0 has no gradient and does not come back. Known causes: a learning_rate or a temperature "
            "that is too extreme for this head, positives without words of the query (such as pairs of two "
            "languages with mask_lexical_across_languages = false), and the loss of a random sparse head (start "
            "from a trained one, or lower the second number of lambdas)."
        )

    def _loss(self) -> str:
        loss = self._mean("loss")
        if loss is None or loss >= _NO_LOSS:
            return ""
        return (
            f"the loss of the last {_STEPS} steps is {loss:.1g}: nothing is learnt.\n"
            "  Batches with one passage, or whose other passages are all known answers, have no negatives: use a "
            "larger batch in groups, mine negatives with m3 mine, or stop; the model already tells these pairs apart."
        )

    def _margin(self, name: str) -> str:
        margin, positive = self._mean(f"{name}_margin"), self._mean(f"{name}_positive")
        if margin is None or margin > 0 or (name == "lex" and not self._trains_sparse):
            return ""
        return (
            f"the {name} score of positives ({positive:.3f}) is not above that of negatives (margin {margin:.3f}) "
            f"in the last {_STEPS} steps.\n"
            "  Positives whose score falls are normal as long as the margin grows. Look for wrong pairs, and for "
            "negatives that answer the query; else lower learning_rate."
        )
