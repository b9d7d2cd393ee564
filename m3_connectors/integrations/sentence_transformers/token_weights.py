"""The sparse vector of M3 as a module of sentence-transformers, which has none of this kind.

``export`` copies this file beside the exported model, so it imports nothing of m3_connectors.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Module
from sentence_transformers.util.tensor import repad_flattened_features
from torch import nn


class TokenWeights(Module):
    """Computes the weight ``ReLU(w·h + b)`` of each token, and keeps the largest of each token id.

    Args:
        in_features: The width of the hidden states.
        vocabulary_size: The width of the sparse vector.
        unweighted_ids: The token ids that get no weight: the special tokens.
    """

    config_keys = ["in_features", "vocabulary_size", "unweighted_ids"]  # noqa: RUF012 (as in the library)

    def __init__(self, in_features: int, vocabulary_size: int, unweighted_ids: list[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.in_features = in_features
        self.vocabulary_size = vocabulary_size
        self.unweighted_ids = list(unweighted_ids)
        self.linear = nn.Linear(in_features, 1)

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Add ``sentence_embedding``, ``[texts, vocabulary_size]`` in the dtype of the head."""
        if "cu_seq_lens_q" in features:  # a flash attention kernel has removed the padding
            features = repad_flattened_features(features)
        ids, mask = features["input_ids"], features["attention_mask"].bool()
        weights = torch.relu(self.linear(features["token_embeddings"])).squeeze(-1)
        mask = mask & ~torch.isin(ids, torch.tensor(self.unweighted_ids, device=ids.device))
        rows = weights.new_zeros(len(ids), self.vocabulary_size)
        features["sentence_embedding"] = rows.scatter_reduce(1, ids, weights * mask, "amax")
        return features

    def get_embedding_dimension(self) -> int:
        """Return the width of the sparse vector."""
        return self.vocabulary_size

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **options: Any) -> None:
        """Write ``config.json``, the weights of the head, and this file where a saved model looks for it."""
        shutil.copyfile(__file__, Path(output_path).parent / Path(__file__).name)
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, *args: Any, **options: Any) -> TokenWeights:
        """Read what ``save`` has written; the options are those of the library's own modules."""
        places = ("subfolder", "token", "cache_folder", "revision", "local_files_only")
        where = {name: options[name] for name in places if name in options}
        module = cls(**cls.load_config(model_name_or_path, **where))
        cls.load_torch_weights(model_name_or_path, model=module, **where)
        return module
