"""Drop documents whose characters say that they are not readable text: three shares, each with one limit."""

from __future__ import annotations

import unicodedata
from collections import Counter

from m3_connectors.curation.stage import Dropped
from m3_connectors.documents import Document

_LAYOUT = frozenset("\t\n\v\f\r\x85")
"""Control characters that text files use for lines, columns and pages."""


class Letters:
    """Drops texts with few letters: tables of numbers, base64-like data, rows of symbols.

    The share is that of letters and their marks, of any script, among the characters that are not white space.

    Args:
        least: The smallest share, 0 to 1.
    """

    name = "letters"

    def __init__(self, least: float) -> None:
        self._least = least

    def __call__(self, document: Document) -> Document | Dropped:
        """Return the document, or why it is dropped."""
        letters = visible = 0
        for character, count in Counter(document.text).items():
            if not character.isspace():
                visible += count
                letters += count * (unicodedata.category(character)[0] in "LM")
        share = letters / visible if visible else 0.0
        if share >= self._least:
            return document
        reason = f"{share:.1%} of its characters are letters, fewer than {self._least:.1%}"
        return Dropped(document, self.name, reason, share)


class BrokenCharacters:
    """Drops texts with many characters that a broken encoding or extraction leaves behind.

    These are control characters (except those for lines, columns and pages), replacement characters (U+FFFD), and
    private-use characters, which PDF files with fonts of their own contain in place of letters. The share is that
    among all characters.

    Args:
        most: The largest share, 0 to 1.
    """

    name = "broken characters"

    def __init__(self, most: float) -> None:
        self._most = most

    def __call__(self, document: Document) -> Document | Dropped:
        """Return the document, or why it is dropped."""
        counts = Counter(document.text)
        broken = sum(count for character, count in counts.items() if _is_broken(character))
        share = broken / max(len(document.text), 1)
        if share <= self._most:
            return document
        reason = (
            f"{share:.1%} of its characters are control, replacement or private-use characters, "
            f"more than {self._most:.1%}"
        )
        return Dropped(document, self.name, reason, share)


class RepeatedLines:
    """Drops texts that repeat their own lines: menus, footers of every page, broken downloads.

    The share is that of the characters in lines that occurred before in the same text, among the characters in all
    lines. Blank lines and white space at both ends of lines do not count.

    Args:
        most: The largest share, 0 to 1.
    """

    name = "repeated lines"

    def __init__(self, most: float) -> None:
        self._most = most

    def __call__(self, document: Document) -> Document | Dropped:
        """Return the document, or why it is dropped."""
        counts = Counter(map(str.strip, document.text.splitlines()))
        total = sum(len(line) * count for line, count in counts.items())
        repeated = sum(len(line) * (count - 1) for line, count in counts.items())
        share = repeated / total if total else 0.0
        if share <= self._most:
            return document
        reason = f"{share:.1%} of its text is in repeated lines, more than {self._most:.1%}"
        return Dropped(document, self.name, reason, share)


def _is_broken(character: str) -> bool:
    if character == "\ufffd":
        return True
    return unicodedata.category(character) in ("Cc", "Co") and character not in _LAYOUT
