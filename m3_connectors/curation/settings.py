"""The settings of curation, and the stages that they ask for."""

from __future__ import annotations

import dataclasses
from typing import Literal

from m3_connectors.curation.characters import BrokenCharacters, Letters, RepeatedLines
from m3_connectors.curation.exact import ExactDuplicates
from m3_connectors.curation.languages import Languages
from m3_connectors.curation.length import CharacterCount, Span, WordCount
from m3_connectors.curation.near import DEFAULT_THRESHOLD, NearDuplicates, check_threshold
from m3_connectors.curation.stage import Stage
from m3_connectors.errors import InvalidInput


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Which duplicates are dropped.

    Attributes:
        kind: ``exact``, or ``near``, which includes the exact ones.
        threshold: The smallest similarity of near duplicates, above 0 and up to 1.

    Raises:
        InvalidInput: A value is out of range.
    """

    kind: Literal["exact", "near"]
    threshold: float = DEFAULT_THRESHOLD

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    @classmethod
    def parse(cls, text: str) -> Duplicates:
        """Parse ``exact``, ``near`` or ``near:0.9``.

        Raises:
            InvalidInput: The text has another form.
        """
        kind, colon, threshold = text.partition(":")
        try:
            if text == "exact":
                return cls("exact")
            if kind == "near":
                return cls("near", float(threshold) if colon else DEFAULT_THRESHOLD)
        except InvalidInput:
            raise
        except ValueError:
            pass
        raise InvalidInput(f"{text!r} names no duplicates.\n  Give exact, near or near:0.9 (the similarity).")


@dataclasses.dataclass(frozen=True)
class Curation:
    """What is dropped before documents are stored or trained on; None for each stage that is left out.

    Attributes:
        characters: How many characters a text may have.
        words: How many words a text may have.
        min_letters: The smallest share of letters among characters other than white space, 0 to 1.
        max_broken: The largest share of characters that a broken encoding or extraction left, 0 to 1.
        max_repeated: The largest share of text in lines that occurred before in it, 0 to 1.
        tag_languages: Whether each document gets its language as metadata; implied by ``languages``.
        languages: The languages to keep, as ISO 639-1 codes.
        duplicates: Which duplicates are dropped.

    Raises:
        InvalidInput: A share is not between 0 and 1.
    """

    characters: Span | None = None
    words: Span | None = None
    min_letters: float | None = None
    max_broken: float | None = None
    max_repeated: float | None = None
    tag_languages: bool = False
    languages: tuple[str, ...] | None = None
    duplicates: Duplicates | None = None

    def __post_init__(self) -> None:
        for name in ("min_letters", "max_broken", "max_repeated"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise InvalidInput(f"{name} is {share}; it is a share.\n  Give a number from 0 to 1.")

    def stages(self) -> list[Stage]:
        """Return new stages, those that look at one document before those that compare documents.

        The order matters: a document that is dropped for itself must not be the reason to drop its duplicates.

        Raises:
            InvalidInput: A language cannot be detected.
            MissingDependency: A package that a stage needs is not installed.
        """
        stages: list[Stage] = []
        if self.characters is not None:
            stages.append(CharacterCount(self.characters))
        if self.words is not None:
            stages.append(WordCount(self.words))
        if self.max_broken is not None:
            stages.append(BrokenCharacters(self.max_broken))
        if self.min_letters is not None:
            stages.append(Letters(self.min_letters))
        if self.max_repeated is not None:
            stages.append(RepeatedLines(self.max_repeated))
        if self.tag_languages or self.languages is not None:
            stages.append(Languages(self.languages))
        if self.duplicates is not None:
            near = self.duplicates.kind == "near"
            stages.append(NearDuplicates(self.duplicates.threshold) if near else ExactDuplicates())
        return stages

    def __bool__(self) -> bool:
        """Whether any stage is asked for."""
        return self != Curation()
