"""Pairs from the structure of documents: title and body, heading and section, first sentence and rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from m3_connectors.curation.words import word_count
from m3_connectors.documents import Document
from m3_connectors.ingestion.sections import headings, sections
from m3_connectors.training_data.examples import Example

_LONGEST_TITLE = 200
_NOT_IN_TITLES = tuple(".!?…;:,。！？；，、।۔؟|")
"""What a first line ends with that is no title."""

_FEWEST_WORDS = 3
_LONGEST_SENTENCE = 400
_SENTENCE_END = re.compile(r"[.!?…؟۔।]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”’）]*|\n\s*\n")


def title_and_text(document: Document) -> tuple[str | None, str, int]:
    """Return the title of a document, its text without it, and where that text begins.

    The title is the first line if a heading is marked there, or if the line is short, does not end as a sentence, and
    does not go on in the next line: our readers put the title of a page or record there.
    """
    text = document.text
    first = next(headings(text), None)
    if first is not None and not text[: first.start].strip():
        return first.title, text[first.end :].strip(), first.end
    begin = len(text) - len(text.lstrip())
    line, _, rest = text[begin:].partition("\n")
    line = line.strip()
    goes_on = rest.lstrip(" \t\r")[:1].islower()
    if rest.strip() and 0 < len(line) <= _LONGEST_TITLE and not line.endswith(_NOT_IN_TITLES) and not goes_on:
        return line, rest.strip(), len(text) - len(rest)
    return None, text.strip(), begin


def title_body(document: Document) -> Iterator[tuple[str, str, int]]:
    """Yield the title of a document and its text."""
    title, body, start = title_and_text(document)
    if title and body:
        yield title, body, start


def heading_section(document: Document) -> Iterator[tuple[str, str, int]]:
    """Yield each heading, behind the title of the document, and the text below it up to the next heading."""
    title = title_and_text(document)[0]
    for section in sections(document.text):
        text = document.text[section.start : section.end]
        body_start = max((heading.end for heading in headings(text)), default=0)
        body = text[body_start:].strip()
        if section.titles and body and section.titles[-1] != title:
            heading = section.titles[-1]
            yield (f"{title}: {heading}" if title else heading), body, section.start + body_start


def first_sentence_rest(document: Document) -> Iterator[tuple[str, str, int]]:
    """Yield the first sentence of the text of a document, without its title, and the rest."""
    _, body, start = title_and_text(document)
    while (heading := next(headings(body), None)) is not None and not body[: heading.start].strip():
        body = body[heading.end :].strip()
    end = next((found.end() for found in _SENTENCE_END.finditer(body) if _ends(body, found.end())), None)
    if end is None or end > _LONGEST_SENTENCE or word_count(body[:end]) < _FEWEST_WORDS:
        return
    rest = body[end:].strip()
    if rest:
        yield " ".join(body[:end].split()), rest, document.text.index(rest, start)


_INITIAL = re.compile(r"(?:^|[\s.])[^\W\d_]\.$")

KINDS: dict[str, Callable[[Document], Iterator[tuple[str, str, int]]]] = {
    "title-body": title_body,
    "heading-section": heading_section,
    "first-sentence-rest": first_sentence_rest,
}
"""What pairs can be made of a document, by name: each function yields query, passage, and where the passage begins."""


def pairs_of(document: Document, file: str, kinds: Sequence[str]) -> Iterator[Example]:
    """Yield the pairs of these kinds that a document has; some have none.

    Args:
        document: The document.
        file: The file that it came from, for the place of each pair.
        kinds: Names of ``KINDS``.
    """
    name = file if file.endswith(document.id) else f"{file} {document.id}"
    for kind in kinds:
        for query, passage, start in KINDS[kind](document):
            yield Example(query, (passage,), f"{name} {kind} at {start}", kind)


def _ends(text: str, position: int) -> bool:
    """Return whether a sentence may end here: not behind an initial, and not before a word in lower case."""
    following = text[position : position + 50].lstrip()[:1]
    return not following.islower() and not _INITIAL.search(text[max(0, position - 3) : position])
