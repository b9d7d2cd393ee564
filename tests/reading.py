"""Helpers that read files in tests and return what was found and what was skipped."""

from __future__ import annotations

from pathlib import Path

from m3_connectors.documents import Document
from m3_connectors.readers import DeadLetter, Fields, ReadOptions, read_documents


def read(
    *sources: Path, fields: Fields | None = None, options: ReadOptions | None = None
) -> tuple[list[Document], list[DeadLetter]]:
    letters: list[DeadLetter] = []
    documents = read_documents(
        sources,
        fields=fields or Fields(),
        options=options or ReadOptions(),
        on_dead_letter=lambda _, letter: letters.append(letter),
    )
    return list(documents), letters


def texts(*sources: Path, options: ReadOptions | None = None) -> dict[str, str]:
    """Read sources of which nothing is skipped, and return text by id."""
    documents, letters = read(*sources, options=options)
    assert letters == []
    return {document.id: document.text for document in documents}


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
