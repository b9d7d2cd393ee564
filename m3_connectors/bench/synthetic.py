"""Synthetic corpora of any size, similar to M3's output; document n is computed from n and the seed.

These properties are imitated, because costs depend on them:

- dense vectors share a mean direction (unrelated texts score about 0.35, as on BGE-M3's model card), form
  clusters, and vary more in a few directions than in others, so that a graph index finds real neighbours;
- token ids follow Zipf's law, partly by topic; frequent tokens have low weights, and a repeated token keeps
  its maximum;
- multi-vector rows depend on their text's dense vector and on their token; there is one row per token and one
  for ``</s>``;
- a query paraphrases one document: it shares its topic, some of its tokens and a part of its direction, so
  that the document is among the best but not always the first, and every list has entries with similar
  scores.

Nothing is encoded: a benchmark with such a corpus measures the store and this package's adapters, not the
model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from m3_connectors.backends.schema import Schema
from m3_connectors.bench.scenario import CorpusSettings
from m3_connectors.documents import Document
from m3_connectors.embeddings import Float32, Int64, M3Embeddings, ModelInfo, MultiVectors

VERSION = 1
"""The version of the generator: another version generates other documents from the same seed."""

MODEL = "bench/synthetic"
"""The model name that is recorded in collections of synthetic documents."""

FIELD = "uniform"
"""A metadata field with values spread evenly over [0, 1): ``{"uniform": {"$lt": 0.1}}`` matches a tenth."""

_MEAN, _TOPIC, _OWN = 0.35, 0.20, 0.45
"""The parts of a dense vector's squared norm: common to all, common to its topic, individual."""

_QUERY_RECALLS = 0.3
"""The cosine between the individual parts of a query and its document."""

_ROW_MEAN, _ROW_TEXT, _ROW_TOKEN, _ROW_NOISE = 0.20, 0.25, 0.35, 0.20
"""The parts of a row's squared norm."""

_ON_TOPIC = 0.4
"""The share of tokens that depend on the topic."""

_FROM_DOCUMENT = 0.35
"""The share of a query's tokens that are taken from its document."""

_FIRST_TOKEN = 4
"""Lower token ids are special (``<s>``, ``<pad>``, ``</s>``, ``<unk>``) and have no weight."""

_END = 2
"""The token id of ``</s>``."""

_TOKEN_VECTORS = 4096
_GOLDEN = (math.sqrt(5) - 1) / 2
_WORLD, _DOCUMENT, _QUERY = 0, 1, 2
_MOST_BATCH = 512


class _Text(NamedTuple):
    """The random values of one text from which its vectors are computed.

    Attributes:
        topic: The number of its cluster.
        own: float32 ``[d]``, standard normal.
        tokens: int64 ``[rows - 1]``.
        weights: float32 ``[rows - 1]``, > 0.
    """

    topic: int
    own: Float32
    tokens: Int64
    weights: Float32


