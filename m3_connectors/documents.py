"""The documents that an index stores and the hits that it returns."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from m3_connectors.errors import InvalidInput
from m3_connectors.passages import Passage

MAX_ID_BYTES = 512
"""The longest document id in UTF-8 bytes (Elasticsearch's limit, applied everywhere to keep ids portable)."""

MIN_WHOLE, MAX_WHOLE = -(2**63), 2**63 - 1
"""The range of integers in metadata and in filters that every store keeps exactly."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A text with an id and metadata.

    Attributes:
        id: The caller's id, 1 to 512 bytes of UTF-8.
        text: The text that is encoded and returned.
        metadata: A JSON object whose fields can be used in filters.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def passage(self) -> Passage | None:
        """The place of this text in the document that it was cut from; None if it is a document of its own."""
        return Passage.of(self.text, self.metadata)

    @property
    def parent(self) -> str:
        """The id of the document that this text was cut from; its own id if it was not cut."""
        passage = self.passage
        return self.id if passage is None else passage.parent


@dataclasses.dataclass(frozen=True)
class Scores:
    """The paper's three scores of one document; None if a component is not stored or was not requested.

    Attributes:
        dense: The inner product of the dense vectors.
        sparse: The sum, over the tokens that both texts share, of the product of their weights.
        multivector: The mean, over query rows, of the highest inner product with a document row.
    """

    dense: float | None = None
    sparse: float | None = None
    multivector: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """The scores by name, as JSON takes them."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Hit:
    """One search result: the document, its score, and the scores that it was fused from.

    Attributes:
        document: The document.
        score: The score that orders the hits: the re-ranker's score if there is a re-ranker, else the fused score.
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


class CheckedDocuments(list[Document]):
    """Documents of which each can be stored: later stages do not check them again."""


def check_documents(documents: Iterable[Document]) -> CheckedDocuments:
    """Return all documents as a list after checking that each can be stored.

    Raises:
        InvalidInput: A document cannot be stored; the message gives the position and id of the first one.
    """
    if isinstance(documents, CheckedDocuments):
        return documents
    checked = CheckedDocuments(documents)
    for position, document in enumerate(checked):
        if not isinstance(document, Document):
            raise InvalidInput(
                f"documents[{position}] is {type(document).__name__}; it must be a Document.\n"
                "  Pass m3_connectors.Document(id, text)."
            )
        where = f"documents[{position}]"
        check_id(document.id, where)
        if not isinstance(document.text, str):
            raise InvalidInput(
                f"{where}.text is {type(document.text).__name__} (id {document.id!r}); it must be a string.\n"
                "  Pass the text of the document as a str."
            )
        check_unicode(document.text, f"{where}.text (id {document.id!r})")
        check_metadata(document.metadata, f"{where}.metadata (id {document.id!r})")
    return checked


def check_id(id: object, where: str) -> None:
    """Raise InvalidInput unless ``id`` is a string of 1 to 512 bytes of UTF-8."""
    if not isinstance(id, str):
        raise InvalidInput(f"{where}.id is {type(id).__name__}; ids must be strings.\n  Use str(id).")
    check_unicode(id, f"{where}.id")
    size = len(id.encode())
    if size == 0:
        raise InvalidInput(
            f"{where}.id is empty; an id must have 1 to {MAX_ID_BYTES} bytes of UTF-8.\n"
            "  Give each document a unique id, such as its path."
        )
    if size > MAX_ID_BYTES:
        raise InvalidInput(
            f"{where}.id has {size} bytes ({id[:40]!r}…); an id must have 1 to {MAX_ID_BYTES} bytes of "
            "UTF-8.\n  Shorten it, or use a hash of it as the id."
        )


def check_unicode(text: str, where: str) -> None:
    """Raise InvalidInput if the text contains a lone surrogate, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{where} has a lone surrogate at character {error.start}, so it is not valid Unicode.\n"
            "  Decode the source with errors='replace'."
        ) from None


def check_metadata(metadata: object, where: str) -> None:
    """Raise InvalidInput unless ``metadata`` is a JSON object: string keys, finite numbers, JSON types."""
    if not isinstance(metadata, Mapping):
        raise InvalidInput(
            f"{where} is {type(metadata).__name__}; it must be a JSON object.\n"
            "  Pass a dict with string keys."
        )
    _check_json(metadata, where, depth=0)


def _check_json(value: object, where: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise InvalidInput(
            f"{where} is nested more than {_MAX_DEPTH} levels deep.\n"
            "  Flatten it, or store the inner part as JSON text."
        )
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        check_unicode(value, where)
    elif isinstance(value, int):
        if not MIN_WHOLE <= value <= MAX_WHOLE:
            raise InvalidInput(
                f"{where} is {value}; integers must fit into 64 bits (-2**63 to 2**63 - 1).\n"
                "  Store it as a string."
            )
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput(f"{where} is {value}, which is not a JSON number.\n  Omit the field.")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidInput(
                    f"{where} has the key {key!r}; metadata keys must be strings.\n  Use {str(key)!r}."
                )
            check_unicode(key, where)
            _check_json(item, f"{where}[{key!r}]", depth + 1)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_json(item, f"{where}[{i}]", depth + 1)
    else:
        raise InvalidInput(
            f"{where} is {type(value).__name__}, which JSON cannot represent.\n"
            "  Convert it to a string or a number."
        )


def metadata_json(metadata: Mapping[str, Any]) -> str:
    """Return checked metadata as JSON text."""
    # The only objects in it that json cannot serialize are mappings other than dict.
    return json.dumps(metadata, ensure_ascii=False, default=dict)


def canonical_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the metadata as JSON round-trips it (tuples become lists)."""
    result: dict[str, Any] = json.loads(metadata_json(metadata))
    return result


_MAX_DEPTH = 20
