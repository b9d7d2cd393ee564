"""An encoder without a network, for tests of what happens around it: fast, seeded by the text, and it counts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from m3_connectors.backends.schema import Storage
from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings, ModelInfo
from m3_connectors.testing.worlds import join, unit_rows

STORAGE = Storage(components=("dense", "sparse"))
"""What the tests store: the multi-vectors would only cost time."""


class StubEncoder:
    """Tokens are words; ``texts`` are those that were encoded."""

    info = ModelInfo("tests/stub", None, 8, 100, "100 words", "f" * 64)
    recommended_weights: Mapping[str, tuple[float, float, float]] = {}

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, texts: Sequence[str], *, components: Sequence[Component] = COMPONENTS) -> M3Embeddings:
        self.texts += texts
        return join([self._vectors(text) for text in texts], self.info, tuple(components))

    def token_spans(self, text: str) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        spans = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
        return np.array(spans, dtype=np.int64).reshape(-1, 2)

    def token_strings(self, text: str) -> list[str]:
        return text.split()

    def id_to_token(self, id: int) -> str | None:
        return str(id)

    def _vectors(self, text: str) -> tuple[np.ndarray, dict[int, float], np.ndarray]:  # type: ignore[type-arg]
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
        return (
            unit_rows(rng.normal(size=8)),
            {int(rng.integers(100)): 1.0},
            unit_rows(rng.normal(size=(1, 8))),
        )
