"""The objectives of paper section 3.3 for all query-passage pairs of a batch.

Every score matrix is ``[queries, passages]``. ``targets`` is the relevant passage of each query; all others
are its negatives. Several queries may share a passage, which is then encoded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pydantic.dataclasses
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from m3_connectors.errors import InvalidInput
from m3_connectors.training.distillation import Teaching, without
from m3_connectors.training.ranges import STRICT, NotNegative, Positive, require_one_above_0


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class LossSettings:
    """The constants of section 3.3.

    Attributes:
        temperature: tau, by which every score is divided.
        inter_weights: The weights of the dense, lexical and multi-vector scores in ``s_inter``.
        lambdas: The weights of L_dense, L_lex and L_mul, and of their distilled counterparts.
        mask_lexical_across_languages: Whether to exclude pairs of two languages from L_lex and L'_lex: they
            share few tokens, so their loss cannot decrease and only disturbs the weights.
        kd: How the teacher's scores of the data (``pos_scores``, ``neg_scores``) are used, by the names of
            FlagEmbedding's ``kd_loss_type``: ``m3_kd`` (its ``m3_kd_loss``), ``kl`` (its ``kl_div``), or ``none``.
            See ``training.distillation``.
        kd_weight: The weight of that loss; for ``m3_kd`` the share by which it replaces ``L_s``, at most 1.
        kd_temperature: By which the teacher's scores are divided before their softmax. 1 suits the logits of a
            cross-encoder; scores between 0 and 1, such as those of ``m3 mine``, need about 0.02.
    """

    # Scores are about 1: far above it, all passages have one probability, and nothing is learnt.
    temperature: float = Field(default=0.02, gt=0, le=100)
    inter_weights: tuple[NotNegative, NotNegative, NotNegative] = (1.0, 0.3, 1.0)
    lambdas: tuple[NotNegative, NotNegative, NotNegative] = (1.0, 0.1, 1.0)
    mask_lexical_across_languages: bool = True
    kd: Literal["none", "m3_kd", "kl"] = "none"
    kd_weight: NotNegative = 1.0
    kd_temperature: Positive = 1.0

    def __post_init__(self) -> None:
        require_one_above_0("inter_weights", self.inter_weights)
        if self.kd == "m3_kd" and self.kd_weight > 1:
            raise InvalidInput(
                f"kd_weight is {self.kd_weight}, but m3_kd replaces a share of the loss.\n"
                '  Set kd_weight to at most 1, or kd to "kl".'
            )


@dataclass(frozen=True)
class Representations:
    """The differentiable outputs of the model for concatenated texts.

    Attributes:
        dense: ``[texts, d]``, unit rows.
        token_ids: int64 ``[lexical tokens]``, without special tokens.
        token_weights: ``[lexical tokens]``, at least 0.
        token_text: int64 ``[lexical tokens]``, the index of the text of each token.
        rows: ``[rows, d]``, unit rows, one text after the other.
        row_counts: The number of rows of each text.
    """

    dense: Tensor
    token_ids: Tensor
    token_weights: Tensor
    token_text: Tensor
    rows: Tensor
    row_counts: Sequence[int]


@dataclass(frozen=True)
class Scores:
    """The three score matrices of a batch, ``[queries, passages]`` float32."""

    dense: Tensor
    lexical: Tensor
    multivector: Tensor

    def inter(self, weights: tuple[float, float, float]) -> Tensor:
        """Return ``s_inter``, the weighted sum."""
        return weights[0] * self.dense + weights[1] * self.lexical + weights[2] * self.multivector


def score_all(queries: Representations, passages: Representations) -> Scores:
    """Return the scores of every query with every passage (section 3.2)."""
    return Scores(
        dense=queries.dense.float() @ passages.dense.float().T,
        lexical=lexical_scores(queries, passages),
        multivector=late_interaction(queries.rows, queries.row_counts, passages.rows, passages.row_counts),
    )


def lexical_scores(queries: Representations, passages: Representations) -> Tensor:
    """Return ``s_lex`` of every pair, over shared tokens; a token's weight is its maximum in the text."""
    vocabulary = torch.unique(queries.token_ids)
    if not len(vocabulary):
        return queries.dense.new_zeros(len(queries.row_counts), len(passages.row_counts), dtype=torch.float32)

    def spread(texts: Representations) -> Tensor:
        column = torch.searchsorted(vocabulary, texts.token_ids).clamp_(max=len(vocabulary) - 1)
        known = vocabulary[column] == texts.token_ids
        cells = texts.token_text[known] * len(vocabulary) + column[known]
        flat = torch.zeros(len(texts.row_counts) * len(vocabulary), dtype=torch.float32, device=cells.device)
        weights = texts.token_weights[known].float()
        return flat.scatter_reduce(0, cells, weights, "amax").view(-1, len(vocabulary))

    return spread(queries) @ spread(passages).T


