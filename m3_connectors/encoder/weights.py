"""Reads the tensors of a checkpoint, whole or sharded: safe formats only; names invalid files and tensors."""

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

FETCH_AGAIN = "\n  Download the file again."
FETCH_TOGETHER = "\n  Use this file and config.json from the same checkpoint."

SAFE_FILES = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
"""The patterns of the files that may contain the backbone, for the download from a hub."""
PICKLED_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
"""The same patterns for the older format."""

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_MAY_BE_ZERO = ("token_type_embeddings.weight",)


class StoredTensor(NamedTuple):
    """One tensor and the file that contains it."""

    name: str
    tensor: Tensor
    path: Path


def has_backbone(directory: Path, patterns: tuple[str, ...]) -> bool:
    """Return whether a directory contains one of these files."""
    return any(next(directory.glob(pattern), None) for pattern in patterns)


def read_backbone(directory: Path) -> tuple[Path, Iterator[StoredTensor]]:
    """Return the file that lists the weights, and its tensors, read one at a time if the format permits.

    The first of these files that exists is used: ``model.safetensors``, ``model.safetensors.index.json`` with
    its shards, ``pytorch_model.bin``, ``pytorch_model.bin.index.json`` with its shards.

    Raises:
        ModelFormat: None of them exists, one cannot be read, or the index does not match its shards.
    """
    for name in _WHOLE:
        path, index = directory / name, directory / f"{name}.index.json"
        if path.exists():
            return path, _read_file(path)
        if index.exists():
            return index, _read_shards(index)
    raise ModelFormat(
        f"{directory} has neither model.safetensors nor pytorch_model.bin, whole or in shards.\n"
        "  Download one of them; it contains the weights of the encoder."
    )


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.pt`` or ``.bin`` file; ``weights_only`` never runs code from the file.

    Raises:
        ModelFormat: The file is missing or damaged, or contains anything but tensors by name.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise ModelFormat(
            f"{path} is missing: this is an XLM-RoBERTa checkpoint without the heads of M3.\n"
            "  Use a complete M3 checkpoint, such as BAAI/bge-m3 or one made by m3 train."
        ) from None
    except PermissionError as error:
        raise ModelFormat(
            f"{path} cannot be read: {error}\n  Change its permissions so that you can read it."
        ) from error
    except Exception:  # noqa: BLE001 (pickle, zip and weights_only each raise their own exceptions)
        # The original message is not shown, also not as the cause: it advises to allow code in the file.
        raise ModelFormat(
            f"{path} cannot be read as plain tensors: it is damaged, or contains code, which was not run."
            f"{FETCH_AGAIN}"
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ModelFormat(f"{path} does not contain a state dict (tensors by name).{FETCH_AGAIN}")
    return tensors


def checked(stored: StoredTensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Check a weight and convert it to the model's dtype; returns a copy, so that the file can be unmapped.

    Args:
        stored: The tensor as stored in the file.
        shape: The shape that ``config.json`` requires.
        dtype: The dtype of the result.

    Raises:
        ModelFormat: The shape is wrong, the values are not floating-point numbers, a value is not finite, or
            all values are 0.
    """
    name, tensor, path = stored
    if tensor.shape != shape:
        raise ModelFormat(
            f"{path}: {name} is {list(tensor.shape)}; config.json requires {list(shape)}.{FETCH_TOGETHER}"
        )
    if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ModelFormat(
            f"{path}: {name} is {kind}{'' if tensor.layout is torch.strided else ' in a sparse layout'}; "
            "a weight must be float32, float16, bfloat16 or float64.\n"
            "  Use the original checkpoint, before it was quantised or converted."
        )
    weight = tensor.to(dtype, copy=True)
    least, most = extremes(weight)
    if not (math.isfinite(least) and math.isfinite(most)):
        _refuse_what_is_not_finite(stored, weight)
    if least == most == 0 and name.endswith(".weight") and not name.endswith(_MAY_BE_ZERO):
        raise ModelFormat(
            f"{path}: all {weight.numel():,} values of {name} are 0: the model was not trained, or the file "
            f"is damaged.{FETCH_AGAIN}"
        )
    return weight


def extremes(tensor: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value; NaN if the tensor contains NaN.

    It needs one pass and no copy: 0.15 s for the 568 million weights of BAAI/bge-m3; ``isfinite`` takes 5 s.
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
            "  Download the file again. If you trained it, the training diverged: use an earlier checkpoint."
        )
    too_large = int((~torch.isfinite(weight)).sum())
    raise ModelFormat(
        f"{path}: {too_large:,} of the {tensor.numel():,} values of {name} are too large for {kind}.\n"
        "  Use precision='float32'."
    )


def _read_file(path: Path) -> Iterator[StoredTensor]:
    if path.suffix == ".bin":
        for name, tensor in read_pickle(path).items():
            yield StoredTensor(name, tensor, path)
    else:
        yield from _read_safetensors(path)


def _read_safetensors(path: Path, wanted: set[str] | None = None) -> Iterator[StoredTensor]:
    """Yield all tensors of a file, or only the wanted ones."""
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
    for shard in names_by_shard:  # check all shards first, rather than fail after minutes of reading
        if not (index.parent / shard).is_file():
            raise ModelFormat(
                f"{index.parent / shard} is missing: {index.name} lists it for "
                f"{len(names_by_shard[shard]):,} tensors.\n"
                "  Download every shard that the index lists."
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
                f"{path} lacks {len(missing):,} tensors that {index.name} lists for it, "
                f"such as {min(missing)}.\n  Use the index and its shards from the same checkpoint."
            )


def _weight_map(index: Path) -> Mapping[str, str]:
    """Return the shard of each tensor name; a shard must be a file next to the index, in the same format."""
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
                f"{index}: the shard of {name} is {shard!r}; it must be the name of a {ending} file in the "
                "same directory.\n  Do not use this checkpoint unless you trust its author."
            )
    return shards
