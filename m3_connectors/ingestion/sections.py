"""The sections of a Markdown text, by its headings. Readers mark the headings of HTML and DOCX as in Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

_LONGEST_TITLE = 200
"""The limit of a title in characters, because every chunk of its section keeps it."""

_FEWEST_UNDERLINES = 3
_DEEPEST = 6
_MOST_INDENTED = 3
"""A line that is indented further is code."""

_NO_PARAGRAPH = tuple("-*+>|=")
"""How a line begins that a line of dashes does not make a heading: in lists, quotations and tables."""


@dataclasses.dataclass(frozen=True)
class Span:
    """A part of a text.

    Attributes:
        start: Its first character.
        end: The character after its last.
        titles: The headings above it, the outermost first.
    """

    start: int
    end: int
    titles: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading.

    Attributes:
        start: The first character of its line.
        end: The first character of the line below it.
        level: 1 to 6; 1 is the outermost.
        title: Its text; longer than 200 characters, it is cut and ends in ``…``.
    """

    start: int
    end: int
    level: int
    title: str


def sections(text: str) -> list[Span]:
    """Return the sections of a text, in order; together they cover it.

    A heading without text below it belongs to the section of the next one, or of the one before it at the end. A
    single line above the first heading, such as the title of a page, belongs to the section of that heading.
    """
    found: list[Span] = []
    start = below = 0
    titles: dict[int, str] = {}
    for heading in headings(text):
        before = text[below : heading.start].strip()
        if before and (titles or not _may_be_title(before)):
            found.append(Span(start, heading.start, tuple(titles.values())))
            start = heading.start
        titles = {level: title for level, title in titles.items() if level < heading.level}
        titles[heading.level] = heading.title
        below = heading.end
    if text[below:].strip() or not found:
        found.append(Span(start, len(text), tuple(titles.values())))
    else:
        found[-1] = dataclasses.replace(found[-1], end=len(text))
    return found


def headings(text: str) -> Iterator[Heading]:
    """Yield the headings of a text: lines that begin with ``#``, or underlined ones; not those in code."""
    fence = ""
    position = before_start = 0
    before, may_be_title = "", False  # the line before, and whether it is a paragraph of one line
    for line in text.splitlines(keepends=True):
        start, position = position, position + len(line)
        content = line.strip()
        is_code = len(line) - len(line.lstrip(" ")) > _MOST_INDENTED
        if mark := "" if is_code else _fence(content):
            if not fence:
                fence = mark
            elif mark[0] == fence[0] and len(mark) >= len(fence) and mark == content:
                fence = ""
            before, may_be_title = content, False
            continue
        if fence or is_code:
            before, may_be_title = content, False
            continue
        if marked := _marked(content):
            yield Heading(start, position, marked[0], _shortened(marked[1]))
            before, may_be_title = "", False
            continue
        if may_be_title and (level := _underlines(content)):
            yield Heading(before_start, position, level, _shortened(before))
            before, may_be_title = "", False
            continue
        may_be_title = bool(content) and not before and not content.startswith(_NO_PARAGRAPH)
        before, before_start = content, start


def _marked(line: str) -> tuple[int, str] | None:
    """Return the level and title of a line such as ``## Title ##``."""
    # Without a regular expression, which would take long for a line with many blanks.
    text = line.lstrip("#")
    level = len(line) - len(text)
    if not 1 <= level <= _DEEPEST or not text[:1].isspace():
        return None
    title = text.strip()
    without_end = title.rstrip("#")
    if without_end[-1:].isspace():
        title = without_end.rstrip()
    return (level, title) if title.strip("#") else None


def _underlines(line: str) -> int:
    """Return the level of the heading that a line underlines, or 0."""
    is_long = len(line) >= _FEWEST_UNDERLINES
    return next((level for level, mark in enumerate("=-", 1) if is_long and not line.strip(mark)), 0)


def _fence(line: str) -> str:
    """Return the mark with which a line opens or closes a block of code, or nothing."""
    for mark in "`~":
        rest = line.lstrip(mark)
        length = len(line) - len(rest)
        if length >= _FEWEST_UNDERLINES and (mark == "~" or "`" not in rest):
            return mark * length
    return ""


def _may_be_title(text: str) -> bool:
    return "\n" not in text and len(text) <= _LONGEST_TITLE


def _shortened(title: str) -> str:
    return title if len(title) <= _LONGEST_TITLE else f"{title[: _LONGEST_TITLE - 1]}…"
