"""A checkpoint from a directory or the hub: safe formats only, every wrong file named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from m3_connectors.embeddings import ModelInfo
from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import M3Model
from m3_connectors.encoder.shipped import shipped_model
from m3_connectors.errors import ModelFormat, NotFound, Unauthorised, Unavailable

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ("config.json", "tokenizer.json", "weights.json", "sparse_linear.pt", "colbert_linear.pt")
_HEADS = ("sparse_linear", "colbert_linear")
_FETCH_AGAIN = "\n  Fetch the file again."
_FETCH_TOGETHER = "\n  Take this file and config.json from the same checkpoint."


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A loaded model with all that an encoder needs beside it.

    Attributes:
        model: In evaluation mode, without gradients, on the CPU, in the dtype asked for.
        tokenizer: Neither cuts nor pads.
        info: Who this model is.
        recommended_weights: ``(dense, sparse, multivector)`` by method name, from ``weights.json``.
    """

    model: M3Model
    tokenizer: Tokenizer
    info: ModelInfo
    recommended_weights: Mapping[str, tuple[float, float, float]]


def load(model: str, *, revision: str | None, dtype: torch.dtype) -> Checkpoint:
    """Read a checkpoint.

    Args:
        model: A directory, ``m3-tiny``, or a hub name such as ``BAAI/bge-m3``. Only the last uses the network.
        revision: Branch, tag or commit of the hub repository.
        dtype: Of the weights; those on disk are converted.

    Raises:
        ModelFormat: No such directory; a file is missing, unreadable or of the wrong shape.
        NotFound, Unauthorised, Unavailable: The hub has no such model, refuses it, or cannot be reached.
    """
    directory, name, commit = _locate(model, revision)
    config = ModelConfig.load(directory / "config.json")
    tokenizer = _load_tokenizer(directory / "tokenizer.json", config)
    network, weights_fingerprint = _load_model(directory, config, dtype)
    return Checkpoint(
        model=network,
        tokenizer=tokenizer,
        info=ModelInfo(
            name=name,
            revision=commit,
            dimension=config.hidden_size,
            vocabulary_size=config.vocab_size,
            vocabulary_fingerprint=vocabulary_fingerprint(tokenizer),
            weights_fingerprint=weights_fingerprint,
        ),
        recommended_weights=_load_weights(directory / "weights.json"),
    )


