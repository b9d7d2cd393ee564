"""What several benchmarks of stores need: seeded documents and queries, a placeholder for an encoder, and stores."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from m3_connectors.documents import Document
from m3_connectors.embeddings import Float32, M3Embeddings, ModelInfo, MultiVectors

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

PACKAGES = (
    "qdrant-edge-py",
    "qdrant-client",
    "pymilvus",
    "milvus-lite",
    "elasticsearch",
    "numpy",
    "scipy",
    "anyio",
    "torch",
)
"""The packages whose versions a benchmark of stores records."""

SERVERS = ("milvus", "elasticsearch", "qdrant")
EMBEDDED = {"qdrant-edge": "qdrant:{}/data", "milvus-embedded": "milvus:{}/data.db", "memory": "memory:"}

BLOCK = 250
"""The number of documents in one call of ``add``."""

_VOCABULARY = 250_002
_TOKENS = 48
"""The number of token ids drawn for a document of 64 rows; some occur twice."""

_TEXT = "Dense, sparse and multi-vector scores of one model in a passage of about the length that 64 tokens take. "


class Corpus:
    """Seeded documents and queries; the documents come in blocks to limit memory."""

    def __init__(self, documents: int, rows: int, dimension: int) -> None:
        self.model = ModelInfo("benchmark/random", None, dimension, _VOCABULARY, "random")
        self.count = documents
        self._rows = rows
        rng = np.random.default_rng(0)
        # Any two texts of M3 have a cosine of 0.3 or more.
        self._topics = rng.standard_normal((100, dimension), dtype=np.float32)
        self._topics += rng.standard_normal(dimension, dtype=np.float32)

    def blocks(self) -> Iterator[tuple[list[Document], M3Embeddings]]:
        """Yield all documents in blocks."""
        rng = np.random.default_rng(1)
        for start in range(0, self.count, BLOCK):
            numbers = range(start, min(start + BLOCK, self.count))
            documents = [
                Document(f"document-{n:06d}", f"{n}. {_TEXT * 2}", {"n": n, "lang": "en", "even": n % 2 == 0})
                for n in numbers
            ]
            yield documents, self._embeddings(rng, len(numbers), self._rows)

    def queries(self, count: int, rows: int) -> M3Embeddings:
        """Return texts of fewer rows about the same topics."""
        return self._embeddings(np.random.default_rng(2), count, rows)

    def _embeddings(self, rng: np.random.Generator, count: int, rows: int) -> M3Embeddings:
        dimension = self.model.dimension
        about = self._topics[rng.integers(len(self._topics), size=count)]
        about = about + 0.7 * rng.standard_normal((count, dimension), dtype=np.float32)
        spread = about.repeat(rows, axis=0)
        spread += rng.standard_normal(spread.shape, dtype=np.float32)
        tokens = max(4, _TOKENS * rows // 64)
        columns = rng.zipf(1.3, size=(count, tokens)) % _VOCABULARY
        weights = rng.gamma(2.0, 0.1, size=(count, tokens)).astype(np.float32) + np.float32(1e-3)
        sparse = sp.csr_array(
            (weights.ravel(), columns.ravel(), np.arange(0, count * tokens + 1, tokens)),
            shape=(count, _VOCABULARY),
        )
        sparse.sum_duplicates()
        return M3Embeddings(
            _unit(about),
            sparse,
            MultiVectors(_unit(spread), np.arange(0, count * rows + 1, rows)),
            model=self.model,
        )


class Fixed:
    """A placeholder for an encoder, with which ``connect`` can create a collection.

    It encodes nothing. ``sample`` is what it returns for the texts from which a new collection of a compact precision
    learns the mean of its rows.
    """

    def __init__(self, info: ModelInfo, sample: M3Embeddings | None = None) -> None:
        self.info = info
        self.recommended_weights: dict[str, tuple[float, float, float]] = {}
        self._sample = sample

    def encode(self, *_: object, **__: object) -> M3Embeddings:
        if self._sample is None:
            raise AssertionError("this benchmark gives embeddings")
        return self._sample

    token_strings = id_to_token = encode


@dataclasses.dataclass(frozen=True)
class Place:
    """A store under test.

    Attributes:
        name: The name in tables.
        url: The URL for ``connect``.
        options: The options for ``connect``.
        directory: The folder of its data, if known.
        session: The session id of its server's processes, if they were started here.
    """

    name: str
    url: str
    options: Mapping[str, Any]
    directory: Path | None
    session: int | None = None


@contextlib.contextmanager
def place_of(store: str, directory: str | None) -> Iterator[Place]:
    """Yield the store of a name or URL; a named store is started here and removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="m3-benchmark-", dir=directory) as made:
        if store in EMBEDDED:
            yield Place(store, EMBEDDED[store].format(made), {}, Path(made) if store != "memory" else None)
        elif store in SERVERS:
            from m3_connectors.testing.servers.start import start

            running = start(store, compose=ROOT / "docker" / "compose.yaml")  # type: ignore[arg-type]
            server = running.server
            try:
                yield Place(
                    store, running.url, running.options, server and server.directory, server and server.pid
                )
            finally:
                running.stop()
        else:
            yield Place(store, store, {}, None)


def _unit(rows: Float32) -> Float32:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
