"""Tensors of a checkpoint's files: safe formats only, whole or in shards, and every wrong file or tensor named."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from m3_connectors.errors import ModelFormat

FETCH_AGAIN = "\n  Fetch the file again."
FETCH_TOGETHER = "\n  Take this file and config.json from the same checkpoint."

SAFE_FILES = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
"""Patterns of the files that may hold the backbone, as they are fetched from a hub."""
PICKLED_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
"""The same in the older format."""

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_MAY_BE_ZERO = ("token_type_embeddings.weight",)


class StoredTensor(NamedTuple):
    """One tensor and the file that holds it."""

    name: str
    tensor: Tensor
    path: Path


def has_backbone(directory: Path, patterns: tuple[str, ...]) -> bool:
    """Whether a directory holds one of these files."""
    return any(next(directory.glob(pattern), None) for pattern in patterns)


def read_backbone(directory: Path) -> tuple[Path, Iterator[StoredTensor]]:
    """The file that lists the weights, and its tensors, read one at a time where the format allows.

    The first of these that is there: ``model.safetensors``, ``model.safetensors.index.json`` with its shards,
    ``pytorch_model.bin``, ``pytorch_model.bin.index.json`` with its shards.

    Raises:
        ModelFormat: None is there, one cannot be read, or the index does not fit its shards.
    """
    for name in _WHOLE:
        path, index = directory / name, directory / f"{name}.index.json"
        if path.exists():
            return path, _read_file(path)
        if index.exists():
            return index, _read_shards(index)
    raise ModelFormat(
        f"{directory} has neither model.safetensors nor pytorch_model.bin, whole or in shards.\n"
        "  Fetch one of them: it holds the weights of the encoder."
    )


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.pt`` or ``.bin`` file; ``weights_only`` refuses to run code that it may hold.

    Raises:
        ModelFormat: It is missing, damaged, or holds anything but tensors by name.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise ModelFormat(
            f"{path} is missing: this is an XLM-RoBERTa checkpoint without M3's heads.\n"
            "  Take a complete M3 checkpoint: BAAI/bge-m3, or one that m3 train made."
        ) from None
    except PermissionError as error:
        raise ModelFormat(f"{path} cannot be read: {error}\n  Give yourself the right to read it.") from error
    except Exception:  # noqa: BLE001 (pickle, zip and weights_only each raise their own)
        # Not their words, and not as the cause either: PyTorch's advice is to load it with code and all.
        raise ModelFormat(
            f"{path} cannot be read as plain tensors: it is damaged, or holds code, which was not run.{FETCH_AGAIN}"
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ModelFormat(f"{path} holds no state dict (tensors by name).{FETCH_AGAIN}")
    return tensors


def checked(stored: StoredTensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A weight as the model computes with it; a copy, so that nothing keeps the file mapped.

    Args:
        stored: As the file holds it.
        shape: That ``config.json`` asks for.
        dtype: Of the result.

    Raises:
        ModelFormat: Another shape, no floating-point numbers, a value that is not finite, or nothing but zeros.
    """
    name, tensor, path = stored
    if tensor.shape != shape:
        raise ModelFormat(
            f"{path}: {name} is {list(tensor.shape)}; config.json asks for {list(shape)}.{FETCH_TOGETHER}"
        )
    if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ModelFormat(
            f"{path}: {name} is {kind}{'' if tensor.layout is torch.strided else ' in a sparse layout'}; "
            "a weight must be float32, float16, bfloat16 or float64.\n"
            "  Take the checkpoint as it was before it was quantised or converted."
        )
    weight = tensor.to(dtype, copy=True)
    least, most = extremes(weight)
    if not (math.isfinite(least) and math.isfinite(most)):
        _refuse_what_is_not_finite(stored, weight)
    if least == most == 0 and name.endswith(".weight") and not name.endswith(_MAY_BE_ZERO):
        raise ModelFormat(
            f"{path}: all {weight.numel():,} values of {name} are 0: it was never trained, or the file is damaged."
            f"{FETCH_AGAIN}"
        )
    return weight


