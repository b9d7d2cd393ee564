"""Dense vectors of another model, computed once, that the dense vector of the student learns to approach.

A file of teacher vectors is a safetensors file with ``keys``, uint64 ``[texts]`` (``text_key`` of each text), and
``vectors``, float16 or float32 ``[texts, teacher width]``. The teacher may be of any width: its vectors are centred
and reduced to their principal components, so that products of two targets approximate those of the teacher.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from m3_connectors.errors import InvalidInput
from m3_connectors.training.ranges import STRICT, NotNegative, Positive

_SAMPLE = 50_000
"""Vectors from which the principal components are computed."""


@dataclass(frozen=True, config=STRICT)
class DenseTeacherSettings:
    """The teacher of the dense vector.

    Attributes:
        vectors: The file of teacher vectors; empty for none.
        weight: The weight of the cosine distance in the fine-tuning stage, beside the loss of the paper.
        temperature: That of the similarities of a batch in the ``distil`` stage.
    """

    vectors: str = ""
    weight: NotNegative = 1.0
    temperature: Positive = Field(default=0.05, le=100)


def text_key(text: str) -> int:
    """Return the key of a text in a file of teacher vectors: BLAKE2b with 8 bytes of its UTF-8, little-endian."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class TeacherVectors:
    """The targets of the texts of a run.

    Args:
        path: The file of teacher vectors.
        keys: uint64 ``[texts]``, the key of each text of the run.
        width: The width of the student's dense vector.

    Attributes:
        known: The number of texts of the run that have a target.

    Raises:
        InvalidInput: The file cannot be read, its arrays have other shapes or values that are not finite, its
            vectors are narrower than the student's, or it has no vector of any text of the run.
    """

    def __init__(self, path: Path, keys: NDArray[np.uint64], width: int) -> None:
        found, vectors = _read(path)
        if vectors.shape[1] < width:
            raise InvalidInput(
                f"{path} has vectors of {vectors.shape[1]} numbers, and the model's dense vector has {width}.\n"
                "  Use a teacher that is at least as wide as the model."
            )
        order = np.argsort(found, kind="stable")
        place = np.searchsorted(found[order], keys).clip(max=len(found) - 1)
        row = order[place]
        self._row = np.where(found[row] == keys, row, -1)
        self.known = int((self._row >= 0).sum())
        if not self.known:
            raise InvalidInput(
                f"{path} has {len(found):,} vectors, but none of a text of this run.\n"
                "  Compute the vectors of the texts in data.folder, unchanged."
            )
        self._vectors = vectors
        sample = vectors[:: max(1, len(vectors) // _SAMPLE)].astype(np.float64)
        self._mean = sample.mean(0)
        _, axes = np.linalg.eigh(np.cov(sample - self._mean, rowvar=False, bias=True))
        axes = axes[:, ::-1][:, :width]
        # The sign of an eigenvector is arbitrary: another processor, or another rank, may find the opposite one.
        largest = np.abs(axes).argmax(0)
        self._axes = axes * np.sign(axes[largest, np.arange(width)])

    def has(self, texts: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which texts, given by their numbers, have a target."""
        return np.asarray(self._row[texts] >= 0)

    def targets(self, texts: NDArray[np.int64], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Return which texts have a target, and the targets of those.

        Args:
            texts: The numbers of the texts.
            device: Where the tensors are needed; the CPU by default.

        Returns:
            int64 ``[known]``, positions in ``texts``; float32 ``[known, width]``, unit rows.
        """
        rows = self._row[texts]
        known = np.flatnonzero(rows >= 0)
        reduced = (self._vectors[rows[known]].astype(np.float64) - self._mean) @ self._axes
        reduced /= np.maximum(np.linalg.norm(reduced, axis=1, keepdims=True), 1e-9)
        return torch.from_numpy(known).to(device), torch.from_numpy(reduced.astype(np.float32)).to(device)

    def distance(self, dense: Tensor, texts: NDArray[np.int64]) -> Tensor:
        """Return the mean cosine distance between dense vectors and their targets; 0 if no text has one.

        Args:
            dense: ``[texts, width]``, unit rows.
            texts: The number of each text.
        """
        known, targets = self.targets(texts, dense.device)
        if not len(known):
            return dense.new_zeros(())
        return (1 - (dense[known.to(dense.device)] * targets.to(dense.device)).sum(1)).mean()


def _read(path: Path) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    try:
        arrays = load_file(path)
        keys, vectors = arrays["keys"], arrays["vectors"]
    except (OSError, SafetensorError, KeyError) as error:
        raise InvalidInput(
            f"{path} cannot be read as teacher vectors: {str(error) or type(error).__name__}.\n"
            "  Use a safetensors file with the arrays keys and vectors; docs/training.md describes it."
        ) from error
    shaped = keys.ndim == 1 and vectors.ndim == 2 and len(keys) == len(vectors)
    if not shaped or keys.dtype != np.uint64 or vectors.dtype not in (np.float16, np.float32):
        raise InvalidInput(
            f"{path}: keys is {keys.dtype} {list(keys.shape)} and vectors {vectors.dtype} {list(vectors.shape)}.\n"
            "  Write keys as uint64 [texts] and vectors as float16 or float32 [texts, width]."
        )
    wrong = (
        "no vector"
        if not len(keys)
        else "vectors with NaN or infinity"
        if not np.isfinite(vectors).all()
        else "vectors that are all equal, which teach nothing"
        if (vectors == vectors[0]).all()
        else ""
    )
    if wrong:
        raise InvalidInput(f"{path} has {wrong}.\n  Compute the vectors again.")
    return keys, vectors
