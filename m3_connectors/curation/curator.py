"""One pass of curation over documents, and its report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self

from m3_connectors.curation.languages import FIELD, Languages
from m3_connectors.curation.stage import Dropped, Stage
from m3_connectors.documents import Document


@dataclasses.dataclass(frozen=True)
class CurationReport:
    """What a pass has done so far.

    Attributes:
        read: The number of documents read.
        kept: The number of those that passed all stages.
        dropped: The number of those that a stage dropped, by its name.
        languages: The number of documents kept, by language, the most frequent first; empty without language tags.
    """

    read: int
    kept: int
    dropped: Mapping[str, int]
    languages: Mapping[str, int]

    @property
    def dropped_count(self) -> int:
        """The number of documents dropped by all stages."""
        return sum(self.dropped.values())


class Curator:
    """Passes documents through stages, one after another; a context manager.

    The decisions depend only on the documents and their order, so a pass that is repeated from the beginning makes the
    same ones.

    Args:
        stages: The stages, such as ``Curation(...).stages()`` and functions of your own. They are closed with it.
        on_dropped: Called with each document that is dropped.
    """

    def __init__(
        self, stages: Iterable[Stage], on_dropped: Callable[[Dropped], object] = lambda dropped: None
    ) -> None:
        self._stages = list(stages)
        self._on_dropped = on_dropped
        self._read = self._kept = 0
        self._dropped: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._tags = any(isinstance(stage, Languages) for stage in self._stages)

    def curated(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the documents that pass all stages, each when it is asked for: nothing is read ahead."""
        for document in documents:
            self._read += 1
            outcome = self._outcome(document)
            if isinstance(outcome, Dropped):
                self._dropped[outcome.stage] += 1
                self._on_dropped(outcome)
                continue
            self._kept += 1
            if self._tags:
                self._languages[str(outcome.metadata.get(FIELD))] += 1
            yield outcome

    @property
    def report(self) -> CurationReport:
        """The report of what has been read so far."""
        return CurationReport(
            read=self._read,
            kept=self._kept,
            dropped=dict(self._dropped),
            languages=dict(self._languages.most_common()),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stage in self._stages:
            if close := getattr(stage, "__exit__", None):
                close(kind, error, trace)

    def _outcome(self, document: Document) -> Document | Dropped:
        if not _is_text(document):
            return document  # what stores it says why it cannot be stored
        for stage in self._stages:
            outcome = stage(document)
            if isinstance(outcome, Dropped):
                return outcome
            document = outcome
        return document


def _is_text(document: Document) -> bool:
    try:
        document.text.encode()
    except (AttributeError, UnicodeEncodeError):
        return False
    return True
