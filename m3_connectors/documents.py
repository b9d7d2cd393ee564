"""What goes into an index and what comes out of it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from m3_connectors.errors import InvalidInput

MAX_ID_BYTES = 512
"""Longest document id in UTF-8 bytes (Elasticsearch's limit, kept everywhere so that ids can move)."""

MIN_WHOLE, MAX_WHOLE = -(2**63), 2**63 - 1
"""Whole numbers in metadata and in filters: what every store keeps exactly."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A text with an id and metadata.

    Attributes:
        id: The caller's own id, 1 to 512 bytes of UTF-8.
        text: What is encoded and returned.
        metadata: A JSON object; its fields can be filtered on.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Scores:
    """The paper's three scores of one document; None where a component is not stored or not asked.

    Attributes:
        dense: Inner product of the dense vectors.
        sparse: Sum over shared tokens of the products of their weights.
        multivector: Mean over query rows of the best inner product with a document row.
    """

    dense: float | None = None
    sparse: float | None = None
    multivector: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """The scores by name, as JSON takes them."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Hit:
    """One answer: the document, its score, and the scores that it was fused from.

    Attributes:
        document: The document.
        score: What the hits are ordered by: the fused score, or the re-ranker's where there is one.
        scores: The component scores.
        fused_score: The fused score of a hit that was re-ranked; None without a re-ranker.
    """

    document: Document
    score: float
    scores: Scores
    fused_score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The hit as JSON takes it: id, score, scores, text and metadata; and fused_score if it was re-ranked."""
        fused = {} if self.fused_score is None else {"fused_score": self.fused_score}
        return {
            "id": self.document.id,
            "score": self.score,
            **fused,
            "scores": self.scores.to_dict(),
            "text": self.document.text,
            "metadata": dict(self.document.metadata),
        }


def check_documents(documents: Iterable[Document]) -> list[Document]:
    """All documents, each fit to be stored.

    Raises:
        InvalidInput: Names the first document that is not, by position and id.
    """
    checked = list(documents)
    for position, document in enumerate(checked):
        if not isinstance(document, Document):
            raise InvalidInput(
                f"documents[{position}] is {type(document).__name__}: give m3_connectors.Document(id, text)."
            )
        where = f"documents[{position}]"
        check_id(document.id, where)
        if not isinstance(document.text, str):
            raise InvalidInput(
                f"{where}.text is {type(document.text).__name__} (id {document.id!r}): "
                "every document needs a text."
            )
        check_unicode(document.text, f"{where}.text (id {document.id!r})")
        check_metadata(document.metadata, f"{where}.metadata (id {document.id!r})")
    return checked


def check_id(id: object, where: str) -> None:
    """Raise InvalidInput unless ``id`` is a string of 1 to 512 bytes of UTF-8."""
    if not isinstance(id, str):
        raise InvalidInput(f"{where}.id is {type(id).__name__}: ids are strings; use str(id).")
    check_unicode(id, f"{where}.id")
    size = len(id.encode())
    if size == 0:
        raise InvalidInput(f"{where}.id is empty: ids have 1 to {MAX_ID_BYTES} bytes of UTF-8.")
    if size > MAX_ID_BYTES:
        raise InvalidInput(
            f"{where}.id has {size} bytes ({id[:40]!r}…): ids have 1 to {MAX_ID_BYTES} bytes of UTF-8."
        )


def check_unicode(text: str, where: str) -> None:
    """Raise InvalidInput if the text has a lone surrogate, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{where} has a lone surrogate at character {error.start}: it is not valid Unicode.\n"
            "  Decode the source with errors='replace'."
        ) from None


def check_metadata(metadata: object, where: str) -> None:
    """Raise InvalidInput unless ``metadata`` is a JSON object: string keys, finite numbers, no other types."""
    if not isinstance(metadata, Mapping):
        raise InvalidInput(f"{where} is {type(metadata).__name__}: it must be a JSON object (a dict).")
    _check_json(metadata, where, depth=0)


def _check_json(value: object, where: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise InvalidInput(f"{where} is nested deeper than {_MAX_DEPTH} levels.")
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        check_unicode(value, where)
    elif isinstance(value, int):
        if not MIN_WHOLE <= value <= MAX_WHOLE:
            raise InvalidInput(
                f"{where} is {value}: whole numbers fit 64 bits (-2**63 to 2**63 - 1).\n  Store it as a string."
            )
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput(f"{where} is {value}: JSON has no such number; leave the field out.")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidInput(f"{where} has the key {key!r}: keys of metadata are strings.")
            check_unicode(key, where)
            _check_json(item, f"{where}[{key!r}]", depth + 1)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_json(item, f"{where}[{i}]", depth + 1)
    else:
        raise InvalidInput(
            f"{where} is {type(value).__name__}, which JSON cannot hold: convert it to text or a number."
        )


def metadata_json(metadata: Mapping[str, Any]) -> str:
    """Checked metadata as JSON text."""
    # The only objects in it that json does not know are mappings other than dict.
    return json.dumps(metadata, ensure_ascii=False, default=dict)


def canonical_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as JSON gives it back (tuples become lists), independent of the caller's objects."""
    result: dict[str, Any] = json.loads(metadata_json(metadata))
    return result


_MAX_DEPTH = 20
