"""A document as a server is sent it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from m3_connectors.backends.qdrant.layout import Layout, Vector
from m3_connectors.backends.qdrant.payload import ID, JSON, TEXT, payload_of, point_id
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings


@dataclasses.dataclass(frozen=True)
class Point:
    """One document as it is sent.

    Attributes:
        id: Its ``point_id``.
        payload: Our keys.
        vectors: By name; a component without entries has none.
        float16: Whether its multi-vectors are kept in float16, so that no more of them need be sent.
    """

    id: str
    payload: dict[str, Any]
    vectors: dict[str, Vector]
    float16: bool

    @property
    def document_id(self) -> str:
        """The caller's id."""
        return str(self.payload[ID])

    @property
    def text_bytes(self) -> int:
        """At most the size of its payload, where metadata come three times and as JSON may double in escapes."""
        return 2 * len(self.payload[TEXT].encode()) + 6 * len(self.payload[JSON].encode()) + 512


def points_of(layout: Layout, documents: Sequence[Document], embeddings: M3Embeddings) -> Iterator[Point]:
    """The points of checked documents, made one at a time."""
    float16 = layout.schema.storage.multivector_dtype == "float16"
    for i, document in enumerate(documents):
        vectors = dict(layout.vectors(embeddings, i))
        yield Point(str(point_id(document.id)), payload_of(document), vectors, float16)
