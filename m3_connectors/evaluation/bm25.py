"""BM25, the baseline: bm25s over words, or over character bigrams where a script does not part words."""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Sequence

from m3_connectors.documents import Document
from m3_connectors.errors import MissingDependency
from m3_connectors.evaluation.datasets.dataset import Dataset
from m3_connectors.evaluation.folder import EvaluationFolder, Run

K1 = 0.9
B = 0.4
"""Anserini's parameters, which the paper's BM25 baseline uses too."""

_BIGRAM_SCRIPTS = (
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Hiragana, Katakana
    "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"  # Hangul
    "\u0e01-\u0e3a\u0e40-\u0e4e"  # Thai letters and marks
)


def tokenise(text: str) -> list[str]:
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

    Raises:
        MissingDependency: bm25s is not installed.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        try:
            import bm25s
        except ImportError:
            raise MissingDependency("bm25s", "eval") from None
        self._ids = [document.id for document in documents]
        self._vocabulary: dict[str, int] = {}
        corpus = [
            [self._vocabulary.setdefault(token, len(self._vocabulary)) for token in tokenise(document.text)]
            for document in documents
        ]
        self._bm25 = None
        if self._vocabulary:  # bm25s cannot index a corpus without a token
            self._bm25 = bm25s.BM25(k1=K1, b=B)
            self._bm25.index((corpus, self._vocabulary), show_progress=False)

    def search(self, query: str, k: int) -> list[tuple[str, float]]:
        """The k best documents that share a token with the query, with scores, best first, equal ones by id."""
        tokens = [self._vocabulary[token] for token in tokenise(query) if token in self._vocabulary]
        if self._bm25 is None or not tokens:
            return []
        scores = self._bm25.get_scores(tokens)
        best = sorted(scores.nonzero()[0].tolist(), key=lambda i: (-scores[i], self._ids[i]))
        return [(self._ids[i], float(scores[i])) for i in best[:k]]


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

    def __init__(self) -> None:
        try:
            import bm25s  # noqa: F401 (missing now is better than after an hour of encoding)
        except ImportError:
            raise MissingDependency("bm25s", "eval") from None

    def run(self, dataset: Dataset, folder: EvaluationFolder) -> Run:
        """Rank the corpus for every query."""
        bm25, depth = BM25(list(dataset.documents)), folder.record.protocol.run_depth
        return {query: bm25.search(text, depth) for query, text in dataset.queries.items()}


@functools.cache
def _pattern() -> re.Pattern[str]:
    # \w leaves out combining marks and would cut words of Hindi, Arabic and others at their vowels.
    marks = "".join(
        letter
        for letter in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(letter) in ("Mn", "Mc")
    )
    return re.compile(f"(?P<run>[{_BIGRAM_SCRIPTS}]+)|(?:(?![{_BIGRAM_SCRIPTS}])[\\w{marks}])+")
