"""A document as a server is sent it, and the point that an id names there."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from m3_connectors.backends.qdrant.layout import Layout, Vector
from m3_connectors.backends.qdrant.payload import ID, payload_of, point_id
from m3_connectors.backends.qdrant.server_errors import BACKEND
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import DocumentNotFound


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
        """At most the size of its payload, whose letters may double in escapes."""
        return 2 * len(json.dumps(self.payload, ensure_ascii=False).encode()) + 512


def points_of(layout: Layout, documents: Sequence[Document], embeddings: M3Embeddings) -> Iterator[Point]:
    """The points of checked documents, made one at a time."""
    float16 = layout.schema.storage.multivector_dtype == "float16"
    for i, document in enumerate(documents):
        vectors = dict(layout.vectors(embeddings, i))
        yield Point(str(point_id(document.id)), payload_of(document), vectors, float16)


@functools.lru_cache(maxsize=2**16)
def point_of(id: str) -> str:
    """The point of a document's id."""
    # Each search asks for the same few hundred several times, and hashing them was a fifth of its own time.
    return str(point_id(id))


def distinct_points(ids: Sequence[str]) -> list[str]:
    """The points of these ids, each once."""
    return [point_of(id) for id in dict.fromkeys(ids)]


def check_found(ids: Sequence[str], found: Mapping[str, object], operation: str) -> None:
    """Raise DocumentNotFound if the point of an id is not among those found."""
    missing = next((id for id in ids if point_of(id) not in found), None)
    if missing is not None:
        raise DocumentNotFound(f"no document {missing!r}.", backend=BACKEND, operation=operation)
