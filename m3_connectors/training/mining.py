"""Hard negatives in the manner of ANCE: passages that a model ranks high for a query and that do not answer it.

A search finds the candidates, with any method. What answers the query, or may do so, is dropped: by its text, by its
likeness to a positive, and by its score. The negatives are a sample of the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from m3_connectors.backends.schema import Storage
from m3_connectors.blocking import connect
from m3_connectors.curation.originals import text_hash
from m3_connectors.curation.words import shingles
from m3_connectors.documents import Document, Hit
from m3_connectors.embeddings import Component, M3Embeddings, ModelInfo
from m3_connectors.errors import InvalidInput
from m3_connectors.methods import METHODS, Method, MethodName, fuse
from m3_connectors.scoring import score
from m3_connectors.training.ranges import STRICT, NotNegative, Seed

if TYPE_CHECKING:
    from m3_connectors.blocking import Index

T = TypeVar("T")

BLOCK_QUERIES = 128
"""The number of queries that are encoded and searched together."""

_CHUNK_PASSAGES = 1024
"""The number of passages that are encoded and stored together."""

_DECIMALS = 6

_log = logging.getLogger(__name__)


@dataclass(frozen=True, config=STRICT)
class MiningSettings:
    """How negatives are chosen; the names are those of sentence-transformers' ``mine_hard_negatives``.

    A rank is a place in the search result without the query's own positives, from 0.

    Attributes:
        method: The method of the search.
        weights: Its weights (dense, sparse, multi-vector); by default those of the model, else the paper's.
        num_negatives: The number of negatives of a query.
        range_min: The number of best candidates that are skipped, because many of them answer the query.
        range_max: The rank before which the candidates end.
        sampling_strategy: ``random`` chooses from this window with equal probability, ``top`` takes the best.
        relative_margin: Candidates are dropped whose score is above the positive's less this share of its magnitude,
            0.05 for 95 % of the positive's score; None for no such limit. Of several positives, the best counts.
        absolute_margin: The same with an absolute difference of scores; None for no such limit.
        max_overlap: Candidates are dropped that share at least this part of their runs of five words with a positive,
            of the shorter of the two texts: near copies, longer versions and excerpts of it. Above 1 for no limit.
        exact: Whether every passage is scored; otherwise the store may use its approximate index.
        seed: The seed of the random choices.
    """

    method: MethodName = "dense"
    weights: tuple[NotNegative, NotNegative, NotNegative] | None = None
    num_negatives: int = Field(default=7, ge=1)
    range_min: int = Field(default=10, ge=0)
    range_max: int = Field(default=200, ge=1)
    sampling_strategy: Literal["random", "top"] = "random"
    relative_margin: NotNegative | None = 0.05
    absolute_margin: NotNegative | None = None
    max_overlap: float = Field(default=0.8, gt=0)
    exact: bool = True
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.range_max - self.range_min < self.num_negatives:
            raise InvalidInput(
                f"the ranks from range_min {self.range_min} to range_max {self.range_max} are fewer than "
                f"num_negatives {self.num_negatives}.\n"
                f"  Set range_max to at least {self.range_min + self.num_negatives}, or choose fewer negatives."
            )

    def limit(self, positive: float) -> float:
        """Return the highest score of a negative, for the score of the best positive."""
        limits = [float("inf")]
        if self.relative_margin is not None:
            # Of the magnitude: 95 % of a negative score would be above it.
            limits.append(positive - self.relative_margin * abs(positive))
        if self.absolute_margin is not None:
            limits.append(positive - self.absolute_margin)
        return min(limits)


class Encoder(Protocol):
    """The parts of an encoder that mining uses; ``M3Encoder`` has them."""

    @property
    def info(self) -> ModelInfo:
        """The identity of the model."""

    @property
    def recommended_weights(self) -> Mapping[str, tuple[float, float, float]]:
        """The weights by method name that are distributed with the model; may be empty."""

    def encode(self, texts: Sequence[str], *, components: Sequence[Component]) -> M3Embeddings:
        """Return one row for each text."""


@dataclasses.dataclass(frozen=True)
class QueryLine:
    """A query with its positives."""

    query: str
    positives: tuple[str, ...]
    lang_q: str
    lang_p: str


@dataclasses.dataclass(frozen=True)
class MinedLine:
    """A query with its positives and hard negatives.

    Attributes:
        line: The query with its positives.
        negatives: At most ``num_negatives`` passages, in the order of their ranks.
        pos_scores: The score of each positive.
        neg_scores: The score of each negative.
        found: The number of positives among the search's first ``range_max`` results.
        dropped: The number of candidates that were looked at and dropped, by reason: ``own`` (a positive of the
            query, or the query itself), ``margin`` and ``near_copy``.
    """

    line: QueryLine
    negatives: tuple[str, ...]
    pos_scores: tuple[float, ...]
    neg_scores: tuple[float, ...]
    found: int
    dropped: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The line in FlagEmbedding's format."""
        return {
            "query": self.line.query,
            "pos": list(self.line.positives),
            "neg": list(self.negatives),
            "pos_scores": list(self.pos_scores),
            "neg_scores": list(self.neg_scores),
            "lang_q": self.line.lang_q,
            "lang_p": self.line.lang_p,
        }


