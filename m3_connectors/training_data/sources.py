"""Documents of sources, as our readers read them, and what could not be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from m3_connectors.documents import Document
from m3_connectors.readers import DeadLetter, Fields, ReadOptions, Source, read_documents
from m3_connectors.readers.inputs import shown
from m3_connectors.training_data.examples import Example, Unusable, broken
from m3_connectors.training_data.structure import pairs_of


@dataclasses.dataclass(frozen=True)
class Documents:
    """The documents of sources; they can be read again unless a source is a stream.

    Attributes:
        sources: Files, folders and URLs.
        fields: The fields of text and id.
        options: How files are read that do not say it themselves.
        on_notice: Called with each fact that makes the reading less certain.
    """

    sources: Sequence[Source]
    fields: Fields
    options: ReadOptions
    on_notice: Callable[[str], None] = lambda _: None

    def __iter__(self) -> Iterator[tuple[str, Document] | Unusable]:
        """Yield each document behind the name of its file, and the records and files that cannot be read."""
        file = [""]
        skipped: list[DeadLetter] = []
        documents = read_documents(
            self.sources,
            fields=self.fields,
            options=self.options,
            on_file=lambda _, path: file.__setitem__(0, shown(path)),
            on_dead_letter=lambda _, letter: skipped.append(letter),
            on_notice=self.on_notice,
        )
        for document in documents:
            yield from _unusable(skipped)
            yield file[0], document
        yield from _unusable(skipped)


def pairs_of_documents(documents: Documents, kinds: Sequence[str]) -> Iterator[Example | Unusable]:
    """Yield the pairs of all documents, and what has none: see ``structure.KINDS`` for the kinds."""
    for item in documents:
        if isinstance(item, Unusable):
            yield item
            continue
        file, document = item
        found = False
        for pair in pairs_of(document, file, kinds):
            found = True
            yield pair
        if not found:
            yield Unusable(f"{file} {document.id}", "no pair", f"it has none of {', '.join(kinds)}")


def _unusable(skipped: list[DeadLetter]) -> Iterator[Unusable]:
    for letter in skipped:
        yield broken(f"{letter.file}:{letter.line}" if letter.line else letter.file, letter.reason)
    skipped.clear()
