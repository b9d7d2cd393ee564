"""Retrieval methods: who proposes candidates, and how the three scores are weighted (paper sections 3.2 and 4).

The candidate counts are the paper's: 1,000 from each list, 200 where documents are ranked by their multi-vectors.
Fusion is exact: every candidate gets all its true scores, never 0 for "not in that list".
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from m3_connectors.embeddings import COMPONENTS, Component, Float32
from m3_connectors.errors import InvalidInput

MethodName = Literal["dense", "sparse", "multi_vec", "dense_sparse", "all"]
"""The five methods by name, as ``search`` and ``--method`` take them."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Factors of s_dense, s_lex and s_mul in a fused score; iterates in that order.

    Raises:
        InvalidInput: A weight is negative or not finite, or all are 0.
    """

    dense: float
    sparse: float
    multivector: float = 0.0

    def __post_init__(self) -> None:
        for name in COMPONENTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise InvalidInput(f"weight of {name} is {value!r}: weights are finite numbers >= 0.")
            if value < 0:
                raise InvalidInput(f"weight of {name} is {value}: weights are finite numbers >= 0.")
            object.__setattr__(self, name, float(value))
        if not any(self):
            raise InvalidInput("all three weights are 0: at least one component must count.")

    def __iter__(self) -> Iterator[float]:
        return iter((self.dense, self.sparse, self.multivector))

    def of(self, component: Component) -> float:
        """The weight of one component."""
        return float(getattr(self, component))

    @classmethod
    def load(cls, path: str | os.PathLike[str], method: str = "all") -> Weights:
        """The weights of one method from a weights file (see ``load_weights``).

        Raises:
            InvalidInput: The file is no weights file or has none for this method.
        """
        weights = load_weights(path)
        if method not in weights:
            raise InvalidInput(f"{path} has no weights for {method!r}; it has {sorted(weights)}.")
        return weights[method]


def load_weights(path: str | os.PathLike[str]) -> dict[str, Weights]:
    """A weights file: JSON, method name to its three weights, such as ``{"all": [1, 0.3, 1]}``.

    Raises:
        InvalidInput: The file is not such a file.
        FileNotFoundError: There is no such file.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict) or not all(
        isinstance(value, list) and len(value) == 3 for value in raw.values()
    ):
        raise InvalidInput(f'{path} must map method names to three weights, such as {{"all": [1, 0.3, 1]}}.')
    for name in raw:
        get_method(name)
    return {name: Weights(*value) for name, value in raw.items()}


def save_weights(path: str | os.PathLike[str], weights: Mapping[str, Weights]) -> None:
    """Write a weights file that ``load_weights`` and every ``--weights`` option read."""
    rows = (f"  {json.dumps(name)}: {json.dumps(list(value))}" for name, value in weights.items())
    Path(path).write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to rank.

    Attributes:
        name: Short name, as ``--method`` takes it.
        candidates: Depth of the list that each proposing component gives.
        weights: Factors of the fused score.
    """

    name: str
    candidates: Mapping[Component, int]
    weights: Weights

    def __post_init__(self) -> None:
        if not self.candidates:
            raise InvalidInput(f"method {self.name!r} has no component that proposes candidates.")
        for component, depth in self.candidates.items():
            if component not in ("dense", "sparse"):
                raise InvalidInput(
                    f"method {self.name!r}: {component} cannot propose candidates; dense and sparse can."
                )
            if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
                raise InvalidInput(f"method {self.name!r}: {component} depth is {depth!r}; it must be >= 1.")

    @property
    def scored(self) -> tuple[Component, ...]:
        """The components that count in the score."""
        return tuple(component for component in COMPONENTS if self.weights.of(component))

    @property
    def is_one_list(self) -> bool:
        """Whether one list is ranked by its own score: its first k are the answer."""
        return len(self.candidates) == 1 and tuple(self.candidates) == self.scored

    @property
    def components(self) -> tuple[Component, ...]:
        """The components that a query needs: to propose or to score."""
        return tuple(name for name in COMPONENTS if name in self.candidates or self.weights.of(name))

    def weighted(self, dense: float, sparse: float, multivector: float = 0.0) -> Method:
        """The same candidates under other weights."""
        return dataclasses.replace(self, weights=Weights(dense, sparse, multivector))

    def deep_enough(self, k: int) -> Method:
        """The same method with lists of at least k, so that k hits can be answered."""
        if all(depth >= k for depth in self.candidates.values()):
            return self
        deeper = {component: max(depth, k) for component, depth in self.candidates.items()}
        return dataclasses.replace(self, candidates=deeper)


DENSE = Method("dense", {"dense": 1000}, Weights(1, 0, 0))
"""Dense top 1,000 by s_dense."""

SPARSE = Method("sparse", {"sparse": 1000}, Weights(0, 1, 0))
"""Sparse top 1,000 by s_lex."""

MULTI_VEC = Method("multi_vec", {"dense": 200}, Weights(0, 0, 1))
"""Dense top 200, re-ranked by s_mul."""

DENSE_SPARSE = Method("dense_sparse", {"dense": 1000, "sparse": 1000}, Weights(1, 0.3, 0))
"""Union of both lists by s_dense + 0.3 s_lex (the paper's weights for MIRACL and MKQA)."""

ALL = Method("all", {"dense": 200}, Weights(1, 0.3, 1))
"""Dense top 200 by s_dense + 0.3 s_lex + s_mul (the paper's weights for MIRACL and MKQA)."""

METHODS: dict[str, Method] = {method.name: method for method in (DENSE, SPARSE, MULTI_VEC, DENSE_SPARSE, ALL)}

MIRACL: dict[str, Weights] = {"dense_sparse": Weights(1, 0.3, 0), "all": Weights(1, 0.3, 1)}
"""The paper's weights for multilingual (MIRACL, section 4.1) and cross-lingual retrieval (MKQA, section 4.2)."""

LONG_DOCUMENTS: dict[str, Weights] = {"dense_sparse": Weights(0.2, 0.8, 0), "all": Weights(0.15, 0.5, 0.35)}
"""The paper's weights for long documents (MLDR and NarrativeQA, section 4.3)."""


def get_method(name: str) -> Method:
    """The preset of a name, with the paper's MIRACL weights.

    Raises:
        InvalidInput: No such method.
    """
    try:
        return METHODS[name]
    except (KeyError, TypeError):
        raise InvalidInput(f"unknown method {name!r}: use one of {', '.join(METHODS)}.") from None


def fuse(
    scores: Mapping[Component, Float32], weights: Weights
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """``w1 s_dense + w2 s_lex + w3 s_mul`` (paper section 3.2) in float64, ``[n]``; components of weight 0 may lack."""
    parts = [weights.of(name) * scores[name].astype(np.float64) for name in COMPONENTS if weights.of(name)]
    return np.sum(parts, axis=0)  # type: ignore[no-any-return]


def rank(ids: Sequence[str], scores: Sequence[float] | np.ndarray, k: int) -> list[int]:
    """Positions of the k best, best first; equal scores in the order of their ids."""
    values = np.asarray(scores)
    within: Sequence[int] = range(len(ids))
    if k < len(ids):
        # Those that may be among them; the ids of the others need no look.
        within = np.flatnonzero(values >= np.partition(values, -k)[-k]).tolist()
    ordered = values.tolist()
    return sorted(within, key=lambda i: (-ordered[i], ids[i]))[:k]
