"""What ``m3 search`` shows of a chunk: its place in the document, and the lines that share most with the query."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.cells import cell_len
from rich.text import Text

from m3_connectors.cli.console import out
from m3_connectors.passages import Passage

_LINES = 2
_STEM = 5
"""The letters by which words are compared, so that inflected forms are the same."""

_MOST_MATCHES = 100
"""How many matching words of a part are looked at."""

_WORD = re.compile(r"\w+")
_SENTENCE_START = re.compile(r"(?:\A|\n|(?<=[.!?…])\s|(?<=[。！？]))\s*")
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af]"
)
"""Scripts without spaces between words (Korean is among them because of its endings): pairs of letters are compared."""


def place_of(passage: Passage) -> str:
    """Return where a chunk is: parent, page, headings, and its number if there are several."""
    page = [] if passage.page is None else [f"page {passage.page}"]
    titles = [" › ".join(passage.titles)] if passage.titles else []
    number = [f"{passage.position + 1} of {passage.count}"] if passage.count > 1 else []
    return " · ".join([passage.parent, *page, *titles, *number])


def best_lines(text: str, query: str, width: int) -> Text:
    """Return the part of a text that shares most words with the query, as lines of a width in columns."""
    # Control characters would move the cursor; line ends are kept, because sentences begin after them.
    text = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text).strip()
    room = width * _LINES * len(text) // max(1, cell_len(text))
    # Lines are wrapped between words, so fewer characters may be shown.
    sure = room * 3 // 4
    start = 0 if len(text) <= sure else _best_start(text, query, sure)
    shown = ("…" if start else "") + " ".join(text[start : start + room + width].split())
    lines = Text(shown).wrap(out, width)
    kept = lines[:_LINES]
    if len(lines) > _LINES or start + room + width < len(text):
        kept[-1].truncate(width - 2, overflow="crop")
        kept[-1].append(" …")
    return Text("\n").join(kept)


def _best_start(text: str, query: str, room: int) -> int:
    """Return where the part of ``room`` characters begins that has most words of the query, soonest after its start."""
    asked = {word for word, _, _ in _words(query)}
    matches = [(word, start, end) for word, start, end in _words(text) if word in asked]
    sentences = [found.end() for found in _SENTENCE_START.finditer(text)]
    best, most, soonest = 0, 0, 0
    # A part begins with a sentence if that does not cost a word, else with a matching word.
    for starts in (sentences, [start for _, start, _ in matches]):
        first, most_of_others = 0, most
        for start in starts:
            while first < len(matches) and matches[first][1] < start:
                first += 1
            within: set[str] = set()
            last = 0
            for word, _, end in matches[first : first + _MOST_MATCHES]:
                if end > start + room:
                    break
                if word not in within:
                    within.add(word)
                    last = end - start
            if len(within) > most or (len(within) == most > most_of_others and last < soonest):
                best, most, soonest = start, len(within), last
    return best


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield what is compared of each word, and where the word begins and ends."""
    for found in _WORD.finditer(text):
        word, start = found[0].casefold(), found.start()
        if not _UNSPACED.search(word):
            yield word[:_STEM], start, found.end()
            continue
        for i in range(max(1, len(word) - 1)):
            yield word[i : i + 2], start + i, start + i + 2
