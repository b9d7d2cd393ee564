"""Checks of a model's answers: whether one is a question about its passage that can be trained on."""

from __future__ import annotations

import dataclasses
import difflib
import re

from m3_connectors.curation import Languages, Span
from m3_connectors.curation.languages import FIELD
from m3_connectors.curation.words import word_count, words_of
from m3_connectors.documents import Document
from m3_connectors.training_data.curating import EVALUATION
from m3_connectors.training_data.overlap import KeptOut
from m3_connectors.training_data.questions.articles import Article
from m3_connectors.training_data.questions.finding import Finder

QUESTION_WORDS = Span(3, 64)
_LARGEST_COPY = 0.9
_FEWEST_COPIED = 6
"""Questions contain names and terms of their passage; a run of so many words is a sentence of it."""

_THOUGHTS = re.compile(r".*</think(?:ing)?>", re.DOTALL)
"""Some servers leave out the mark at the beginning."""

_LABEL = re.compile(r"(?:\*\*)?(?:question|q)\s*:(?:\*\*)?\s*", re.IGNORECASE)
_QUOTES = (('"', '"'), ("“", "”"), ("„", "“"), ("«", "»"), ("「", "」"), ("'", "'"))


@dataclasses.dataclass(frozen=True)
class Rejection:
    """Why an answer is not used.

    Attributes:
        stage: The check, by which reports count.
        reason: Why, in one line.
        value: The value that decided.
    """

    stage: str
    reason: str
    value: float | str | None = None


def question_of(answer: str) -> str:
    """Return the question of an answer: without the thoughts of a model before it, a label, and quotation marks."""
    text = _THOUGHTS.sub("", answer).strip()
    text = text[found.end() :] if (found := _LABEL.match(text)) else text
    for first, last in _QUOTES:
        inner = text[1:-1]
        if len(text) > 2 and text.startswith(first) and text.endswith(last) and first not in inner:
            text = inner
    return text.strip()


class Checks:
    """The checks of questions, in their order.

    Args:
        finder: Finds passages by a question.
        round_trip: The rank that its own passage must reach.
        words: How many words a question may have.
        kept_out: Evaluation texts.
    """

    def __init__(
        self, finder: Finder, round_trip: int, words: Span = QUESTION_WORDS, kept_out: KeptOut | None = None
    ) -> None:
        self._finder = finder
        self._round_trip = round_trip
        self._words = words
        self._kept_out = kept_out
        self._languages = Languages()

    def rejection(self, question: str, article: Article) -> Rejection | None:
        """Return why a question is not used; None if it passes all checks."""
        if "\n" in question:
            return Rejection("length", "it has more than one line", question.count("\n") + 1)
        count = word_count(question)
        if (problem := self._words.problem(count, "words")) is not None:
            return Rejection("length", f"it {problem}", count)
        tagged = self._languages(Document("", question))
        language = tagged.metadata[FIELD] if isinstance(tagged, Document) else None
        if language != article.language:
            return Rejection("language", f"its language is {language!r}, not {article.language!r}", language)
        if (copied := _copied(question, article.passage)) is not None:
            return Rejection(
                "copy", f"{copied:.0%} of its words are one run of words of the passage", round(copied, 2)
            )
        if self._kept_out is not None and (shared := self._kept_out.shared_with(question)) is not None:
            return Rejection(EVALUATION, f"it shares words with a text of {shared.name}", shared.run)
        if article.passage_id not in self._finder.find(question, self._round_trip):
            reason = f"its passage is not among the {self._round_trip} that it finds first"
            return Rejection("round trip", reason, self._round_trip)
        return None


def _copied(question: str, passage: str) -> float | None:
    """Return the share of a question that is copied from its passage, if that is a copy; else None."""
    asked, known = words_of(question), words_of(passage)
    found = difflib.SequenceMatcher(None, asked, known, autojunk=False).find_longest_match()
    share = found.size / len(asked) if asked else 0.0
    return share if found.size >= _FEWEST_COPIED and share >= _LARGEST_COPY else None
