"""Why a document scores as it does: component scores, matched tokens, best token pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from m3_connectors.documents import Document, Scores
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.methods import Method
from m3_connectors.scoring import score


class Tokens(Protocol):
    """What names tokens; ``M3Encoder`` does."""

    def token_strings(self, text: str) -> list[str]:
        """The token of each multi-vector row of the text."""

    def id_to_token(self, id: int) -> str | None:
        """The token of an id."""


@dataclasses.dataclass(frozen=True)
class TokenMatch:
    """A token of both texts; ``query_weight * document_weight`` is its part of s_lex."""

    token: str
    query_weight: float
    document_weight: float

    @property
    def score(self) -> float:
        """Its part of s_lex."""
        return self.query_weight * self.document_weight


@dataclasses.dataclass(frozen=True)
class TokenPair:
    """A query token and the document token nearest to it; the mean similarity of all pairs is s_mul."""

    query_token: str
    document_token: str
    similarity: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How one document's score comes about.

    Attributes:
        document: The document.
        method: Whose weights were used.
        scores: The three scores; None where a component is not stored.
        weighted: Each score times its weight; they add up to ``score``.
        score: The fused score.
        tokens: Tokens of both texts, the largest part of s_lex first.
        pairs: For each query token, in order, its best document token.
    """

    document: Document
    method: Method
    scores: Scores
    weighted: Scores
    score: float
    tokens: tuple[TokenMatch, ...]
    pairs: tuple[TokenPair, ...]

    def to_dict(self) -> dict[str, Any]:
        """The explanation as JSON takes it."""
        return {
            "id": self.document.id,
            "method": self.method.name,
            "weights": list(self.method.weights),
            "score": self.score,
            "scores": self.scores.to_dict(),
            "weighted": self.weighted.to_dict(),
            "tokens": [dataclasses.asdict(match) for match in self.tokens],
            "pairs": [dataclasses.asdict(pair) for pair in self.pairs],
        }


def explain(
    names: Tokens,
    method: Method,
    query: str,
    vectors: M3Embeddings,
    document: Document,
    stored: M3Embeddings,
    pools: Callable[[int], bool] = lambda _rows: False,
) -> Explanation:
    """Explain one document.

    Args:
        names: Names the tokens.
        method: Gives the weights.
        query: The query's text.
        vectors: Its embeddings, one row.
        document: The document.
        stored: The document's embeddings as stored, one row.
        pools: Whether the collection pools a document of so many rows. Its rows stand for several tokens each, so
            they are numbered and not named.
    """
    both = [name for name in stored.components if name in vectors.components]
    values = {name: float(score(name, vectors, stored)[0]) for name in both}
    weighted = {name: values[name] * method.weights.of(name) for name in both}
    return Explanation(
        document=document,
        method=method,
        scores=Scores(**values),
        weighted=Scores(**weighted),
        score=sum(weighted.values()),
        tokens=_matches(names, vectors, stored) if "sparse" in both else (),
        pairs=_pairs(names, query, vectors, document, stored, pools) if "multivector" in both else (),
    )


def _matches(names: Tokens, vectors: M3Embeddings, stored: M3Embeddings) -> tuple[TokenMatch, ...]:
    ours = dict(zip(vectors.sparse.indices.tolist(), vectors.sparse.data.tolist(), strict=True))
    theirs = dict(zip(stored.sparse.indices.tolist(), stored.sparse.data.tolist(), strict=True))
    shared = [
        TokenMatch(_readable(names.id_to_token(token) or f"<{token}>"), ours[token], theirs[token])
        for token in ours.keys() & theirs.keys()
    ]
    return tuple(sorted(shared, key=lambda match: (-match.score, match.token)))


def _pairs(
    names: Tokens,
    query: str,
    vectors: M3Embeddings,
    document: Document,
    stored: M3Embeddings,
    pools: Callable[[int], bool],
) -> tuple[TokenPair, ...]:
    similarities = vectors.multivectors[0] @ stored.multivectors[0].T
    best = similarities.argmax(axis=1)
    asked = _named(names.token_strings(query), len(similarities))
    tokens = names.token_strings(document.text)
    found = _named([] if pools(len(tokens)) else tokens, similarities.shape[1])
    return tuple(
        TokenPair(asked[i], found[j], float(similarities[i, j]))
        for i, j in enumerate(np.asarray(best).tolist())
    )


def _named(tokens: Sequence[str], rows: int) -> list[str]:
    # Rows may outnumber the names where the vectors were made elsewhere, with another maximum length.
    named = [_readable(token) for token in tokens[:rows]]
    return named + [f"row {i}" for i in range(len(named), rows)]


def _readable(token: str) -> str:
    """A piece without the unigram tokenizer's word mark; the mark alone stays, so that nothing is empty."""
    return token.lstrip("▁") or token