def mine(
    encoder: Encoder,
    queries: Collection[QueryLine],
    settings: MiningSettings | None = None,
    *,
    passages: Iterable[str] = (),
    index: Index | None = None,
) -> Iterator[MinedLine]:
    """Yield each query with its hard negatives.

    Args:
        encoder: Encodes queries and passages.
        queries: The queries, read twice: first for their positives, which are passages too.
        settings: How negatives are chosen.
        passages: Further passages.
        index: A collection that holds the passages, in place of the positives and ``passages``; it is only read.
            By default, the passages are encoded once, into a temporary embedded store.

    Raises:
        InvalidInput: There are too few passages, or the model lacks a component of the method.
        ModelMismatch: The index was written by another model.
    """
    if iter(queries) is iter(queries):
        raise InvalidInput(
            f"queries is {type(queries).__name__}, which can be read only once; mining reads it twice.\n"
            "  Pass a list."
        )
    with (
        TemporaryDirectory(prefix="m3-mine-") as folder,
        Miner(encoder, settings or MiningSettings(), Path(folder), index=index) as miner,
    ):
        miner.read(queries, passages)
        for block in chunks(queries, BLOCK_QUERIES):
            yield from miner.negatives(block)


class Miner:
    """The passages of a mining run, and its searches; a context manager.

    Args:
        encoder: Encodes queries and passages.
        settings: How negatives are chosen.
        folder: The folder of the embedded store, which a later call with the same passages can use again.
        index: A collection that holds the passages; it is only read.
    """

    def __init__(
        self, encoder: Encoder, settings: MiningSettings, folder: Path, *, index: Index | None = None
    ) -> None:
        self._encoder = encoder
        self._settings = settings
        self._method = method_of(encoder, settings)
        self._folder = folder
        self._given = index
        self._owned = ExitStack()

    def __enter__(self) -> Self:
        """Open the store and the table of positives."""
        # An empty name is a database in memory that moves to a temporary file when it is larger than its cache.
        self._texts = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._owned.callback(self._texts.close)
        for table in (
            "own (query BLOB, passage BLOB, PRIMARY KEY (query, passage)) WITHOUT ROWID",
            "passages (hash BLOB PRIMARY KEY) WITHOUT ROWID",
        ):
            self._texts.execute(f"CREATE TABLE {table}")
        if self._given is not None:
            self._index = self._given
        else:
            components: tuple[Component, ...] = ("dense", *self._method.components)
            storage = Storage(components=tuple(dict.fromkeys(components)), multivector_dtype="float32")
            url = f"qdrant:{self._folder / 'passages'}"
            self._index = self._owned.enter_context(connect(url, model=self._encoder.info, storage=storage))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them; a given index stays open."""
        self._owned.close()

    def read(
        self,
        queries: Iterable[QueryLine],
        passages: Iterable[str] = (),
        *,
        stored: int = 0,
        on_stored: Callable[[int, int], object] = lambda chunks, passages: None,
    ) -> int:
        """Note the positives of all queries; encode and store every distinct passage once.

        Args:
            queries: The queries.
            passages: Further passages; those without a letter are left out.
            stored: The number of chunks that an earlier call with the same texts has stored in the folder.
            on_stored: Called with the number of chunks and of passages stored so far.

        Returns:
            The number of passages.

        Raises:
            InvalidInput: There are too few passages, or the model lacks a component of the method.
        """
        distinct = 0
        for number, chunk in enumerate(chunks(self._distinct(queries, passages), _CHUNK_PASSAGES), 1):
            distinct += len(chunk)
            if self._given is None and number > stored:
                vectors = self._encode([document.text for document in chunk], self._index.schema.components)
                self._index.add(chunk, embeddings=vectors)
                on_stored(number, distinct)
        count = self._index.count()
        if self._given is None and count != distinct:
            raise InvalidInput(
                f"the store in {self._folder} has {count:,} passages, not {distinct:,}: it was damaged or changed.\n"
                "  Delete the folder, and begin again."
            )
        if count <= self._settings.range_min + 1:
            raise InvalidInput(
                f"there are {count:,} distinct passages, and range_min {self._settings.range_min} skips the best "
                f"{self._settings.range_min} of each search: nothing is left.\n"
                "  Add passages (--corpus), or set range_min (--range-min) to a smaller number, such as 0."
            )
        if count <= self._settings.range_max:
            _log.warning(
                f"there are {count:,} distinct passages, fewer than range_max {self._settings.range_max}: even the "
                "worst passages of a search can be negatives. Add passages (--corpus)."
            )
        return count

    def negatives(self, lines: Sequence[QueryLine]) -> list[MinedLine]:
        """Return the lines with their hard negatives; all of them must have been read before.

        Raises:
            ModelMismatch: The index was written by another model.
            BackendError: The store failed or refused the operation.
        """
        vectors = list(self._encode([line.query for line in lines], self._method.components))
        owns = [self._own(line) for line in lines]
        answers = self._index.search_many(
            vectors,
            method=self._method,
            k=self._settings.range_max + max(map(len, owns), default=0),
            exact=self._settings.exact,
        )
        hits = [self._by_text(answer) for answer in answers]
        scores = [{key: hit.score for key, hit in these.items()} for these in hits]
        self._score_the_rest(lines, vectors, scores)
        return list(map(self._choose, lines, hits, owns, scores))

    def _choose(
        self, line: QueryLine, hits: Mapping[bytes, Hit], own: set[bytes], scores: Mapping[bytes, float]
    ) -> MinedLine:
        settings = self._settings
        keys = [text_hash(positive) for positive in line.positives]
        positives = [scores[key] for key in keys]
        ranked = [hit for key, hit in hits.items() if key not in own]
        window = ranked[settings.range_min : settings.range_max]
        limit = settings.limit(max(positives))
        allowed = [hit for hit in window if hit.score <= limit]
        dropped = Counter(own=len(hits) - len(ranked), margin=len(window) - len(allowed), near_copy=0)
        answers = [*line.positives, *(hit.document.text for key, hit in hits.items() if key in own)]
        order: Iterable[int] = range(len(allowed))
        if settings.sampling_strategy == "random":
            # The choice depends on the query only, not on the other lines.
            words = np.frombuffer(text_hash(line.query), np.uint32).tolist()
            order = np.random.default_rng([settings.seed, *words]).permutation(len(allowed)).tolist()
        chosen: list[int] = []
        for place in order:
            if len(chosen) == settings.num_negatives:
                break
            text = allowed[place].document.text
            if any(overlap(text, answer) >= settings.max_overlap for answer in answers):
                dropped["near_copy"] += 1
            else:
                chosen.append(place)
        negatives = [allowed[place] for place in sorted(chosen)]
        return MinedLine(
            line,
            tuple(hit.document.text for hit in negatives),
            tuple(round(value, _DECIMALS) for value in positives),
            tuple(round(hit.score, _DECIMALS) for hit in negatives),
            sum(key in hits for key in keys),
            dropped,
        )

    def _score_the_rest(
        self,
        lines: Sequence[QueryLine],
        vectors: Sequence[M3Embeddings],
        scores: Sequence[dict[bytes, float]],
    ) -> None:
        """Add the scores of the positives that the searches have not found, computed from their texts."""
        missing: dict[bytes, str] = {}
        for line, known in zip(lines, scores, strict=True):
            missing |= {key: text for text in line.positives if (key := text_hash(text)) not in known}
        if not missing:
            return
        rows = {key: row for row, key in enumerate(missing)}
        encoded = self._encode(list(missing.values()), self._method.scored)
        for line, query, known in zip(lines, vectors, scores, strict=True):
            for key in map(text_hash, line.positives):
                if key not in known:
                    row = encoded[rows[key]]
                    parts = {component: score(component, query, row) for component in self._method.scored}
                    known[key] = float(fuse(parts, self._method.weights)[0])

    def _distinct(self, queries: Iterable[QueryLine], passages: Iterable[str]) -> Iterator[Document]:
        """Yield each distinct text once, by the hash of its normalised form, and note the positives."""
        for line in queries:
            query = text_hash(line.query)
            for positive in line.positives:
                passage = text_hash(positive)
                # Both ways: of a pair of translations, either may be the query of another line.
                self._texts.executemany(
                    "INSERT OR IGNORE INTO own VALUES (?, ?)", [(query, passage), (passage, query)]
                )
                yield from self._if_new(passage, positive)
        for text in passages:
            if text.strip():
                yield from self._if_new(text_hash(text), text)

    def _if_new(self, hash: bytes, text: str) -> Iterator[Document]:
        if self._texts.execute("INSERT OR IGNORE INTO passages VALUES (?)", (hash,)).rowcount:
            yield Document(hash.hex(), text)

    def _own(self, line: QueryLine) -> set[bytes]:
        """Return the hashes of the positives of the query on all its lines, and of the query itself."""
        query = text_hash(line.query)
        rows = self._texts.execute("SELECT passage FROM own WHERE query = ?", (query,))
        return {query, *(passage for (passage,) in rows)}

    def _by_text(self, answer: Sequence[Hit]) -> dict[bytes, Hit]:
        """Return the hits by the hash of their text, best first: a given index may have a text under several ids."""
        if self._given is None:
            return {bytes.fromhex(hit.document.id): hit for hit in answer}
        hits: dict[bytes, Hit] = {}
        for hit in answer:
            if hit.document.text.strip():
                hits.setdefault(text_hash(hit.document.text), hit)
        return hits

    def _encode(self, texts: Sequence[str], components: Sequence[Component]) -> M3Embeddings:
        vectors = self._encoder.encode(texts, components=components)
        if lacking := [name for name in components if name not in vectors.components]:
            raise InvalidInput(
                f"method {self._method.name} needs {' and '.join(lacking)}, which the model "
                f"{self._encoder.info.name} does not compute.\n"
                f"  Choose a method of its components, {', '.join(vectors.components)}, or another model."
            )
        return vectors


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def overlap(text: str, other: str) -> float:
    """Return the share of runs of five words that two texts share, of the one with fewer of them; 0 without words."""
    runs, others = _runs(text), _runs(other)
    fewer = min(len(runs), len(others))
    return len(runs & others) / fewer if fewer else 0.0


@functools.lru_cache(maxsize=1024)
def _runs(text: str) -> frozenset[int]:
    return frozenset(map(hash, shingles(text)))


def method_of(encoder: Encoder, settings: MiningSettings) -> Method:
    """Return the method of the search with its weights: those of the settings, of the model, or of the paper.

    Raises:
        InvalidInput: The method takes no weights.
    """
    method = METHODS[settings.method]
    weights = settings.weights or encoder.recommended_weights.get(settings.method)
    if weights is None:
        return method
    if method.is_one_list or settings.method == "multi_vec":
        if settings.weights is None:
            return method
        raise InvalidInput(
            f"method {settings.method} takes no weights.\n  Choose dense_sparse or all, or leave weights out."
        )
    return method.weighted(*weights)
