"""What the two contrastive stages share: batches of pairs, and random positions for some passages."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_connectors.training.batches import Batch, Sampler
from m3_connectors.training.config import DataSettings
from m3_connectors.training.data import PairStore
from m3_connectors.training.stages.stage import Stage, StageInputs
from m3_connectors.training.statistics import group_counts


def make_sampler(store: PairStore, data: DataSettings, seed: int) -> Sampler:
    """Return the sampler of a run; without ``source_weights``, sources are drawn by their numbers of pairs."""
    return Sampler(
        store,
        source_weights=data.source_weights or store.pairs_by_source,
        groups=data.groups,
        query_longest=data.query_longest,
        queries_per_passage=data.queries_per_passage,
        query_tokens_per_passage=data.query_tokens_per_passage,
        language_exponent=data.language_exponent,
        negatives_per_query=data.negatives_per_query,
        seed=seed,
    )


class PairStage(Stage):
    """A stage over batches of pairs."""

    def __init__(self, inputs: StageInputs) -> None:
        data, run = inputs.config.data, inputs.config.run
        self._config = inputs.config
        self._encoder = inputs.encoder
        self._tokenizer = inputs.tokenizer
        self._room = inputs.model.config.max_length
        self.sampler = make_sampler(inputs.store, data, run.seed)
        left_out = "; ".join(f"{part} ({reason})" for part, reason in self.sampler.left_out.items())
        self.warnings = [f"these pairs are not used for training: {left_out}."] if left_out else []

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, some of whose long passages have their segments in random order."""
        data, batch = self._config.data, self.sampler.batch(step)
        rng = np.random.default_rng([self._config.run.seed, 7, step])
        passages = [
            shuffled_segments(passage, rng)
            if drawn < data.segment_shuffle and len(passage) > data.segment_shuffle_above
            else passage
            for drawn, passage in zip(rng.random(len(batch.passages)), batch.passages, strict=True)
        ]
        return dataclasses.replace(batch, passages=passages)

    def first_positions(self, batch: Batch, step: int) -> list[int]:
        """Return random positions for some passages, so that short texts train every position embedding."""
        rng = np.random.default_rng([self._config.run.seed, 3, step])
        shifted = rng.random(len(batch.passages)) < self._config.data.shifted_share
        drawn = rng.random(len(batch.passages))
        places = [
            int(share * (self._room - len(passage) + 1)) if moved else 0
            for share, moved, passage in zip(drawn, shifted, batch.passages, strict=True)
        ]
        return [0] * len(batch) + places

    def counts(self, batch: Batch) -> dict[str, Any]:
        """Return what a batch contains, for the log."""
        return {
            "source": batch.source,
            "queries": len(batch),
            "passages": len(batch.passages),
            "tokens": batch.tokens,
            **group_counts(batch.longest, batch.passages),
        }

    def batch_record(self, step: int) -> dict[str, Any]:
        """Return the tokens of a batch and their positions."""
        batch = self.batch(step)
        texts = [
            self._text_record(text, place)
            for text, place in zip(
                batch.queries + batch.passages, self.first_positions(batch, step), strict=True
            )
        ]
        return {
            "source": batch.source,
            "queries": texts[: len(batch)],
            "passages": texts[len(batch) :],
            "targets": batch.targets.tolist(),
            "ignored": [np.flatnonzero(row).tolist() for row in batch.ignored],
        }

    def _text_record(self, text: NDArray[np.int64], position: int) -> dict[str, Any]:
        return {
            "position": position,
            "ids": text.tolist(),
            "tokens": [self._tokenizer.id_to_token(int(id)) for id in text],
        }


def shuffled_segments(text: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a text with its three segments of about equal length in random order; ``<s>`` and ``</s>`` stay."""
    segments = np.array_split(text[1:-1], 3)
    return np.concatenate([text[:1], *(segments[number] for number in rng.permutation(3)), text[-1:]])
