"""Retrieval methods: where candidates come from and how the scores are weighted (paper sections 3.2 and 4).

The candidate counts are the paper's: 1,000 from each list, or 200 if documents are ranked by multi-vectors.
Fusion is exact: every candidate gets all its true scores, never 0 because it is missing in a list.
"""

from __future__ import annotations

import dataclasses
import functools
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
"""The names of the five methods, for ``search`` and ``--method``."""


_LARGEST = 1e100
"""The largest weight: a fused score is a float64, and component scores can be as large as 1e30."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of s_dense, s_lex and s_mul in a fused score; iterates in that order.

    Raises:
        InvalidInput: A weight is negative, not finite or too large, or all weights are 0.
    """

    dense: float
    sparse: float
    multivector: float = 0.0

    def __post_init__(self) -> None:
        for name in COMPONENTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise InvalidInput(
                    f"the weight of {name} is {value!r}; weights must be finite numbers >= 0.\n"
                    "  Use 0 for a component that must not count."
                )
            if value < 0:
                raise InvalidInput(
                    f"the weight of {name} is {value}; weights must be finite numbers >= 0.\n"
                    "  Use 0 for a component that must not count."
                )
            if float(value) > _LARGEST:
                raise InvalidInput(
                    f"the weight of {name} is {value}; weights are at most {_LARGEST:g}, because fused scores would be "
                    "infinite.\n  Scale all three down: only their ratios change the order of hits."
                )
            object.__setattr__(self, name, float(value))
        if not any(self):
            raise InvalidInput("all three weights are 0.\n  Give at least one component a positive weight.")

    def __iter__(self) -> Iterator[float]:
        return iter((self.dense, self.sparse, self.multivector))

    def of(self, component: Component) -> float:
        """Return the weight of one component."""
        return float(getattr(self, component))

    @classmethod
    def load(cls, path: str | os.PathLike[str], method: str = "all") -> Weights:
        """Read the weights of one method from a weights file (see ``load_weights``).

        Raises:
            InvalidInput: The file is not a weights file, or it has no weights for this method.
        """
        weights = load_weights(path)
        if method not in weights:
            raise InvalidInput(
                f"{path} has no weights for {method!r}; it has {sorted(weights)}.\n"
                "  Choose one of these methods, or tune this one with m3 tune."
            )
        return weights[method]


def load_weights(path: str | os.PathLike[str]) -> dict[str, Weights]:
    """Read a weights file: JSON with three weights by method name, such as ``{"all": [1, 0.3, 1]}``.

    Raises:
        InvalidInput: The file is not a weights file.
        FileNotFoundError: The file does not exist.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{path} is not JSON: {error}\n  Use a weights file, as m3 tune writes it."
        ) from error
    if not isinstance(raw, dict) or not all(
        isinstance(value, list) and len(value) == 3 for value in raw.values()
    ):
        raise InvalidInput(
            f"{path} does not map method names to three weights.\n"
            '  Use a file such as {"all": [1, 0.3, 1]}, as m3 tune writes it.'
        )
    for name in raw:
        get_method(name)
    return {name: Weights(*value) for name, value in raw.items()}


def save_weights(path: str | os.PathLike[str], weights: Mapping[str, Weights]) -> None:
    """Write a weights file, which ``load_weights`` and every ``--weights`` option can read."""
    rows = (f"  {json.dumps(name)}: {json.dumps(list(value))}" for name, value in weights.items())
    Path(path).write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Method:
    """A retrieval method.

    Attributes:
        name: The short name, as used by ``--method``.
        candidates: The number of candidates that each component retrieves.
        weights: The weights of the fused score.
    """

    name: str
    candidates: Mapping[Component, int]
    weights: Weights

    def __post_init__(self) -> None:
        if not self.candidates:
            raise InvalidInput(
                f"method {self.name!r} has no component that retrieves candidates.\n"
                '  Give it a depth for dense or sparse, such as {"dense": 200}.'
            )
        for component, depth in self.candidates.items():
            if component not in ("dense", "sparse"):
                raise InvalidInput(
                    f"method {self.name!r}: {component} cannot retrieve candidates.\n"
                    "  Use dense or sparse to retrieve candidates."
                )
            if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
                raise InvalidInput(
                    f"method {self.name!r}: {component} depth is {depth!r}; it must be an integer >= 1.\n"
                    "  The paper uses 1000, or 200 with multi-vectors."
                )

    @functools.cached_property
    def scored(self) -> tuple[Component, ...]:
        """The components whose weight is not 0."""
        return tuple(component for component in COMPONENTS if self.weights.of(component))

    @functools.cached_property
    def is_one_list(self) -> bool:
        """Whether there is one list that is ranked by its own score, so that its first k are the result."""
        return len(self.candidates) == 1 and tuple(self.candidates) == self.scored

    @functools.cached_property
    def components(self) -> tuple[Component, ...]:
        """The components that a query needs, to retrieve candidates or to score them."""
        return tuple(name for name in COMPONENTS if name in self.candidates or self.weights.of(name))

    def weighted(self, dense: float, sparse: float, multivector: float = 0.0) -> Method:
        """Return a method with the same candidates and other weights."""
        return dataclasses.replace(self, weights=Weights(dense, sparse, multivector))

    def deep_enough(self, k: int) -> Method:
        """Return the method with lists of at least k candidates, so that k hits can be returned."""
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
"""The paper's weights for multilingual (MIRACL, section 4.1) and cross-lingual retrieval (MKQA, 4.2)."""

LONG_DOCUMENTS: dict[str, Weights] = {"dense_sparse": Weights(0.2, 0.8, 0), "all": Weights(0.15, 0.5, 0.35)}
"""The paper's weights for long documents (MLDR and NarrativeQA, section 4.3)."""


def get_method(name: str) -> Method:
    """Return the predefined method of a name, with the paper's MIRACL weights.

    Raises:
        InvalidInput: There is no method of this name.
    """
    try:
        return METHODS[name]
    except (KeyError, TypeError):
        raise InvalidInput(f"unknown method {name!r}.\n  Use one of {', '.join(METHODS)}.") from None


def fuse(
    scores: Mapping[Component, Float32], weights: Weights
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return ``w1 s_dense + w2 s_lex + w3 s_mul`` (paper section 3.2), float64 ``[n]``.

    The scores of a component with weight 0 are not needed.
    """
    parts = [weights.of(name) * scores[name].astype(np.float64) for name in COMPONENTS if weights.of(name)]
    return np.sum(parts, axis=0)  # type: ignore[no-any-return]


def rank(ids: Sequence[str], scores: Sequence[float] | np.ndarray, k: int) -> list[int]:
    """Return the positions of the k best scores, best first; equal scores are ordered by id."""
    values = np.asarray(scores)
    within: Sequence[int] = range(len(ids))
    if k < len(ids):
        # Only these can be among the k best; the ids of the others are not needed.
        within = np.flatnonzero(values >= np.partition(values, -k)[-k]).tolist()
    ordered = values.tolist()
    return sorted(within, key=lambda i: (-ordered[i], ids[i]))[:k]
