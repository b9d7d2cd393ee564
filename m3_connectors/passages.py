"""Where a stored text is in the document that it was cut from, as its metadata keep it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

FIELD = "chunk"
"""The metadata field in which a chunk keeps its parent, position, span and titles."""

PARENT_FIELD = f"{FIELD}.parent"
"""The name of the parent in filters."""


@dataclasses.dataclass(frozen=True)
class Passage:
    """The place of a chunk in its parent.

    Attributes:
        parent: The id of the document that the chunk was cut from; of a page of a PDF, that of the file.
        position: The position of the chunk, from 0, among those of the document (of the page, if it has one).
        count: The number of these chunks.
        start: The first character of the chunk in the text of the document (of the page, if it has one).
        end: The character after its last.
        titles: The headings above it, the outermost first.
        page: The number of its page, from 1, if the document has pages.
    """

    parent: str
    position: int
    count: int
    start: int
    end: int
    titles: tuple[str, ...] = ()
    page: int | None = None

    @classmethod
    def of(cls, text: str, metadata: Mapping[str, Any]) -> Passage | None:
        """Return the place of a stored text, or None if it is a document of its own.

        A text whose field ``chunk`` names only its parent is the only chunk of its page.
        """
        place = metadata.get(FIELD)
        if not isinstance(place, Mapping) or not isinstance(place.get("parent"), str):
            return None
        titles = place.get("titles")
        page = _number(metadata, "page", 0)
        return cls(
            place["parent"],
            _number(place, "position", 0),
            _number(place, "count", 1),
            _number(place, "start", 0),
            _number(place, "end", len(text)),
            tuple(map(str, titles)) if isinstance(titles, list | tuple) else (),
            page or None,
        )


def is_parent_only(place: object) -> bool:
    """Return whether a field ``chunk`` names only the parent: such a text may be cut further."""
    return isinstance(place, Mapping) and list(place) == ["parent"] and isinstance(place["parent"], str)


def _number(values: Mapping[str, Any], name: str, default: int) -> int:
    value = values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default
