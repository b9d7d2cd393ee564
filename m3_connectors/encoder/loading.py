"""Loads a checkpoint from a directory or the hub; reads safe formats only and names every invalid file."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from m3_connectors.errors import (
    InvalidInput,
    MissingDependency,
    ModelFormat,
    NotFound,
    Unauthorised,
    Unavailable,
)

try:
    import torch
    from torch import Tensor
    from torch.nn import functional as F
except ImportError:
    raise MissingDependency("torch", "encoder") from None

from m3_connectors.embeddings import ModelInfo
from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import M3Model
from m3_connectors.encoder.shipped import shipped_model
from m3_connectors.encoder.tokens import vocabulary_fingerprint, vocabulary_of
from m3_connectors.encoder.weights import (
    FETCH_AGAIN,
    FETCH_TOGETHER,
    PICKLED_FILES,
    SAFE_FILES,
    StoredTensor,
    checked,
    has_backbone,
    read_backbone,
    read_pickle,
)
from m3_connectors.methods import load_weights

_log = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ("config.json", "tokenizer.json", "weights.json", "sparse_linear.pt", "colbert_linear.pt")
_HEADS = ("sparse_linear", "colbert_linear")
_POINTERS = ("*.json", "*.safetensors", "*.bin", "*.pt")
_PADDED_ROWS = 1024
"""Rows of the word embeddings without a token that are usual: tables are padded to round sizes."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A loaded model with everything else that an encoder needs.

    Attributes:
        model: The network in evaluation mode, without gradients, on the CPU, in the requested dtype.
        tokenizer: The tokenizer, without truncation and padding.
        info: The identity of the model.
        recommended_weights: ``(dense, sparse, multivector)`` by method name, from ``weights.json``.
    """

    model: M3Model
    tokenizer: Tokenizer
    info: ModelInfo
    recommended_weights: Mapping[str, tuple[float, float, float]]


def load(model: str, *, revision: str | None, dtype: torch.dtype) -> Checkpoint:
    """Load a checkpoint.

    Args:
        model: A directory, ``m3-tiny``, or a hub name such as ``BAAI/bge-m3``. Only the last uses the
            network.
        revision: The branch, tag or commit of the hub repository.
        dtype: The dtype of the weights; the weights on disk are converted.

    Raises:
        ModelFormat: The directory does not exist, or a file is missing, unreadable or has the wrong shape.
        NotFound, Unauthorised, Unavailable: The hub has no such model, denies access, or cannot be reached.
    """
    directory, name, commit = _locate(model, revision)
    _refuse_pointers(directory)
    config = ModelConfig.load(directory / "config.json")
    tokenizer, vocabulary = _load_tokenizer(directory / "tokenizer.json", config)
    network, weights_fingerprint = _load_model(directory, config, dtype)
    return Checkpoint(
        model=network,
        tokenizer=tokenizer,
        info=ModelInfo(
            name=name,
            revision=commit,
            dimension=config.hidden_size,
            vocabulary_size=config.vocab_size,
            vocabulary_fingerprint=vocabulary_fingerprint(vocabulary),
            weights_fingerprint=weights_fingerprint,
        ),
        recommended_weights=_load_weights(directory / "weights.json"),
    )


def load_tokenizer(model: str, *, revision: str | None = None) -> Tokenizer:
    """Load the tokenizer of a checkpoint without its weights; arguments and errors are those of ``load``."""
    directory, _, _ = _locate(model, revision)
    _refuse_pointers(directory)
    tokenizer, _ = _load_tokenizer(directory / "tokenizer.json", ModelConfig.load(directory / "config.json"))
    return tokenizer


def load_config(model: str, *, revision: str | None = None) -> ModelConfig:
    """Load the sizes of a checkpoint without its weights; arguments and errors are those of ``load``."""
    directory, _, _ = _locate(model, revision)
    return ModelConfig.load(directory / "config.json")


def _locate(model: str, revision: str | None) -> tuple[Path, str, str | None]:
    """Return the directory, name and commit of a model."""
    directory = Path(model).expanduser()
    if directory.is_dir():
        resolved = directory.resolve()
        if resolved.parent.name == "snapshots":  # in a hub cache: models--BAAI--bge-m3/snapshots/<commit>
            return (
                directory,
                resolved.parents[1].name.removeprefix("models--").replace("--", "/"),
                resolved.name,
            )
        # A model has the same name for any spelling of its path: the last two parts, as in models/m3-tiny.
        return directory, "/".join(part for part in resolved.parts[-2:] if part != resolved.anchor), None
    if found := shipped_model(model):
        return found, model, None
    if not _HUB_NAME.fullmatch(model) or model.startswith("."):
        raise ModelFormat(
            f"{model} is neither a directory nor a hub name.\n"
            "  Use the path of a directory with config.json, m3-tiny, or a hub name such as BAAI/bge-m3."
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
    # Every name that is not a directory gets here: a path of two parts looks just like a hub name.
    what = f"there is no directory {model!r}, and"
    remedy = (
        '\n  Use an existing directory: M3Encoder("DIRECTORY"), or --model DIRECTORY on the command line.'
    )
    try:
        patterns = [*_HUB_FILES, *SAFE_FILES]
        path = Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
        if not has_backbone(path, SAFE_FILES):
            path = Path(snapshot_download(model, revision=revision, allow_patterns=[*PICKLED_FILES]))
    except GatedRepoError as error:
        raise Unauthorised(
            f"access to {model} is restricted.\n"
            "  Request access on the model's page, then run `hf auth login`.",
            **where,
        ) from error
    except RevisionNotFoundError as error:
        raise NotFound(f"{what} {model} on the hub has no revision {revision!r}.{remedy}", **where) from error
    except RepositoryNotFoundError as error:
        raise NotFound(f"{what} the hub has no public model of that name.{remedy}", **where) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)  # the rest is general advice
        raise Unavailable(f"{what} the hub cannot be reached: {reason}{remedy}", **where) from error
    return path, model, path.name


def _refuse_pointers(directory: Path) -> None:
    """Refuse what a clone without Git LFS holds instead of large files: texts that name them."""
    for pattern in _POINTERS:
        for path in sorted(directory.glob(pattern)):
            if (
                path.is_file()
                and path.stat().st_size < 1024
                and path.read_bytes().startswith(b"version https://git-lfs")
            ):
                raise ModelFormat(
                    f"{path} is a Git LFS pointer, not the file itself.\n"
                    f"  Install Git LFS, then run `git lfs pull` in {directory}."
                )


def _load_tokenizer(path: Path, config: ModelConfig) -> tuple[Tokenizer, Mapping[str, int]]:
    """Return the tokenizer and its vocabulary, which takes long to get from it."""
    if not path.exists():
        raise ModelFormat(f"{path} is missing.\n  Save the fast tokenizer as one file with transformers.")
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())  # from_file needs a third more time
    except Exception as error:  # the library raises plain Exception for every malformed file
        raise ModelFormat(f"{path} is not a tokenizer: {error}{FETCH_AGAIN}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocabulary = vocabulary_of(tokenizer)
    _check_vocabulary(vocabulary, path, config)
    return tokenizer, vocabulary


def _check_vocabulary(vocabulary: Mapping[str, int], path: Path, config: ModelConfig) -> None:
    """Check that the tokenizer is the model's, as far as its ids show it."""
    for token in ("<s>", "</s>", "<pad>", "<unk>"):
        if token not in vocabulary:
            raise ModelFormat(
                f"{path} has no token {token}, so it is not the tokenizer of an XLM-RoBERTa model."
                f"{FETCH_TOGETHER}"
            )
    padding = vocabulary["<pad>"]
    if padding != config.pad_token_id:  # positions are counted from it
        raise ModelFormat(
            f"{path} gives <pad> the id {padding}, but config.json has pad_token_id {config.pad_token_id}."
            f"{FETCH_TOGETHER}"
        )
    ids = set(vocabulary.values())
    if max(ids) >= config.vocab_size:
        raise ModelFormat(
            f"{path} has the token id {max(ids)}, but config.json has vocab_size {config.vocab_size}."
            f"{FETCH_TOGETHER}"
        )
    unused = config.vocab_size - len(ids)
    if unused > max(_PADDED_ROWS, config.vocab_size // 100):
        _log.warning(
            f"{path} has {len(ids):,} tokens, but the model has vectors for {config.vocab_size:,}: it may be the "
            f"tokenizer of another model.{FETCH_TOGETHER}"
        )


def _load_model(directory: Path, config: ModelConfig, dtype: torch.dtype) -> tuple[M3Model, str]:
    """Return the network, and the SHA-256 (hex) of its last layer and heads as stored on disk."""
    with torch.device("meta"):
        model = M3Model(config)
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    state: dict[str, Tensor] = {}
    prints: dict[str, bytes] = {}
    marked = (*_HEADS, f"encoder.layer.{config.num_hidden_layers - 1}.")

    def take(stored: StoredTensor, shape: torch.Size) -> None:
        state[stored.name] = checked(stored, shape, dtype)
        if stored.name.startswith(marked):
            content = stored.tensor.float().contiguous().numpy().tobytes()
            prints[stored.name] = hashlib.sha256(content).digest()

    path, backbone = read_backbone(directory)
    for stored_name, tensor, file in backbone:
        name = stored_name.removeprefix("roberta.")
        if name in state:
            raise ModelFormat(
                f"{file} contains {name} twice, with and without the prefix roberta.{FETCH_AGAIN}"
            )
        if name in expected and not name.startswith(_HEADS):  # M3 does not use the pooler and position_ids
            take(StoredTensor(name, tensor, file), expected[name])
        elif name.startswith(("encoder.", "embeddings.")) and not name.endswith("position_ids"):
            raise ModelFormat(
                f"{file} contains {name}, which no model of the sizes in config.json has.{FETCH_TOGETHER}"
            )
    missing = [name for name in expected if name not in state and not name.startswith(_HEADS)]
    if missing:
        raise ModelFormat(f"{path} lacks {len(missing)} tensors, such as {missing[0]}.{FETCH_TOGETHER}")
    for head in _HEADS:
        path = directory / f"{head}.pt"
        tensors = read_pickle(path)
        for part in ("weight", "bias"):
            if part not in tensors:
                raise ModelFormat(
                    f"{path} lacks {part}; it must contain the state of one linear layer.{FETCH_AGAIN}"
                )
        width = _head_width(head, tensors["weight"], expected[f"{head}.weight"], path)
        for part in ("weight", "bias"):
            name = f"{head}.{part}"
            take(StoredTensor(name, tensors[part], path), torch.Size([width, *expected[name][1:]]))
            padding = expected[name].numel() - state[name].numel()
            if padding:
                state[name] = F.pad(state[name].flatten(), (0, padding)).view(expected[name])
    model.load_state_dict(state, assign=True)
    fingerprint = hashlib.sha256(
        b"".join(name.encode() + prints[name] for name in sorted(prints))
    ).hexdigest()
    return model.eval().requires_grad_(False), fingerprint


def _head_width(head: str, weight: Tensor, expected: torch.Size, path: Path) -> int:
    """Return the number of rows of a head; the multi-vector head may have fewer than ``config.json`` says.

    FlagEmbedding trains such heads with ``colbert_dim``. Their rows are padded with zeros to the width of the
    dense vectors, which does not change their norms, their inner products, or any score.
    """
    rows, full = len(weight) if weight.dim() == 2 else 0, expected[0]
    if head != "colbert_linear" or not rows or rows == full:
        return full
    if rows == 1:
        raise ModelFormat(
            f"{path}: colbert_linear.weight is {list(weight.shape)}: rows of one dimension are all 1 or -1. "
            f"sparse_linear.pt has this shape.{FETCH_TOGETHER}"
        )
    if rows > full:
        raise ModelFormat(
            f"{path}: colbert_linear.weight is {list(weight.shape)}, for multi-vectors with {rows:,} "
            f"dimensions, more than the {full:,} of the dense vectors.\n"
            f"  Train the head with a colbert_dim of 2 to {full:,}; narrower rows are padded with zeros."
        )
    _log.info(
        f"{path}: multi-vectors of {rows:,} dimensions are padded with zeros to {full:,}; no score changes."
    )
    return rows


def _load_weights(path: Path) -> dict[str, tuple[float, float, float]]:
    if not path.exists():
        return {}
    try:
        weights = load_weights(path)
    except (InvalidInput, OSError) as error:
        reason = str(error).splitlines()[0].removeprefix(f"{path} ")
        raise ModelFormat(
            f"{path} is not a weights file: {reason}\n"
            '  Use {"dense_sparse": [1, 0.3, 0], "all": [1, 0.3, 1]}, or delete the file, which is optional.'
        ) from error
    return {method: (triple.dense, triple.sparse, triple.multivector) for method, triple in weights.items()}