def _column_maxima(products: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest value of each column, float32, and its row."""
    if products.dtype != torch.bfloat16 or len(products) >= 1 << 16 or products.is_cuda:
        values, rows = products.max(0)
        return values.float(), rows
    # A bfloat16 is the upper half of a float32. With the row number in the lower half, one vectorised maximum
    # finds both. PyTorch's maximum with indices takes more than twice as long on a CPU.
    numbers = torch.arange(len(products), dtype=torch.int32)[:, None]
    packed = (products.float().view(torch.int32) | numbers).view(torch.float32).amax(0).view(torch.int32)
    return (packed & -65536).view(torch.float32), (packed & 65535).long()


_AT_ONCE = 1 << 24
"""Late interaction holds about this many numbers at a time, apart from the rows and their gradients."""


def _blocks(counts: Sequence[int], most: int) -> Iterator[tuple[slice, slice]]:
    """Yield consecutive passages with about ``most`` rows together: their numbers, and their rows."""
    first = start = rows = 0
    for passage, count in enumerate(counts):
        if rows and rows + count > most:
            yield slice(first, passage), slice(start, start + rows)
            first, start, rows = passage, start + rows, 0
        rows += count
    yield slice(first, len(counts)), slice(start, start + rows)


class _LateInteraction(torch.autograd.Function):
    """MaxSim of every pair in blocks of passages; the backward pass uses only the best rows, which are kept."""

    @staticmethod
    def forward(
        ctx: Any, query_rows: Tensor, query_counts: Tensor, passage_rows: Tensor, passage_counts: list[int]
    ) -> Tensor:
        best = torch.empty(len(passage_counts), len(query_rows), device=query_rows.device)
        # The row of each maximum within its passage.
        where = torch.empty(best.shape, dtype=torch.int32, device=best.device)
        for passages, rows in _blocks(passage_counts, _AT_ONCE // max(1, len(query_rows))):
            products = passage_rows[rows] @ query_rows.T
            for passage, part in enumerate(torch.split(products, passage_counts[passages]), passages.start):
                best[passage], where[passage] = _column_maxima(part)
        owner = torch.repeat_interleave(torch.arange(len(query_counts), device=best.device), query_counts)
        sums = torch.zeros(len(query_counts), len(passage_counts), device=best.device)
        sums.index_add_(0, owner, best.T)
        ctx.save_for_backward(query_rows, passage_rows, where, owner, query_counts)
        ctx.passage_counts = passage_counts
        return sums / query_counts[:, None]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, Tensor, None]:
        (gradient,) = gradients
        query_rows, passage_rows, where, owner, query_counts = ctx.saved_tensors
        counts, device = ctx.passage_counts, owner.device
        per_row = (gradient / query_counts[:, None])[owner]
        to_queries = torch.zeros(query_rows.shape, device=device)
        to_passages = torch.empty_like(passage_rows)
        for passages, rows in _blocks(counts, _AT_ONCE // passage_rows.shape[1]):
            sizes = torch.tensor([0, *counts[passages][:-1]], device=device)
            places = where[passages] + sizes.cumsum(0)[:, None]
            # Row r of this sparse matrix contains, for every passage, the gradient at the best passage row.
            chosen = torch.sparse_coo_tensor(
                torch.stack(
                    [torch.arange(len(owner), device=device).repeat(len(places)), places.reshape(-1)]
                ),
                per_row[:, passages].T.reshape(-1),
                (len(query_rows), rows.stop - rows.start),
                check_invariants=False,
            )
            to_queries += torch.sparse.mm(chosen, passage_rows[rows].float())
            to_passages[rows] = torch.sparse.mm(chosen.T, query_rows.float()).to(passage_rows.dtype)
        return to_queries.to(query_rows.dtype), None, to_passages, None


def late_interaction(
    query_rows: Tensor, query_counts: Sequence[int], passage_rows: Tensor, passage_counts: Sequence[int]
) -> Tensor:
    """Return ``s_mul`` of every pair, differentiable.

    Args:
        query_rows: ``[rows, d]`` of all queries, one after the other.
        query_counts: The number of rows of each query, at least 1.
        passage_rows: ``[rows, d]`` of all passages.
        passage_counts: The number of rows of each passage, at least 1.

    Returns:
        float32 ``[queries, passages]``: the mean over query rows of the highest product with a passage row.
    """
    counts = torch.as_tensor(query_counts, dtype=torch.int64, device=query_rows.device)
    return _LateInteraction.apply(query_rows, counts, passage_rows, list(passage_counts))  # type: ignore[no-any-return]


def contrastive(
    scores: Tensor,
    targets: Tensor,
    temperature: float,
    included: Tensor | None = None,
    ignored: Tensor | None = None,
    teaching: Teaching | None = None,
) -> Tensor:
    """Return ``L_s``: the mean over queries of ``-log softmax(s / tau)`` at the query's relevant passage.

    Args:
        scores: ``[queries, passages]``.
        targets: int64 ``[queries]``, the column of each query's passage.
        temperature: tau.
        included: bool ``[queries]``; the other queries are ignored. The loss is 0 if none is included.
        ignored: bool ``[queries, passages]``, passages that are left out of a query's softmax; never its target.
        teaching: The losses of a teacher, which replace those of the queries that it has scored.
    """
    logits = without(scores / temperature, ignored)
    losses = F.cross_entropy(logits, targets, reduction="none")
    return _mean(losses if teaching is None else teaching.losses(logits, losses), included)


def distilled(
    scores: Tensor,
    teacher: Tensor,
    temperature: float,
    included: Tensor | None = None,
    ignored: Tensor | None = None,
) -> Tensor:
    """Return ``L'_s``: the mean over queries of the cross-entropy with the teacher's distribution.

    Args:
        scores: ``[queries, passages]``.
        teacher: ``[queries, passages]``, distributions over the passages; 0 where ``ignored``.
        temperature: tau.
        included: As for :func:`contrastive`.
        ignored: As for :func:`contrastive`.
    """
    logarithms = without(scores / temperature, ignored).log_softmax(1)
    # 0 * -inf would be NaN.
    logarithms = logarithms if ignored is None else logarithms.masked_fill(ignored, 0.0)
    return _mean(-(teacher * logarithms).sum(1), included)


def _mean(losses: Tensor, included: Tensor | None) -> Tensor:
    if included is None:
        return losses.mean()
    return (losses * included).sum() / included.sum().clamp(min=1)


def objective(
    scores: Scores,
    targets: Tensor,
    settings: LossSettings,
    *,
    cross_lingual: Tensor,
    self_distillation: bool,
    ignored: Tensor | None = None,
    teacher_scores: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return L, or ``L_final = (L + L') / 2`` with self-distillation.

    Args:
        scores: The scores of the batch.
        targets: int64 ``[queries]``, the column of each query's passage.
        settings: The constants.
        cross_lingual: bool ``[queries]``; see ``mask_lexical_across_languages``.
        self_distillation: Whether to add L'.
        ignored: bool ``[queries, passages]``, passages that are left out of a query's softmax; never its target.
        teacher_scores: ``[queries, passages]``, see ``batches.Batch.teacher``; used by ``settings.kd``.

    Returns:
        The loss, and its parts by name for the log.
    """
    tau, inter = settings.temperature, scores.inter(settings.inter_weights)
    teaching = None
    if teacher_scores is not None and settings.kd != "none":
        teaching = Teaching(
            teacher_scores,
            targets,
            settings.kd,
            weight=settings.kd_weight,
            temperature=settings.kd_temperature,
        )
    lexical_rows = ~cross_lingual if settings.mask_lexical_across_languages else None
    views = ((scores.dense, None), (scores.lexical, lexical_rows), (scores.multivector, None))
    parts = [contrastive(score, targets, tau, rows, ignored, teaching) for score, rows in views]
    loss_inter = contrastive(inter, targets, tau, None, ignored, teaching)
    loss = (_weighted(settings.lambdas, parts) + loss_inter) / 4
    log = dict(zip(("dense", "lex", "mul"), (part.item() for part in parts), strict=True))
    log["inter"] = loss_inter.item()
    if self_distillation:
        teacher = F.softmax(without(inter.detach() / tau, ignored), 1)
        students = [distilled(score, teacher, tau, rows, ignored) for score, rows in views]
        loss_distilled = _weighted(settings.lambdas, students) / 3
        loss = (loss + loss_distilled) / 2
        log["distilled"] = loss_distilled.item()
    return loss, log


def _weighted(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum()
