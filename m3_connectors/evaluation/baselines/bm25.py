"""BM25 with bm25s, over words or, as in the paper, over the model's own tokens."""

from __future__ import annotations

import functools
import logging
import re
import sys
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import length_hint
from typing import TYPE_CHECKING, Any

import numpy as np

from m3_connectors.documents import Document
from m3_connectors.errors import MissingDependency
from m3_connectors.evaluation.baselines.ranking import best, candidates
from m3_connectors.evaluation.datasets.dataset import Dataset
from m3_connectors.evaluation.folder import EvaluationFolder, Run

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder

K1 = 0.9
B = 0.4
"""Anserini's parameters, which the paper's BM25 baseline uses too."""

_DOCUMENTS_OF_AN_ESTIMATE = 10_000
"""The number of documents from which the memory for the whole corpus is estimated."""

_BYTES_A_TOKEN = 30
"""Maximum while the index is built: 4 for the token id, and for each distinct token of a document 12 for the lists of
bm25s and as many again for the matrix that is sorted from them."""

_MUCH_MEMORY = 8e9

_log = logging.getLogger(__name__)

Tokenise = Callable[[str], Sequence[str]]

_BIGRAM_SCRIPTS = (
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Hiragana, Katakana
    "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"  # Hangul
    "\u0e01-\u0e3a\u0e40-\u0e4e"  # Thai letters and marks
)


def words(text: str) -> list[str]:
    """Lower-cased words, without stemming; character bigrams of runs of Chinese, Japanese, Korean and Thai."""
    tokens: list[str] = []
    for match in _pattern().finditer(text.lower()):
        run = match["run"]
        if run is None:
            tokens.append(match[0])
        else:
            tokens.extend([run[i : i + 2] for i in range(len(run) - 1)] or [run])
    return tokens


class BM25:
    """A BM25 index of a corpus, in memory.

    Args:
        documents: The corpus.
        tokenise: Cuts its texts.

    Raises:
        MissingDependency: bm25s is not installed.
    """

    def __init__(self, documents: Iterable[Document], tokenise: Tokenise = words) -> None:
        self._ids: list[str] = []
        self._vocabulary: dict[str, int] = {}
        corpus = _Tokens(self._vocabulary)
        for document in documents:
            self._ids.append(document.id)
            corpus.add(tokenise(document.text))
            if len(corpus) == _DOCUMENTS_OF_AN_ESTIMATE:
                _say_memory(corpus, length_hint(documents))
        self._bm25 = None
        if self._vocabulary:  # bm25s cannot index a corpus without a token
            self._bm25 = _bm25s().BM25(k1=K1, b=B)
            self._bm25.index(corpus, show_progress=False)

    def search(self, query: Sequence[str], k: int) -> list[tuple[str, float]]:
        """The k best documents that share a token with the query, with scores, best first, equal ones by id."""
        tokens = [self._vocabulary[token] for token in query if token in self._vocabulary]
        if self._bm25 is None or not tokens:
            return []
        scores = self._bm25.get_scores(tokens)
        sharing = np.flatnonzero(scores)
        sharing = sharing[candidates(scores[sharing], k)]
        return best([self._ids[i] for i in sharing.tolist()], scores[sharing], k)


class _Tokens:
    """A corpus in the form that bm25s reads in three passes; it needs 4 bytes per token instead of a list per document.

    Attributes:
        ids: The documents, each a list of token numbers: this object itself.
        vocab: Token to number, to which new tokens are added.
        tokens: How many there are.
    """

    def __init__(self, vocab: dict[str, int]) -> None:
        self.ids = self
        self.vocab = vocab
        self._numbers, self._ends = array("i"), array("q")

    @property
    def tokens(self) -> int:
        return len(self._numbers)

    def add(self, tokens: Iterable[str]) -> None:
        """One more document."""
        self._numbers.extend([self.vocab.setdefault(token, len(self.vocab)) for token in tokens])
        self._ends.append(len(self._numbers))

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for end in self._ends:
            yield self._numbers[start:end].tolist()
            start = end


def _say_memory(corpus: _Tokens, documents: int) -> None:
    """Say that a corpus will need much memory, while only its first documents have been read."""
    expected = corpus.tokens / len(corpus) * documents * _BYTES_A_TOKEN
    if expected > _MUCH_MEMORY:
        _log.warning(
            "BM25 over %s documents will take about %.0f GB of memory: its index is not kept on disk",
            f"{documents:,}",
            expected / 1e9,
        )


class WordBM25:
    """The baseline ``bm25``.

    Raises:
        MissingDependency: bm25s is not installed.
    """

    name = "bm25"
    description = (
        f"BM25 (bm25s, k1 {K1}, b {B}) over lower-cased words without stemming, character bigrams for Chinese, "
        "Japanese, Korean and Thai"
    )
    requires = ()

    def __init__(self) -> None:
        _bm25s()  # missing now is better than after an hour of encoding

    def run(self, dataset: Dataset, folder: EvaluationFolder, encoder: M3Encoder) -> Run:
        """Rank the corpus for every query; see ``Baseline.run``."""
        bm25, depth = BM25(dataset.documents), folder.record.protocol.run_depth
        return {query: bm25.search(words(text), depth) for query, text in dataset.queries.items()}


class TokenBM25:
    """The baseline ``bm25-xlmr``, the paper's: over the tokens of the model's own XLM-R tokenizer.

    Texts are cut where the evaluation cuts them for the model.

    Raises:
        MissingDependency: bm25s is not installed.
    """

    name = "bm25-xlmr"
    description = f"BM25 (bm25s, k1 {K1}, b {B}) over the model's own tokens"
    requires = ()

    def __init__(self) -> None:
        _bm25s()

    def run(self, dataset: Dataset, folder: EvaluationFolder, encoder: M3Encoder) -> Run:
        """Rank the corpus for every query; see ``Baseline.run``."""
        protocol = folder.record.protocol

        def content(text: str, max_length: int | None) -> list[str]:
            # The tokens behind the rows of a multi-vector, without the </s>; a length counts it and the <s>.
            tokens = encoder.token_strings(text)[:-1]
            return tokens if max_length is None else tokens[: max_length - 2]

        bm25 = BM25(dataset.documents, lambda text: content(text, protocol.passage_max_length))
        return {
            query: bm25.search(content(text, protocol.query_max_length), protocol.run_depth)
            for query, text in dataset.queries.items()
        }


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError:
        raise MissingDependency("bm25s", "eval") from None
    return bm25s


@functools.cache
def _pattern() -> re.Pattern[str]:
    # \w leaves out combining marks and would cut words of Hindi, Arabic and others at their vowels.
    marks = "".join(
        letter
        for letter in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(letter) in ("Mn", "Mc")
    )
    return re.compile(f"(?P<run>[{_BIGRAM_SCRIPTS}]+)|(?:(?![{_BIGRAM_SCRIPTS}])[\\w{marks}])+")
