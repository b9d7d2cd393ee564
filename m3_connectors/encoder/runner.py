"""Runs tokenised texts through the network in batches of bounded cost, and restores the caller's order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from m3_connectors.embeddings import Bool, Component, Float32, Int64, M3Embeddings, ModelInfo, MultiVectors
from m3_connectors.encoder import heads
from m3_connectors.encoder.attention import fused_attention, tiled_attention
from m3_connectors.encoder.batching import by_budget, is_out_of_memory
from m3_connectors.encoder.int8_layers import CALIBRATION_TEXTS, quantise
from m3_connectors.encoder.linear import speed_up
from m3_connectors.encoder.model import M3Model
from m3_connectors.encoder.tokens import TextTokeniser, TokenisedText
from m3_connectors.errors import ModelFormat

_TOKEN_BUDGET = {"cpu": 4096}
_TOKEN_BUDGET_GPU = 65_536


class _Outputs(NamedTuple):
    """The outputs for the concatenated texts of a batch; None for components that were not requested."""

    dense: Float32 | None
    token_weights: Float32 | None
    multivector_rows: Float32 | None


class Runner:
    """A model that is ready to run; calls from several threads alternate batch by batch.

    Args:
        model: The model on its device; its layers are replaced by faster ones (``speed_up``, ``quantise``).
        tokeniser: The tokeniser that produced the token ids.
        info: The identity of the model, which is written into every result; its precision chooses the layers.
        token_budget: The maximum number of tokens in one forward pass; by default a value for the device.
    """

    def __init__(
        self, model: M3Model, tokeniser: TextTokeniser, info: ModelInfo, *, token_budget: int | None
    ) -> None:
        self._device = model.embeddings.word_embeddings.weight.device
        self._model = model
        self._attention = tiled_attention if self._device.type == "cpu" else fused_attention
        self._tokeniser = tokeniser
        self._info = info
        if info.precision == "int8":
            fixed = [text.ids for text in tokeniser(CALIBRATION_TEXTS, model.config.max_length, mcls=False)]
            quantise(model, self._tensor(fixed), [len(ids) for ids in fixed], self._attention)
        else:
            speed_up(model)
        self._turn = threading.Lock()
        self.token_budget = token_budget or _TOKEN_BUDGET.get(self._device.type, _TOKEN_BUDGET_GPU)

    def run(
        self,
        texts: Sequence[TokenisedText],
        wanted: frozenset[Component],
        report: Callable[[int], object],
        *,
        first_index: int = 0,
    ) -> M3Embeddings:
        """Encode texts and return the results in the same order.

        If memory runs out, the batch and the budget of all later batches are halved. The error of a single
        text that does not fit, and every other error, is raised unchanged.

        Args:
            texts: The texts; may be empty.
            wanted: The components to compute; no others are computed.
            report: Called after each batch with the number of its texts.
            first_index: The index of ``texts[0]`` in the caller's input, for error messages.

        Raises:
            ModelFormat: The output for a text is not usable; the message names the text.
        """
        lengths = [len(text.ids) for text in texts]
        token_offsets = np.cumsum([0, *lengths], dtype=np.int64)
        row_offsets = np.cumsum([0, *(text.multivector_count for text in texts)], dtype=np.int64)
        d = self._info.dimension
        dense = np.empty((len(texts), d), np.float32) if "dense" in wanted else None
        weights = np.empty(token_offsets[-1], np.float32) if "sparse" in wanted else None
        rows = np.empty((row_offsets[-1], d), np.float32) if "multivector" in wanted else None
        pending = by_budget(lengths, self.token_budget)[::-1]
        while pending:
            batch = pending.pop()
            try:
                with self._turn:
                    outputs = self._forward([texts[i] for i in batch], wanted)
            except Exception as error:
                if len(batch) == 1 or not is_out_of_memory(error):
                    raise
                self.token_budget = max(1, min(self.token_budget, sum(lengths[i] for i in batch)) // 2)
                smaller = by_budget([lengths[i] for i in batch], self.token_budget)
                pending.extend([batch[j] for j in part] for part in reversed(smaller))
                continue
            self._check(outputs, [texts[i] for i in batch], [first_index + i for i in batch])
            if dense is not None:
                dense[batch] = outputs.dense
            _scatter(outputs.token_weights, weights, token_offsets, batch)
            _scatter(outputs.multivector_rows, rows, row_offsets, batch)
            report(len(batch))
        return M3Embeddings(
            dense=dense,
            sparse=None if weights is None else self._sparse(weights, texts),
            multivectors=None if rows is None else MultiVectors(rows, row_offsets),
            truncated=np.array([text.truncated for text in texts], dtype=np.bool_),
            model=self._info,
            token_counts=np.array([text.token_count for text in texts], dtype=np.int64),
            kept_token_counts=np.array([text.kept_token_count for text in texts], dtype=np.int64),
        )

    @torch.inference_mode()
    def _forward(self, texts: Sequence[TokenisedText], wanted: frozenset[Component]) -> _Outputs:
        """Run one forward pass."""
        lengths = [len(text.ids) for text in texts]
        starts = np.cumsum([0, *lengths[:-1]])
        cls_rows = self._tensor([text.cls + start for text, start in zip(texts, starts, strict=True)])
        hidden = self._model(
            self._tensor([text.ids for text in texts]),
            lengths,
            positions=self._tensor([self._tokeniser.positions(text) for text in texts]),
            attention=self._attention,
        )
        dense = weights = rows = None
        if "dense" in wanted:
            cls_texts = self._tensor([np.full(len(text.cls), i) for i, text in enumerate(texts)])
            dense = heads.dense_vectors(hidden, cls_rows, cls_texts, len(texts)).cpu().numpy()
        if "sparse" in wanted:
            weights = heads.token_weights(hidden, self._model.sparse_linear).cpu().numpy()
        if "multivector" in wanted:
            kept = torch.ones(len(hidden), dtype=torch.bool, device=self._device).index_fill_(
                0, cls_rows, False
            )
            rows = heads.multivector_rows(hidden[kept], self._model.colbert_linear).cpu().numpy()
        return _Outputs(dense, weights, rows)

    def _check(self, outputs: _Outputs, texts: Sequence[TokenisedText], indices: Sequence[int]) -> None:
        """Refuse values that are not finite and zero vectors: they could be stored, but never found."""
        one_each, token_counts = [1] * len(texts), [len(text.ids) for text in texts]
        parts = (
            ("dense vector", _usable_rows(outputs.dense), one_each),
            ("sparse weights", _usable_weights(outputs.token_weights), token_counts),
            (
                "multi-vector",
                _usable_rows(outputs.multivector_rows),
                [text.multivector_count for text in texts],
            ),
        )
        for what, usable, counts in parts:
            if usable is None or usable.all():
                continue
            at = int(np.repeat(np.arange(len(texts)), counts)[usable.argmin()])
            tokens = [str(self._tokeniser.tokenizer.id_to_token(int(id))) for id in texts[at].ids[1:-1][:5]]
            precision = self._info.precision or str(self._model.sparse_linear.weight.dtype).removeprefix(
                "torch."
            )
            damaged = "the checkpoint is damaged: use another one."
            raise ModelFormat(
                f"{self._info.name} in {precision} computed no usable {what} for texts[{indices[at]}] "
                f"({len(texts[at].ids):,} tokens: {' '.join(tokens)} …): NaN, infinity or only zeros.\n  "
                + (
                    f"Because this is float32, {damaged}"
                    if precision == "float32"
                    else f"Use precision='float32'; if that fails too, {damaged}"
                )
            )

    def _sparse(self, weights: Float32, texts: Sequence[TokenisedText]) -> sp.csr_array:
        return heads.sparse_matrix(
            weights,
            np.concatenate([np.empty(0, np.int64), *(text.ids for text in texts)]),
            np.repeat(np.arange(len(texts)), np.array([len(text.ids) for text in texts], dtype=np.int64)),
            shape=(len(texts), self._info.vocabulary_size),
            without=self._tokeniser.unweighted_ids,
        )

    def _tensor(self, parts: Sequence[Int64]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(self._device)


def _usable_rows(rows: Float32 | None) -> Bool | None:
    """Return which rows have norm 1, as all normalised rows that were finite and not 0: bool ``[rows]``."""
    return None if rows is None else np.abs(np.einsum("ij,ij->i", rows, rows) - 1) < 0.01


def _usable_weights(weights: Float32 | None) -> Bool | None:
    return None if weights is None else np.isfinite(weights)


def _scatter(source: Float32 | None, target: Float32 | None, offsets: Int64, batch: Sequence[int]) -> None:
    """Copy the concatenated parts of a batch from ``source`` to the places of their texts in ``target``."""
    if source is None or target is None:
        return
    at = 0
    for i in batch:
        size = offsets[i + 1] - offsets[i]
        target[offsets[i] : offsets[i + 1]] = source[at : at + size]
        at += size
