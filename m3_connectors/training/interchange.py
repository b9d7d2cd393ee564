"""Writes the files with which other libraries load a model correctly.

Without them, transformers guesses a tokenizer from the architecture (XLM-RoBERTa's, whose normalisation
differs from ours), and sentence-transformers uses the mean of all tokens as the dense vector, where M3 uses
the state of ``<s>``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.training.tokenizer import END, MASK, PAD, START, UNKNOWN


def write_interchange_files(folder: Path, config: ModelConfig) -> None:
    """Write the files that transformers and sentence-transformers need in addition to ``config.json``.

    - ``tokenizer_config.json``: the tokenizer is that of ``tokenizer.json``, unchanged;
    - ``modules.json``, ``sentence_bert_config.json`` and ``1_Pooling/config.json``: the vector of a text is
    the
      normalised state of ``<s>``.

    Args:
        folder: The directory of the model.
        config: The sizes of the model.
    """
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_length,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            "bos_token": START,
            "cls_token": START,
            "eos_token": END,
            "sep_token": END,
            "pad_token": PAD,
            "unk_token": UNKNOWN,
            "mask_token": MASK,
        },
    )
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    _write(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(modules)
        ],
    )
    _write(
        folder / "sentence_bert_config.json", {"max_seq_length": config.max_length, "do_lower_case": False}
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    _write(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": config.hidden_size,
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
        },
    )


def write_dense_widths(folder: Path, widths: Sequence[int]) -> None:
    """Add to ``config.json`` at which first dimensions the dense vector was trained; other libraries ignore it."""
    path = folder / "config.json"
    _write(path, json.loads(path.read_text(encoding="utf-8")) | {"matryoshka_dims": list(widths)})


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
