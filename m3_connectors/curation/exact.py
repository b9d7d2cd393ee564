"""Drop documents whose text occurred before."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from m3_connectors.curation.originals import Originals, text_hash
from m3_connectors.curation.stage import Dropped
from m3_connectors.documents import Document


class ExactDuplicates:
    """Drops each text that occurred before, compared in Unicode's form NFC with each run of white space as one space.

    The first document stays. Metadata does not count; a document with the id of the earlier one is that document,
    read again, and stays. The hashes (16 bytes a document) and ids are in a temporary file, so memory does not grow.
    A context manager.
    """

    name = "exact duplicates"

    def __init__(self) -> None:
        self._originals = Originals()

    def __call__(self, document: Document) -> Document | Dropped:
        """Return the document, or why it is dropped."""
        hash = text_hash(document.text)
        original = self._originals.of_text(hash)
        if original is None:
            self._originals.keep(document.id, hash)
            return document
        if original.id == document.id:
            return document
        self._originals.note_duplicate(original, document.id)
        return exact_duplicate(document, original.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._originals.__exit__(kind, error, trace)


def exact_duplicate(document: Document, original: str) -> Dropped:
    """Return why a document with the text of an earlier one is dropped."""
    return Dropped(document, ExactDuplicates.name, f"has the same text as {original!r}", 1.0, original)
