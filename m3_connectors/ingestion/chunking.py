"""Cut documents into chunks: by tokens of the model with overlap, by headings, or not at all.

A document is tokenised once and cut at token boundaries, preferably between paragraphs, lines, sentences or words. The
spans of its chunks cover the text without gaps, which general splitters do not promise: they drop white space.
"""

from __future__ import annotations

import dataclasses
import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from m3_connectors.documents import MAX_ID_BYTES, Document
from m3_connectors.errors import InvalidInput
from m3_connectors.ingestion.sections import Span, sections
from m3_connectors.passages import FIELD, is_parent_only

TokenSpans = Callable[[str], npt.NDArray[np.int64]]
"""Returns where each token of a text begins and ends, int64 ``[tokens, 2]`` in characters."""

Kind = Literal["none", "tokens", "headings"]

_FEWEST_TOKENS = 16
_SENTENCE_ENDS = frozenset(".!?…؟۔।")
_FULL_WIDTH_ENDS = frozenset("。！？")


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How documents are cut.

    Attributes:
        kind: ``none`` (a document is stored whole), ``tokens``, or ``headings`` (sections of Markdown, HTML and DOCX;
            longer ones are cut by tokens).
        tokens: The maximum number of tokens of a chunk.
        overlap: The number of tokens at the end of a chunk that the next one repeats; fewer where that would begin
            within a word.

    Raises:
        InvalidInput: A value is out of range.
    """

    kind: Kind = "none"
    tokens: int = 512
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InvalidInput(
                f"{self.kind!r} is not a way to cut documents.\n  Use one of {', '.join(get_args(Kind))}."
            )
        if self.tokens < _FEWEST_TOKENS:
            raise InvalidInput(
                f"chunks of {self.tokens} tokens are too short.\n  Use at least {_FEWEST_TOKENS}."
            )
        if not 0 <= self.overlap <= self.tokens // 2:
            raise InvalidInput(
                f"an overlap of {self.overlap} tokens does not fit into chunks of {self.tokens}.\n"
                f"  Use 0 to {self.tokens // 2}, half of a chunk."
            )

    @classmethod
    def parse(cls, text: str) -> Chunking:
        """Read ``none``, ``tokens[:TOKENS[:OVERLAP]]`` or ``headings[:TOKENS]``.

        Raises:
            InvalidInput: The text has another form, or a value is out of range.
        """
        kind, *numbers = text.split(":")
        most = {"tokens": 2, "headings": 1}.get(kind, 0)
        if kind not in get_args(Kind) or len(numbers) > most or not all(n.isdecimal() for n in numbers):
            raise InvalidInput(
                f"{text!r} is not a way to cut documents.\n"
                "  Use none, tokens:512:64 (tokens and overlap) or headings:512."
            )
        tokens = int(numbers[0]) if numbers else cls.tokens
        overlap = int(numbers[1]) if len(numbers) > 1 else (tokens // 8 if kind == "tokens" else 0)
        return cls(kind, tokens, overlap)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """The form that ``parse`` reads, complete: two equal ones cut a text in the same way."""
        if self.kind == "tokens":
            return f"tokens:{self.tokens}:{self.overlap}"
        return f"headings:{self.tokens}" if self.kind == "headings" else "none"

    def chunks(self, document: Document, token_spans: TokenSpans | None) -> list[Document]:
        """Return the chunks of a document, at least one; with ``none``, the document itself.

        A document whose field ``chunk`` names only its parent, as that of a page of a PDF does, is cut, and this is
        the parent of its chunks. The parent of other chunks is the document.

        Args:
            document: The document.
            token_spans: The tokens of the model.

        Raises:
            InvalidInput: The encoder has no tokens, or the document has a metadata field ``chunk`` of its own.
        """
        if self.kind == "none":
            return [document]
        if token_spans is None:
            raise InvalidInput(
                f"this encoder does not say where its tokens are, so documents cannot be cut into {self}.\n"
                "  Use M3Encoder, or chunking none."
            )
        if FIELD in document.metadata and not is_parent_only(document.metadata[FIELD]):
            raise InvalidInput(
                f"the metadata have a field {FIELD!r} ({document.metadata[FIELD]!r:.40}), in which a chunk keeps its "
                "parent and position.\n"
                "  Rename the field, or use chunking none."
            )
        spans = self.spans(document.text, token_spans)
        return [
            Document(
                chunk_id(document.id, i),
                document.text[span.start : span.end],
                {**document.metadata, FIELD: _place(document.parent, i, len(spans), span)},
            )
            for i, span in enumerate(spans)
        ]

    def spans(self, text: str, token_spans: TokenSpans) -> list[Span]:
        """Return the parts of a text that become chunks, in order; together they cover it."""
        found = sections(text)
        if self.kind == "headings":
            return [
                Span(section.start + start, section.start + end, section.titles)
                for section in found
                for start, end in _cut(
                    text[section.start : section.end], token_spans, self.tokens, self.overlap
                )
            ]
        starts = [section.start for section in found]
        return [
            Span(start, end, found[bisect_right(starts, start) - 1].titles)
            for start, end in _cut(text, token_spans, self.tokens, self.overlap)
        ]


def chunk_id(parent: str, position: int) -> str:
    """Return the id of a chunk: that of its parent, and its position. Different chunks have different ids."""
    id = f"{parent}#{position}"
    if len(id.encode()) <= MAX_ID_BYTES:
        return id
    return f"{hashlib.sha256(parent.encode()).hexdigest()}#{position}"


def chunk_ids(parent: str, count: int) -> list[str]:
    """Return the ids under which a document is stored: of ``count`` chunks, or with 0 its own."""
    return [chunk_id(parent, i) for i in range(count)] if count else [parent]


def _place(parent: str, position: int, count: int, span: Span) -> dict[str, object]:
    titles = {"titles": list(span.titles)} if span.titles else {}
    return {
        "parent": parent,
        "position": position,
        "count": count,
        "start": span.start,
        "end": span.end,
        **titles,
    }


def _cut(text: str, token_spans: TokenSpans, most: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each part of a text, of at most ``most`` tokens each."""
    tokens = token_spans(text)[:, 0]
    # Several tokens may begin at the same character: a text is cut before the first of them.
    starts, before = (array.tolist() for array in np.unique(tokens, return_index=True))
    end = len(starts)
    starts.append(len(text))
    before.append(len(tokens))
    first, start = 0, 0
    while end - first > 1:
        room = most
        while True:
            last = max(first + 1, bisect_right(before, before[first] + room) - 1)
            cut = len(text) if last == end else _best(text, starts, first, last)
            # A part alone may have more tokens than within the text, as the pieces of its words differ.
            excess = len(token_spans(text[start:cut])) - most
            if room <= 2 or excess <= 0:
                break
            room = min(room, before[bisect_left(starts, cut)] - before[first]) - excess
        if cut == len(text):
            break
        yield start, cut
        following = bisect_right(starts, cut) - 1
        if text[starts[following] : cut].strip():  # else the token begins with the white space before the cut
            following += starts[following] < cut
        # The overlap begins at a word if there is one, and always behind the beginning of this part.
        back = max(first + 1, bisect_left(before, before[following] - overlap))
        words = [j for j in range(back, following) if _boundary(text, starts[j])[0]]
        first = min(words[0] if words else back, following)
        start = min(max(_boundary(text, starts[first])[1], start + 1), cut)
    yield start, len(text)


def _best(text: str, starts: list[int], first: int, last: int) -> int:
    """Return where to cut before token ``last`` or up to a third earlier."""
    earliest = max(first + 1, last - (last - first) // 3)
    places = (_boundary(text, starts[j]) for j in range(last, earliest - 1, -1))
    return max(places, key=lambda place: place[0])[1]  # of equal ones the last in the text


def _boundary(text: str, position: int) -> tuple[int, int]:
    """Return how good a place it is to cut (0 is within a word), and the place, which is behind white space."""
    left = right = position
    while left > 0 and text[left - 1].isspace():
        left -= 1
    while right < len(text) and text[right].isspace():
        right += 1
    gap, before = text[left:right], text[left - 1] if left else ""
    lines = gap.count("\n")
    if lines:
        return (4 if lines > 1 else 3), right
    if before in _FULL_WIDTH_ENDS or (gap and before in _SENTENCE_ENDS):
        return 2, right
    return (1 if gap else 0), right
