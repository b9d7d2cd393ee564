"""The form in which a document is sent to a server, and the point of an id."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from m3_connectors.backends.precision import Precision
from m3_connectors.backends.qdrant.layout import Layout, Vector
from m3_connectors.backends.qdrant.payload import ID, payload_of, point_id
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings


@dataclasses.dataclass(frozen=True)
class Point:
    """One document in the form in which it is sent.

    Attributes:
        id: Its ``point_id``.
        payload: The payload, with the keys of this package.
        vectors: Vectors by name; a component without entries has none.
        precision: That of its multi-vectors, which may need fewer digits than float32.
    """

    id: str
    payload: dict[str, Any]
    vectors: dict[str, Vector]
    precision: Precision

    @property
    def document_id(self) -> str:
        """The caller's id."""
        return str(self.payload[ID])

    @property
    def text_bytes(self) -> int:
        """An upper bound of the size of the payload; escapes may double its characters."""
        return 2 * len(json.dumps(self.payload, ensure_ascii=False).encode()) + 512


def points_of(layout: Layout, documents: Sequence[Document], embeddings: M3Embeddings) -> Iterator[Point]:
    """Yield the points of checked documents, built one at a time."""
    for i, document in enumerate(documents):
        vectors = dict(layout.vectors(embeddings, i))
        yield Point(str(point_id(document.id)), payload_of(document), vectors, layout.schema.precision)


@functools.lru_cache(maxsize=2**16)
def point_of(id: str) -> str:
    """Return the point of a document's id."""
    # Each search needs the same few hundred points several times; hashing them took a fifth of its own time.
    return str(point_id(id))


def distinct_points(ids: Sequence[str]) -> list[str]:
    """Return the distinct points of these ids."""
    return [point_of(id) for id in dict.fromkeys(ids)]
