"""The dimensions of a checkpoint, read from its ``config.json``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from m3_connectors.errors import ModelFormat

_FETCH_AGAIN = "\n  Download the file again."
_ARCHITECTURE = {
    "model_type": "xlm-roberta",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
}
"""The architecture of M3; a model of another architecture would load and give wrong numbers."""
_FRACTIONS = ("layer_norm_eps", "initializer_range")
_SHORTEST = 3
"""The number of tokens of the shortest text that can be encoded: ``<s>``, one token, ``</s>``."""
_TAKE_M3 = "\n  Use the directory of an M3 checkpoint, or a hub name such as BAAI/bge-m3."


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The sizes of an XLM-RoBERTa encoder; the field names are those of its ``config.json``."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    pad_token_id: int = 1
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    @property
    def max_length(self) -> int:
        """The maximum tokens of a text, with ``<s>`` and ``</s>`` (positions start after the padding id)."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @property
    def head_size(self) -> int:
        """The width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def load(cls, path: Path) -> ModelConfig:
        """Read ``config.json``.

        Raises:
            ModelFormat: The file is missing, is not JSON, describes another architecture, lacks a size, or
                has a size out of range.
        """
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise ModelFormat(
                f"{path} is missing: {path.parent} is not an M3 checkpoint directory.\n"
                "  Use a directory with config.json, tokenizer.json, the weights, sparse_linear.pt and "
                "colbert_linear.pt, or a hub name such as BAAI/bge-m3."
            ) from None
        except OSError as error:
            raise ModelFormat(
                f"{path} cannot be read: {error.strerror}.\n  Replace it with the config.json of the checkpoint."
            ) from error
        except (ValueError, RecursionError) as error:
            raise ModelFormat(f"{path} is not JSON: {error}{_FETCH_AGAIN}") from error
        if not isinstance(raw, dict):
            raise ModelFormat(f"{path} contains a JSON {type(raw).__name__}, not an object.{_FETCH_AGAIN}")
        for name, expected in _ARCHITECTURE.items():
            found = raw.get(name, None if name == "model_type" else expected)
            if found != expected:
                raise ModelFormat(
                    f"{path} has {name} {found!r}; an M3 checkpoint has {expected!r}.{_TAKE_M3}"
                )
        sizes = {field.name: raw[field.name] for field in dataclasses.fields(cls) if field.name in raw}
        for name, value in sizes.items():
            kinds = (int, float) if name in _FRACTIONS else (int,)
            least = 0 if name in (*_FRACTIONS, "pad_token_id") else 1
            is_number = isinstance(value, kinds) and not isinstance(value, bool)
            if not is_number or not least <= value < 2**31:  # true for NaN, which Python's JSON reads
                kind = "a number" if name in _FRACTIONS else "an integer"
                raise ModelFormat(f"{path} has {name} {value!r}; it must be {kind} >= {least}.{_FETCH_AGAIN}")
        try:
            config = cls(**sizes)
        except TypeError as error:
            reason = str(error).partition("missing ")[2] or str(error)
            raise ModelFormat(f"{path} lacks a size: {reason}{_FETCH_AGAIN}") from None
        if config.hidden_size % config.num_attention_heads:
            raise ModelFormat(
                f"{path} has hidden_size {config.hidden_size} and num_attention_heads "
                f"{config.num_attention_heads}; the size must be a multiple of the heads.{_FETCH_AGAIN}"
            )
        if config.pad_token_id >= config.vocab_size:
            raise ModelFormat(
                f"{path} has pad_token_id {config.pad_token_id} and vocab_size {config.vocab_size}; "
                f"the padding token must be in the vocabulary.{_FETCH_AGAIN}"
            )
        if config.max_length < _SHORTEST:
            raise ModelFormat(
                f"{path} has max_position_embeddings {config.max_position_embeddings}, too few for a text: "
                f"it needs {_SHORTEST} tokens and begins at position {config.pad_token_id + 1}.{_FETCH_AGAIN}"
            )
        return config

    def save(self, path: Path) -> None:
        """Write a ``config.json`` that transformers can read too."""
        raw = {
            "architectures": ["XLMRobertaModel"],
            "model_type": "xlm-roberta",
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "position_embedding_type": "absolute",
            **dataclasses.asdict(self),
        }
        path.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