class Corpus:
    """Synthetic documents and queries about them.

    Args:
        settings: The shape of the documents.
        documents: The number of documents.
        seed: The seed. A document with a given number is the same in corpora of any size.
    """

    def __init__(self, settings: CorpusSettings, documents: int, seed: int) -> None:
        self._settings = settings
        self._documents = documents
        self._seed = seed
        shape = settings.model_dump(mode="json", exclude={"documents", "query_rows", "storage"})
        identity = json.dumps([VERSION, seed, documents, shape], sort_keys=True)
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        """Corpora with equal fingerprints contain equal documents."""
        width = settings.dimension
        self.model = ModelInfo(MODEL, None, width, settings.vocabulary, "synthetic", self.fingerprint)
        rng = self._rng(_WORLD, 0)
        spread = np.arange(1, width + 1, dtype=np.float64) ** -0.4
        self._spread = (spread / math.sqrt(np.mean(spread**2) * width)).astype(np.float32)
        self._mean = _unit(rng.standard_normal((1, width), dtype=np.float32))[0]
        self._topics = _unit(rng.standard_normal((settings.topics, width), dtype=np.float32) * self._spread)
        self._token_vectors = _unit(rng.standard_normal((_TOKEN_VECTORS, width), dtype=np.float32))
        frequencies = 1 / (np.arange(settings.vocabulary - _FIRST_TOKEN) + 2.7) ** 1.05
        self._cumulated = np.cumsum(frequencies) / frequencies.sum()

    def __len__(self) -> int:
        return self._documents

    @property
    def schema(self) -> Schema:
        """The schema of its collection, which identifies the corpus by the fingerprint of the model."""
        return Schema(self.model, self._settings.storage.chosen)

    def batch(self, start: int, stop: int) -> tuple[list[Document], M3Embeddings]:
        """Return the documents ``start`` to ``stop`` (exclusive) with their embeddings."""
        texts, generators = [], []
        for number in range(start, stop):
            rng = self._rng(_DOCUMENT, number)
            texts.append(self._text(rng))
            generators.append(rng)
        documents = [
            Document(
                f"d{number:07d}", _words(text.tokens), {FIELD: uniform(number), "topic": f"t{text.topic}"}
            )
            for number, text in zip(range(start, stop), texts, strict=True)
        ]
        return documents, self._embeddings(texts, generators)

    def batches(self, size_bytes: int) -> Iterator[tuple[list[Document], M3Embeddings]]:
        """Yield all documents in batches of about ``size_bytes`` of float32 vectors."""
        rows = min(self._settings.rows.mean, self._settings.rows.most)
        per_document = 4 * self._settings.dimension * (rows + 1)
        step = max(1, min(_MOST_BATCH, int(size_bytes / per_document)))
        for start in range(0, self._documents, step):
            yield self.batch(start, min(start + step, self._documents))

    def queries(self, count: int) -> M3Embeddings:
        """Return the first ``count`` queries; each paraphrases a document."""
        texts, generators = [], []
        for number in range(count):
            rng = self._rng(_QUERY, number)
            about = self._text(self._rng(_DOCUMENT, int(rng.integers(self._documents))))
            texts.append(self._paraphrase(rng, about))
            generators.append(rng)
        return self._embeddings(texts, generators)

    def source(self, query: int) -> int:
        """Return the number of the document that a query paraphrases."""
        return int(self._rng(_QUERY, query).integers(self._documents))

    def shares_a_token(self, query: int) -> bool:
        """Return whether a query and the document that it paraphrases have a token in common."""
        rng = self._rng(_QUERY, query)
        about = self._text(self._rng(_DOCUMENT, int(rng.integers(self._documents))))
        return bool(np.isin(self._paraphrase(rng, about).tokens, about.tokens).any())

    def shape(self, sample: int = 2000) -> dict[str, float]:
        """Return means over the first documents: stored ``rows``, ``distinct_tokens`` and ``text_bytes``."""
        storage = self._settings.storage.chosen
        texts = [self._text(self._rng(_DOCUMENT, number)) for number in range(min(sample, self._documents))]
        counts = [len(text.tokens) + 1 for text in texts]
        return {
            "rows": float(
                np.mean([-(-rows // storage.pool_factor) if storage.pools(rows) else rows for rows in counts])
            ),
            "distinct_tokens": float(np.mean([len(np.unique(text.tokens)) for text in texts])),
            "text_bytes": float(np.mean([len(_words(text.tokens)) for text in texts])),
        }

    def passing(self, selectivity: float) -> int:
        """Return the number of documents that match ``filter_for(selectivity)``."""
        return sum(uniform(number) < selectivity for number in range(self._documents))

    def _rng(self, what: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, what, number])

    def _text(self, rng: np.random.Generator) -> _Text:
        settings = self._settings
        variance = math.log1p(settings.rows.spread**2)
        rows = rng.lognormal(math.log(settings.rows.mean) - variance / 2, math.sqrt(variance))
        topic = int(rng.integers(settings.topics))
        own = rng.standard_normal(settings.dimension, dtype=np.float32)
        tokens = self._tokens(rng, topic, min(max(round(rows), 1), settings.rows.most) - 1)
        return _Text(topic, own, tokens, self._weights(rng, tokens))

    def _paraphrase(self, rng: np.random.Generator, about: _Text) -> _Text:
        own = rng.standard_normal(self._settings.dimension, dtype=np.float32)
        own = _QUERY_RECALLS * about.own + math.sqrt(1 - _QUERY_RECALLS**2) * own
        tokens = self._tokens(rng, about.topic, self._settings.query_rows - 1)
        kept = rng.random(len(tokens)) < _FROM_DOCUMENT
        if len(about.tokens):
            tokens[kept] = rng.choice(about.tokens, size=int(kept.sum()))
        return _Text(about.topic, own.astype(np.float32), tokens, self._weights(rng, tokens))

    def _tokens(self, rng: np.random.Generator, topic: int, count: int) -> Int64:
        ranks = np.searchsorted(self._cumulated, rng.random(count))
        of_topic = (topic * 7919 + ranks * 104_729) % len(self._cumulated)
        chosen: Int64 = _FIRST_TOKEN + np.where(rng.random(count) < _ON_TOPIC, of_topic, ranks)
        return chosen

    def _weights(self, rng: np.random.Generator, tokens: Int64) -> Float32:
        """Draw gamma-distributed weights with a mean from 0.02 (most frequent token) to 0.25 (rare ones)."""
        rarity = np.log1p(tokens - _FIRST_TOKEN) / math.log(len(self._cumulated))
        drawn = rng.gamma(4.0, 0.25, len(tokens)) * (0.02 + 0.23 * rarity)
        return np.maximum(drawn, 1e-3).astype(np.float32)

    def _embeddings(self, texts: Sequence[_Text], generators: Sequence[np.random.Generator]) -> M3Embeddings:
        dense = math.sqrt(_OWN) * self._spread * np.stack([text.own for text in texts])
        dense += math.sqrt(_TOPIC) * self._topics[[text.topic for text in texts]]
        dense += math.sqrt(_MEAN) * self._mean
        dense = _unit(dense)
        counts = np.array([len(text.tokens) + 1 for text in texts])
        offsets = np.concatenate([[0], np.cumsum(counts)])
        tokens = np.concatenate([part for text in texts for part in (text.tokens, [_END])])
        width = self._settings.dimension
        rows = np.empty((offsets[-1], width), dtype=np.float32)
        for rng, start, stop in zip(generators, offsets[:-1], offsets[1:], strict=True):
            rng.standard_normal(dtype=np.float32, out=rows[start:stop])
        rows *= math.sqrt(_ROW_NOISE / width)
        rows += math.sqrt(_ROW_TOKEN) * self._token_vectors[tokens % _TOKEN_VECTORS]
        rows += math.sqrt(_ROW_TEXT) * np.repeat(dense, counts, axis=0)
        rows += math.sqrt(_ROW_MEAN) * self._mean
        return M3Embeddings(
            dense,
            self._sparse(texts),
            MultiVectors(_unit(rows), offsets.astype(np.int64)),
            model=self.model,
        )

    def _sparse(self, texts: Sequence[_Text]) -> sp.csr_array:
        """Return each distinct token with its maximum weight."""
        owners = np.repeat(np.arange(len(texts)), [len(text.tokens) for text in texts])
        tokens = np.concatenate([text.tokens for text in texts])
        weights = np.concatenate([text.weights for text in texts])
        order = np.lexsort((tokens, owners))
        owners, tokens, weights = owners[order], tokens[order], weights[order]
        shape = (len(texts), self._settings.vocabulary)
        if not len(tokens):
            return sp.csr_array(shape, dtype=np.float32)
        firsts = np.flatnonzero(np.r_[True, (np.diff(owners) != 0) | (np.diff(tokens) != 0)])
        indptr = np.concatenate([[0], np.cumsum(np.bincount(owners[firsts], minlength=len(texts)))])
        return sp.csr_array((np.maximum.reduceat(weights, firsts), tokens[firsts], indptr), shape=shape)


def filter_for(selectivity: float) -> dict[str, Any]:
    """Return the filter that matches this share of the documents."""
    return {FIELD: {"$lt": selectivity}}


def uniform(number: int) -> float:
    """Return the value of ``FIELD`` of a document."""
    # A low-discrepancy sequence: every prefix of the corpus is spread evenly, independently of topics.
    return round((number + 1) * _GOLDEN % 1.0, 9)


def _words(tokens: npt.NDArray[np.integer]) -> str:
    """Return a text of about the length of this number of tokens."""
    return " ".join(f"{token:x}" for token in tokens.tolist())


def _unit(rows: Float32) -> Float32:
    """Scale the rows to length 1 in place, and return them."""
    rows /= np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return rows
