"""Drop documents that are too short or too long."""

from __future__ import annotations

import dataclasses

from m3_connectors.curation.stage import Dropped
from m3_connectors.curation.words import word_count
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput


@dataclasses.dataclass(frozen=True)
class Span:
    """A range of integers with both ends included.

    Attributes:
        least: The smallest value; None for no limit.
        most: The largest value; None for no limit.

    Raises:
        InvalidInput: No value is in the range, or there is no limit at all.
    """

    least: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if self.least is None and self.most is None:
            raise InvalidInput(f"the range '{self}' has no limit.\n  Give one, such as 50: or :100000.")
        if (self.most is not None and self.most < 0) or (
            self.least is not None and self.most is not None and self.least > self.most
        ):
            raise InvalidInput(
                f"the range '{self}' contains no count.\n  Give MIN:MAX with MIN <= MAX, such as 50:100000."
            )

    def __str__(self) -> str:
        return ":".join("" if limit is None else str(limit) for limit in (self.least, self.most))

    @classmethod
    def parse(cls, text: str) -> Span:
        """Parse ``50:100000``, ``50:`` or ``:100000``.

        Raises:
            InvalidInput: The text has another form.
        """
        least, colon, most = text.partition(":")
        try:
            if not colon:
                raise ValueError
            limits = [int(limit) if limit.strip() else None for limit in (least, most)]
        except ValueError:
            raise InvalidInput(
                f"{text!r} is not a range.\n  Give MIN:MAX, MIN: or :MAX, such as 50:100000."
            ) from None
        return cls(*limits)

    def problem(self, count: int, unit: str) -> str | None:
        """Return why a count is outside the range; None if it is inside."""
        if self.least is not None and count < self.least:
            return f"has {count:,} {unit}, fewer than {self.least:,}"
        if self.most is not None and count > self.most:
            return f"has {count:,} {unit}, more than {self.most:,}"
        return None


class CharacterCount:
    """Drops texts by their number of characters (Unicode code points), without white space at both ends."""

    name = "characters"

    def __init__(self, span: Span) -> None:
        self._span = span

    def __call__(self, document: Document) -> Document | Dropped:
        """Return the document, or why it is dropped."""
        count = len(document.text.strip())
        problem = self._span.problem(count, "characters")
        return document if problem is None else Dropped(document, self.name, problem, count)


class WordCount:
    """Drops texts by their number of words.

    A word is a run of letters, digits and marks. In Chinese, Japanese, Thai and other scripts without spaces between
    words, each character counts as a word.
    """

    name = "words"

    def __init__(self, span: Span) -> None:
        self._span = span

    def __call__(self, document: Document) -> Document | Dropped:
        """Return the document, or why it is dropped."""
        count = word_count(document.text)
        problem = self._span.problem(count, "words")
        return document if problem is None else Dropped(document, self.name, problem, count)
