"""Hard negatives that are mined again during a run, with the weights of that step (as in ANCE).

The file of a refresh is named by its step, in the working folder. A run that resumes reads it, so that its steps
have the same negatives; a search that was killed goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from tokenizers import Tokenizer

from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings, ModelInfo
from m3_connectors.encoder.model import M3Model
from m3_connectors.errors import InvalidInput
from m3_connectors.json_lines import Decoder, numbered_lines
from m3_connectors.training.batches import wrap
from m3_connectors.training.data import HardNegatives, PairStore
from m3_connectors.training.dense_teacher import text_key
from m3_connectors.training.mining import MiningSettings
from m3_connectors.training.mining_files import mine_files
from m3_connectors.training.ranges import STRICT
from m3_connectors.training.validate import encode


@dataclass(frozen=True, config=STRICT)
class RefreshSettings(MiningSettings):
    """Mining during the run, with the settings of ``m3 mine``.

    Attributes:
        every: The number of steps between two searches; 0 for none. The first steps have the negatives of the data.
    """

    every: int = Field(default=0, ge=0)

    def step_of(self, step: int) -> int:
        """Return the step whose search gives a step its negatives; 0 for those of the data."""
        return step // self.every * self.every if self.every else 0


class CurrentWeights:
    """The model that is trained, as mining uses an encoder.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        step: The number of steps that the model was trained, by which its vectors are known.
        recommended_weights: The weights of the fused methods, by method.
        dtype: The dtype of the products.
    """

    def __init__(
        self,
        model: M3Model,
        tokenizer: Tokenizer,
        *,
        step: int,
        recommended_weights: Mapping[str, tuple[float, float, float]],
        dtype: torch.dtype,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._dtype = dtype
        self.recommended_weights = recommended_weights
        sizes = model.config
        self.info = ModelInfo(
            name=f"the model after {step} steps",
            revision=None,
            dimension=sizes.hidden_size,
            vocabulary_size=sizes.vocab_size,
            vocabulary_fingerprint="",
            weights_fingerprint=f"step {step}",
        )

    def encode(self, texts: Sequence[str], *, components: Sequence[Component]) -> M3Embeddings:
        """Return one row for each text; longer texts than the model are truncated."""
        ids = [
            wrap(np.array(encoding.ids, np.int64), self._model.config.max_length)
            for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]
        names = dict(zip(COMPONENTS, ("dense", "sparse", "multivectors"), strict=True))
        left_out = {names[component]: None for component in COMPONENTS if component not in components}
        return encode(self._model, ids, dtype=self._dtype).replace(model=self.info, **left_out)


def refresh(
    encoder: CurrentWeights, pairs: Path, target: Path, settings: RefreshSettings, store: PairStore
) -> HardNegatives:
    """Mine the negatives of all pairs with the current weights, or read those that were mined before.

    Args:
        encoder: The model.
        pairs: The folder of the pairs.
        target: The file of this search; it is read if it is whole.
        settings: How negatives are chosen.
        store: The same pairs, tokenised.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    mining = {field.name: getattr(settings, field.name) for field in dataclasses.fields(MiningSettings)}
    mine_files(encoder, [pairs], target, MiningSettings(**mining), keep_all=True)
    return read_mined(target, store)


def read_mined(path: Path, store: PairStore) -> HardNegatives:
    """Read a file of ``m3 mine`` as the negatives of pairs; a pair that is not in it has none.

    The scores are those of a search, not of a teacher, and are left out.

    Raises:
        InvalidInput: It has a text that the pairs do not have.
    """
    decoder = Decoder()
    texts: list[int] = []
    pairs: list[tuple[int, int]] = []
    spans: list[tuple[int, int]] = []
    for _, line in numbered_lines(path):
        row = decoder.record(line)
        start = len(texts)
        texts += map(text_key, row["neg"])
        pairs += [(text_key(row["query"]), text_key(text)) for text in row["pos"]]
        spans += [(start, len(texts))] * len(row["pos"])
    order = np.argsort(store.keys)

    def numbers(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        place = np.minimum(np.searchsorted(store.keys, keys, sorter=order), len(order) - 1)
        found = order[place]
        if not np.array_equal(store.keys[found], keys):
            raise InvalidInput(
                f"{path} has texts that the pairs do not have.\n  Remove the file: the next run mines again."
            )
        return found.astype(np.int64)

    query, passage = numbers(np.array(pairs, np.uint64).reshape(-1, 2).T.reshape(-1)).reshape(2, -1)
    mined_keys, first = np.unique(query << 32 | passage, return_index=True)
    own_keys = store.query.astype(np.int64) << 32 | store.passage.astype(np.int64)
    place = np.minimum(np.searchsorted(mined_keys, own_keys), max(len(mined_keys) - 1, 0))
    known = mined_keys[place] == own_keys
    bounds = np.array(spans, np.int64).reshape(-1, 2)[first[place]]
    bounds[~known] = 0
    return HardNegatives(
        starts=bounds[:, 0],
        ends=bounds[:, 1],
        texts=numbers(np.array(texts, np.uint64)).astype(np.int32),
        scores=np.full(len(texts), np.nan, np.float32),
        positive_scores=np.full(len(store), np.nan, np.float32),
    )
