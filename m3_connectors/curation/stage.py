"""A stage of curation, and a document that it dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from m3_connectors.documents import Document


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A document that a stage dropped.

    Attributes:
        document: The document.
        stage: The name of the stage, by which reports count.
        reason: Why it was dropped, in one line.
        value: The value that decided, such as the number of characters, a share, a language or a similarity.
        duplicate_of: The id of the earlier document that it duplicates; None if it is not a duplicate.
    """

    document: Document
    stage: str
    reason: str
    value: float | str
    duplicate_of: str | None = None


Stage = Callable[[Document], Document | Dropped]
"""Returns the document, possibly with more metadata, or why it is dropped.

A stage that holds resources is a context manager as well; ``Curator`` closes it.
"""