def vocabulary_fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 (hex) of the table of (id, token); equal fingerprints mean comparable sparse vectors."""
    table = sorted((i, token) for token, i in tokenizer.get_vocab(with_added_tokens=True).items())
    return hashlib.sha256(json.dumps(table, ensure_ascii=False).encode()).hexdigest()


def _locate(model: str, revision: str | None) -> tuple[Path, str, str | None]:
    """Directory, name and commit of a model."""
    directory = Path(model).expanduser()
    if directory.is_dir():
        resolved = directory.resolve()
        if resolved.parent.name == "snapshots":  # of a hub cache: models--BAAI--bge-m3/snapshots/<commit>
            return (
                directory,
                resolved.parents[1].name.removeprefix("models--").replace("--", "/"),
                resolved.name,
            )
        # The same model by any spelling of its path has one name: the last two parts, as in models/m3-tiny.
        return directory, "/".join(part for part in resolved.parts[-2:] if part != resolved.anchor), None
    if found := shipped_model(model):
        return found, model, None
    if not _HUB_NAME.fullmatch(model) or model.startswith("."):
        raise ModelFormat(
            f"{model} is neither a directory nor a hub name.\n"
            "  Give the path of a directory with config.json, m3-tiny, or a hub name such as BAAI/bge-m3."
        )
    return _download(model, revision)


def _download(model: str, revision: str | None) -> tuple[Path, str, str | None]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{model}@{revision}" if revision else model
    where: dict[str, Any] = {"backend": "model hub", "operation": f"download {at}"}
    # Every name gets here that is no directory: a path of two parts looks just like a hub name.
    what = f"there is no directory {model!r} here, and"
    remedy = (
        '\n  Give a directory that exists: M3Encoder("DIRECTORY"), on the command line --model DIRECTORY.'
    )
    try:
        patterns = [*_HUB_FILES, "model.safetensors"]
        path = Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
        if not (path / "model.safetensors").exists():
            path = Path(snapshot_download(model, revision=revision, allow_patterns=["pytorch_model.bin"]))
    except GatedRepoError as error:
        raise Unauthorised(
            f"access to {model} is restricted.\n  Ask for it on the model's page, then `hf auth login`.",
            **where,
        ) from error
    except RevisionNotFoundError as error:
        raise NotFound(f"{what} the hub's {model} has no revision {revision!r}.{remedy}", **where) from error
    except RepositoryNotFoundError as error:
        raise NotFound(f"{what} the hub has no public model of that name.{remedy}", **where) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)  # the rest is general advice
        raise Unavailable(f"{what} the hub cannot be reached: {reason}{remedy}", **where) from error
    return path, model, path.name


def _load_tokenizer(path: Path, config: ModelConfig) -> Tokenizer:
    if not path.exists():
        raise ModelFormat(
            f"{path} is missing.\n  A fast tokenizer in one file is needed: save it with transformers."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise ModelFormat(f"{path} is not a tokenizer: {error}{_FETCH_AGAIN}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for token in ("<s>", "</s>", "<pad>", "<unk>"):
        if tokenizer.token_to_id(token) is None:
            raise ModelFormat(
                f"{path} has no token {token}: it is not the tokenizer of an XLM-RoBERTa model."
                f"{_FETCH_TOGETHER}"
            )
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= config.vocab_size:
        raise ModelFormat(
            f"{path} has the token id {largest}, but config.json says vocab_size {config.vocab_size}."
            f"{_FETCH_TOGETHER}"
        )
    return tokenizer


def _load_model(directory: Path, config: ModelConfig, dtype: torch.dtype) -> tuple[M3Model, str]:
    """The network, and the SHA-256 (hex) of its last layer and heads as they are on disk."""
    with torch.device("meta"):
        model = M3Model(config)
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    state: dict[str, Tensor] = {}
    prints: dict[str, bytes] = {}
    marked = (*_HEADS, f"encoder.layer.{config.num_hidden_layers - 1}.")

    def take(name: str, tensor: Tensor, path: Path) -> None:
        if expected[name] != tensor.shape:
            raise ModelFormat(
                f"{path}: {name} is {list(tensor.shape)}; config.json asks for {list(expected[name])}."
                f"{_FETCH_TOGETHER}"
            )
        if name.startswith(marked):
            prints[name] = hashlib.sha256(tensor.float().numpy().tobytes()).digest()
        state[name] = tensor.to(dtype, copy=True)  # a copy, so that nothing keeps the file mapped

    path, backbone = _read_backbone(directory)
    for key, tensor in backbone:
        name = key.removeprefix("roberta.")
        if name in expected and not name.startswith(_HEADS):  # the pooler and position_ids are not M3's
            take(name, tensor, path)
    missing = [name for name in expected if name not in state and not name.startswith(_HEADS)]
    if missing:
        raise ModelFormat(f"{path} lacks {len(missing)} tensors, the first {missing[0]}.{_FETCH_TOGETHER}")
    for head in _HEADS:
        path = directory / f"{head}.pt"
        tensors = _read_pickle(path)
        for part in ("weight", "bias"):
            if part not in tensors:
                raise ModelFormat(
                    f"{path} lacks {part}: it must hold the state of one linear layer.{_FETCH_AGAIN}"
                )
            take(f"{head}.{part}", tensors[part], path)
    model.load_state_dict(state, assign=True)
    fingerprint = hashlib.sha256(
        b"".join(name.encode() + prints[name] for name in sorted(prints))
    ).hexdigest()
    return model.eval().requires_grad_(False), fingerprint


def _read_backbone(directory: Path) -> tuple[Path, Any]:
    """The weights file and its (name, tensor) pairs, read one at a time where the format allows."""
    path = directory / "model.safetensors"
    if path.exists():
        return path, _read_safetensors(path)
    fallback = directory / "pytorch_model.bin"
    if not fallback.exists():
        raise ModelFormat(
            f"{directory} has neither model.safetensors nor pytorch_model.bin.\n"
            "  Fetch one of them: it holds the weights of the encoder."
        )
    return fallback, _read_pickle(fallback).items()


def _read_safetensors(path: Path) -> Any:
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                yield key, file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise ModelFormat(f"{path} cannot be read: {error}{_FETCH_AGAIN}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.pt`` or ``.bin`` file; ``weights_only`` refuses to run code that it may hold."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise ModelFormat(
            f"{path} is missing: this is an XLM-RoBERTa checkpoint without M3's heads.\n"
            "  Train the heads (m3 train), or take a complete M3 checkpoint such as BAAI/bge-m3."
        ) from None
    except PermissionError as error:
        raise ModelFormat(f"{path} cannot be read: {error}\n  Give yourself the right to read it.") from error
    except Exception:  # noqa: BLE001 (pickle, zip and weights_only each raise their own)
        # Not their words, and not as the cause either: PyTorch's advice is to load it with code and all.
        raise ModelFormat(
            f"{path} cannot be read as plain tensors: it is damaged, or holds code, which was not run.{_FETCH_AGAIN}"
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ModelFormat(f"{path} holds no state dict (tensors by name).{_FETCH_AGAIN}")
    return tensors


def _load_weights(path: Path) -> dict[str, tuple[float, float, float]]:
    if not path.exists():
        return {}
    remedy = (
        '\n  It looks like {"dense_sparse": [1, 0.3, 0], "all": [1, 0.3, 1]}; the encoder works without it.'
    )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        weights = {str(method): tuple(map(float, triple)) for method, triple in raw.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelFormat(f"{path} is not a table of weights: {error}{remedy}") from error
    for method, triple in weights.items():
        if len(triple) != 3:
            raise ModelFormat(
                f"{path}: {method} has {len(triple)} weights; it needs 3 (dense, sparse, multivector).{remedy}"
            )
    return weights  # type: ignore[return-value]