def extremes(tensor: Tensor) -> tuple[float, float]:
    """Smallest and largest value; NaN if there is one.

    One pass and no copy: 0.15 s for the 568 million weights of BAAI/bge-m3, where ``isfinite`` takes 5 s.
    """
    least, most = torch.aminmax(tensor)
    return float(least), float(most)


def _refuse_what_is_not_finite(stored: StoredTensor, weight: Tensor) -> None:
    name, tensor, path = stored
    damaged = int((~torch.isfinite(tensor)).sum())
    kind = str(weight.dtype).removeprefix("torch.")
    if damaged:
        raise ModelFormat(
            f"{path}: {damaged:,} of the {tensor.numel():,} values of {name} are NaN or infinite.\n"
            "  Fetch the file again; if it was trained here, its training diverged: take an earlier checkpoint."
        )
    too_large = int((~torch.isfinite(weight)).sum())
    raise ModelFormat(
        f"{path}: {too_large:,} of the {tensor.numel():,} values of {name} are too large for {kind}.\n"
        "  Give precision='float32'."
    )


def _read_file(path: Path) -> Iterator[StoredTensor]:
    if path.suffix == ".bin":
        for name, tensor in read_pickle(path).items():
            yield StoredTensor(name, tensor, path)
    else:
        yield from _read_safetensors(path)


def _read_safetensors(path: Path, wanted: set[str] | None = None) -> Iterator[StoredTensor]:
    """All tensors of a file, or those of these names."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                if wanted is None or name in wanted:
                    yield StoredTensor(name, file.get_tensor(name), path)
    except (SafetensorError, OSError) as error:
        raise ModelFormat(f"{path} cannot be read: {error}{FETCH_AGAIN}") from error


def _read_shards(index: Path) -> Iterator[StoredTensor]:
    names_by_shard: dict[str, set[str]] = {}
    for name, shard in _weight_map(index).items():
        names_by_shard.setdefault(shard, set()).add(name)
    for shard in names_by_shard:  # all of them first: a missing one should not show after minutes of reading
        if not (index.parent / shard).is_file():
            raise ModelFormat(
                f"{index.parent / shard} is missing: {index.name} lists it for "
                f"{len(names_by_shard[shard]):,} tensors.\n"
                "  Fetch every shard that the index lists."
            )
    for shard, wanted in names_by_shard.items():
        path = index.parent / shard
        stored = _read_file(path) if path.suffix == ".bin" else _read_safetensors(path, wanted)
        missing = set(wanted)
        for one in stored:
            if one.name in wanted:
                missing.discard(one.name)
                yield one
        if missing:
            raise ModelFormat(
                f"{path} lacks {len(missing):,} tensors that {index.name} says it holds, "
                f"the first {min(missing)}.\n  Take the index and its shards from the same checkpoint."
            )


def _weight_map(index: Path) -> Mapping[str, str]:
    """Shard by tensor name; a shard is a file beside the index and of its format, never one elsewhere."""
    try:
        raw = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ModelFormat(f"{index} cannot be read as JSON: {error}{FETCH_AGAIN}") from None
    shards = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise ModelFormat(
            f'{index} has no "weight_map" from tensor names to shards, such as '
            f'{{"embeddings.word_embeddings.weight": "model-00001-of-00002.safetensors"}}.{FETCH_AGAIN}'
        )
    ending = ".bin" if index.name.startswith("pytorch_model") else ".safetensors"
    for name, shard in shards.items():
        plain = isinstance(shard, str) and not set(shard) & set("/\\:\0")
        if not plain or not shard.endswith(ending):
            raise ModelFormat(
                f"{index}: the shard of {name} is {shard!r}; it must be the name of a {ending} file beside the index.\n"
                "  Do not use this checkpoint if you do not know who made it."
            )
    return shards
