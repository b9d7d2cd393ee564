"""Writes an M3 model as three directories that sentence-transformers loads: dense, sparse and multivector.

sentence-transformers has one model class for each kind of vector, and each reads one directory. The backbone is
written once: the other directories have hard links to it, where the file system has them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from m3_connectors.encoder.loading import Checkpoint, load
from m3_connectors.encoder.tokens import UNWEIGHTED_TOKENS
from m3_connectors.errors import InvalidInput
from m3_connectors.training.checkpoint import export_model
from m3_connectors.training.disk import naming_a_full_disk

_SHARED = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "sentence_bert_config.json",
)
_MODULES = "sentence_transformers.base.modules"
_Written = tuple[str, Mapping[str, Any], Mapping[str, Tensor]]
"""The class of a module, its settings and its weights."""

_HEAD = Path(__file__).with_name("token_weights.py")


def export(
    model: str | os.PathLike[str], folder: str | os.PathLike[str], *, revision: str | None = None
) -> Path:
    """Write a model for sentence-transformers 6.2 or later, in float32.

    - ``dense``, for ``SentenceTransformer``: the normalised state of ``<s>``. It is also an M3 checkpoint.
    - ``sparse``, for ``SparseEncoder``: the weights of the tokens. It needs ``trust_remote_code=True``, because its
      head is a module of the directory.
    - ``multivector``, for ``MultiVectorEncoder``: one row for each token except ``<s>``, compared by ``meanmaxsim``,
      which is s_mul.

    The vectors are those of ``M3Encoder``. One text differs: the multi-vectors of a text that contains ``<s>`` itself
    lack the rows of these tokens, because the library leaves tokens out by their id.

    Args:
        model: A directory, ``m3-tiny``, or a hub name such as ``BAAI/bge-m3``.
        folder: The directory to create; an existing one must be empty.
        revision: The branch, tag or commit of the hub repository.

    Returns:
        The directory.

    Raises:
        InvalidInput: The directory is not empty.
        ModelFormat: The model is not an M3 checkpoint.
        NotFound, Unauthorised, Unavailable: The hub has no such model, denies access, or cannot be reached.
        StorageFull: The disk is full; nothing is left of the export.
    """
    target = Path(folder)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InvalidInput(
            f"{target} exists and is not an empty directory.\n  Give a new directory, or remove this one first."
        )
    if not target.absolute().parent.is_dir():
        raise InvalidInput(
            f"{target}: the directory {target.absolute().parent} does not exist.\n"
            "  Create it, or choose another one."
        )
    checkpoint = load(os.fspath(model), revision=revision, dtype=torch.float32)
    fresh = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)  # of an export that was killed
    size = sum(tensor.nbytes for tensor in checkpoint.model.state_dict().values()) / 1e6
    try:
        with naming_a_full_disk(fresh, f"Free {size:,.0f} MB there, then export again."):
            _write_dense(fresh / "dense", checkpoint)
            _write_sparse(fresh / "sparse", checkpoint, fresh / "dense")
            _write_multivector(fresh / "multivector", checkpoint, fresh / "dense")
        if target.exists():
            target.rmdir()
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def _write_dense(folder: Path, checkpoint: Checkpoint) -> None:
    export_model(checkpoint.model, checkpoint.tokenizer, folder, dtype=torch.float32)
    _write_json(folder / "config_sentence_transformers.json", _settings("SentenceTransformer", "cosine"))


def _write_sparse(folder: Path, checkpoint: Checkpoint, backbone: Path) -> None:
    _start(folder, backbone, "SparseEncoder", "dot")
    head = checkpoint.model.sparse_linear
    settings = {
        "in_features": head.in_features,
        "vocabulary_size": checkpoint.info.vocabulary_size,
        "unweighted_ids": [checkpoint.tokenizer.token_to_id(token) for token in UNWEIGHTED_TOKENS],
    }
    shutil.copyfile(_HEAD, folder / _HEAD.name)
    _write_modules(folder, [("token_weights.TokenWeights", settings, _linear(head))])


def _write_multivector(folder: Path, checkpoint: Checkpoint, backbone: Path) -> None:
    _start(folder, backbone, "MultiVectorEncoder", "meanmaxsim")
    head = checkpoint.model.colbert_linear
    rows = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    projection = {
        "in_features": head.in_features,
        "out_features": head.out_features,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
        **rows,
    }
    mask = {
        "skiplist_words": ["<s>"],
        "skiplist_tasks": ["query", "document"],
        "keep_only_token_ids": None,
    }
    modules: list[_Written] = [
        (f"{_MODULES}.Dense", projection, _linear(head)),
        (f"{_MODULES}.Normalize", rows, {}),
        ("sentence_transformers.multi_vector_encoder.modules.MultiVectorMask", mask, {}),
    ]
    _write_modules(folder, modules)


def _start(folder: Path, backbone: Path, kind: str, similarity: str) -> None:
    folder.mkdir()
    for name in _SHARED:
        try:
            os.link(backbone / name, folder / name)
        except OSError:  # this file system has no hard links
            shutil.copyfile(backbone / name, folder / name)
    _write_json(folder / "config_sentence_transformers.json", _settings(kind, similarity))


def _settings(kind: str, similarity: str) -> dict[str, object]:
    return {
        "model_type": kind,
        "similarity_fn_name": similarity,
        "prompts": {"query": "", "document": ""},  # M3 takes texts as they are
        "default_prompt_name": None,
    }


def _write_modules(
    folder: Path, heads: Iterable[tuple[str, Mapping[str, Any], Mapping[str, Tensor]]]
) -> None:
    """Write the modules that follow the backbone, each in a directory of its own, and the list of all."""
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"{_MODULES}.Transformer"}]
    for number, (kind, settings, weights) in enumerate(heads, 1):
        place = f"{number}_{kind.rpartition('.')[2]}"
        (folder / place).mkdir()
        _write_json(folder / place / "config.json", settings)
        if weights:
            save_file(dict(weights), folder / place / "model.safetensors", metadata={"format": "pt"})
        listed.append({"idx": number, "name": str(number), "path": place, "type": kind})
    _write_json(folder / "modules.json", listed)


def _linear(head: nn.Module) -> dict[str, Tensor]:
    return {f"linear.{name}": value.detach().contiguous() for name, value in head.state_dict().items()}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
