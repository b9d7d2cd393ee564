"""Explanations of a document's score: component scores, matching tokens and best token pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from m3_connectors.documents import Document, Scores
from m3_connectors.embeddings import Float32, M3Embeddings
from m3_connectors.methods import Method
from m3_connectors.scoring import score


class Tokens(Protocol):
    """Converts texts and ids to token names, as ``M3Encoder`` does."""

    def token_strings(self, text: str) -> list[str]:
        """Return the token of each multi-vector row of the text."""

    def id_to_token(self, id: int) -> str | None:
        """Return the token of an id, or None if there is no such id."""


@dataclasses.dataclass(frozen=True)
class TokenMatch:
    """A token that both texts contain; ``query_weight * document_weight`` is its contribution to s_lex."""

    token: str
    query_weight: float
    document_weight: float

    @property
    def score(self) -> float:
        """The token's contribution to s_lex."""
        return self.query_weight * self.document_weight


@dataclasses.dataclass(frozen=True)
class TokenPair:
    """A query token and the most similar document token; the mean similarity of all pairs is s_mul."""

    query_token: str
    document_token: str
    similarity: float


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSimilarities:
    """The similarity of every multi-vector row of the query to every one of the document.

    Attributes:
        query_tokens: The token of each row of the query.
        document_tokens: The token of each row of the document; ``row 0`` and so on where rows have no names.
        values: float32 ``[query rows, document rows]``; the mean of the highest of each row is s_mul.
    """

    query_tokens: tuple[str, ...]
    document_tokens: tuple[str, ...]
    values: Float32

    @property
    def best(self) -> list[int]:
        """The most similar row of the document for each row of the query."""
        positions: list[int] = self.values.argmax(axis=1).tolist()
        return positions


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How the score of one document is computed.

    Attributes:
        document: The document.
        method: The method whose weights were used.
        scores: The three scores; None for a component that is not stored.
        weighted: Each score times its weight; their sum is ``score``.
        score: The fused score.
        tokens: The tokens that both texts contain, the largest contribution to s_lex first.
        pairs: The most similar document token of each query token, in the order of the query.
        similarities: All pairs of tokens, of which ``pairs`` are the best; None without multi-vectors.
    """

    document: Document
    method: Method
    scores: Scores
    weighted: Scores
    score: float
    tokens: tuple[TokenMatch, ...]
    pairs: tuple[TokenPair, ...]
    similarities: TokenSimilarities | None = dataclasses.field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The explanation as JSON takes it, without ``similarities``."""
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
    """Explain the score of one document.

    Args:
        names: Converts tokens to names.
        method: The method whose weights are used.
        query: The text of the query.
        vectors: The embeddings of the query, one row.
        document: The document.
        stored: The document's embeddings as stored, one row.
        pools: Whether the collection pools a document with this number of rows. A pooled row represents
            several tokens, so it gets a number instead of a name.
    """
    both = [name for name in stored.components if name in vectors.components]
    values = {name: float(score(name, vectors, stored)[0]) for name in both}
    weighted = {name: values[name] * method.weights.of(name) for name in both}
    similarities = (
        _similarities(names, query, vectors, document, stored, pools) if "multivector" in both else None
    )
    return Explanation(
        document=document,
        method=method,
        scores=Scores(**values),
        weighted=Scores(**weighted),
        score=sum(weighted.values()),
        tokens=_matches(names, vectors, stored) if "sparse" in both else (),
        pairs=_pairs(similarities) if similarities else (),
        similarities=similarities,
    )


def _matches(names: Tokens, vectors: M3Embeddings, stored: M3Embeddings) -> tuple[TokenMatch, ...]:
    ours = dict(zip(vectors.sparse.indices.tolist(), vectors.sparse.data.tolist(), strict=True))
    theirs = dict(zip(stored.sparse.indices.tolist(), stored.sparse.data.tolist(), strict=True))
    shared = [
        TokenMatch(_readable(names.id_to_token(token) or f"<{token}>"), ours[token], theirs[token])
        for token in ours.keys() & theirs.keys()
    ]
    return tuple(sorted(shared, key=lambda match: (-match.score, match.token)))


def _similarities(
    names: Tokens,
    query: str,
    vectors: M3Embeddings,
    document: Document,
    stored: M3Embeddings,
    pools: Callable[[int], bool],
) -> TokenSimilarities:
    values = vectors.multivectors[0] @ stored.multivectors[0].T
    asked = _named(names.token_strings(query), len(values))
    tokens = names.token_strings(document.text)
    found = _named([] if pools(len(tokens)) else tokens, values.shape[1])
    return TokenSimilarities(tuple(asked), tuple(found), values)


def _pairs(similarities: TokenSimilarities) -> tuple[TokenPair, ...]:
    return tuple(
        TokenPair(
            similarities.query_tokens[i], similarities.document_tokens[j], float(similarities.values[i, j])
        )
        for i, j in enumerate(similarities.best)
    )


def _named(tokens: Sequence[str], rows: int) -> list[str]:
    # There may be more rows than names if the vectors were made elsewhere with a different maximum length.
    named = [_readable(token) for token in tokens[:rows]]
    return named + [f"row {i}" for i in range(len(named), rows)]


def _readable(token: str) -> str:
    """Strip the word marker of the unigram tokenizer; a marker alone is kept, so that no name is empty."""
    return token.lstrip("▁") or token
