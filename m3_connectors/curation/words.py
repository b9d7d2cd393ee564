"""Texts as curation compares them: normalised text, words, and shingles."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 5
"""The number of consecutive words in a shingle, as in the deduplication of web corpora (Lee et al., 2022)."""

_UNSPACED = (
    "\u0e00-\u0eff"  # Thai and Lao
    "\u1000-\u109f\u1780-\u17ff"  # Myanmar and Khmer
    "\u3040-\u30ff\u31f0-\u31ff"  # Japanese syllables
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
)
"""Scripts that do not separate words by spaces; each of their characters counts as a word."""

_SEPARATORS = (
    r"\s\x00-\x1f!-/:-@\[-`{-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7\u2000-\u206f\u2e00-\u2e7f\u3000-\u303f"
)
"""White space, control characters and punctuation. What is left of a script are letters, digits and their marks."""

_WORD = re.compile(f"[{_UNSPACED}]|[^{_SEPARATORS}{_UNSPACED}]+")


def normalised(text: str) -> str:
    """Return the text in Unicode's form NFC, with each run of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def word_count(text: str) -> int:
    """Return the number of words; in scripts without spaces between words, each character is one."""
    return sum(1 for _ in _WORD.finditer(text))


def word_spans(text: str) -> NDArray[np.int64]:
    """Return where each word of a text begins and ends, ``[words, 2]`` in characters."""
    spans = [found.span() for found in _WORD.finditer(text)]
    return np.array(spans, np.int64).reshape(len(spans), 2)


def words_of(text: str) -> list[str]:
    """Return the words of a text as texts are compared by them: without case and punctuation, in form NFKC."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def shingles(text: str, length: int = SHINGLE_WORDS) -> Iterator[str]:
    """Yield the runs of ``length`` words, without case and punctuation; a shorter text is one run.

    Nothing is yielded for a text without words.
    """
    words = words_of(text)
    if words:
        for start in range(max(len(words) - length, 0) + 1):
            yield " ".join(words[start : start + length])
