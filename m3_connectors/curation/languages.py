"""Tag documents with their language, and drop those in other languages."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from typing import TYPE_CHECKING

from m3_connectors.curation.stage import Dropped
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, MissingDependency

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

FIELD = "language"
CONFIDENCE_FIELD = "language_confidence"
UNDETERMINED = "und"
"""ISO 639's code for a text whose language is not known, here below ``LEAST_CONFIDENCE``."""

LEAST_CONFIDENCE = 0.5
_MACROLANGUAGE = {
    "ary": "ar",
    "arz": "ar",
    "ltg": "lv",
    "sdh": "ku",
    "uzs": "uz",
    "wuu": "zh",
    "yue": "zh",
}
"""Languages that ISO 639 counts as members of another one. Of 443 Chinese texts of MLQA, 46 were taken for Wu."""

_LONGEST = 4000
"""The number of characters, from the first, from which a language is detected: 1 ms of work."""


class Languages:
    """Writes the language of each text into its metadata, and drops texts in languages that are not wanted.

    ``language`` is an ISO 639-1 code such as ``en``, or ``und`` where the confidence is below 0.5 (few words, or no
    language at all); ``language_confidence`` is 0 to 1, with two digits. It is detected from the first 4,000
    characters. Varieties of Chinese and Arabic are ``zh`` and ``ar``. A document whose metadata has a text as
    ``language`` keeps it, and this language counts.

    Args:
        wanted: The languages to keep, as codes; None keeps all.

    Raises:
        InvalidInput: A wanted language cannot be detected.
        MissingDependency: py3langid is not installed.
    """

    name = "language"

    def __init__(self, wanted: Collection[str] | None = None) -> None:
        self._identifier = _identifier()
        self._wanted = None if wanted is None else frozenset(wanted)
        known = {*map(_language, self._identifier.labels), UNDETERMINED}
        if unknown := sorted((self._wanted or frozenset()) - known):
            raise InvalidInput(
                f"the language {unknown[0]!r} cannot be detected.\n"
                f"  Give ISO 639-1 codes, of {', '.join(sorted(known))}."
            )

    def __call__(self, document: Document) -> Document | Dropped:
        """Return the document with its language, or why it is dropped."""
        given = document.metadata.get(FIELD)
        if isinstance(given, str):
            language, origin = given, "as its metadata says"
        else:
            language, confidence = self._detected(document.text)
            origin = f"with confidence {confidence:.2f}"
            if FIELD not in document.metadata:
                tags = {FIELD: language, CONFIDENCE_FIELD: confidence}
                document = dataclasses.replace(document, metadata={**document.metadata, **tags})
        if self._wanted is None or language in self._wanted:
            return document
        return Dropped(document, self.name, f"its language is {language!r}, {origin}", language)

    def _detected(self, text: str) -> tuple[str, float]:
        confidences: dict[str, float] = {}
        for label, share in self._identifier.rank(text[:_LONGEST]):
            confidences[_language(label)] = confidences.get(_language(label), 0.0) + share
        language = max(confidences, key=lambda name: confidences[name])
        # Two digits: metadata that differ in the last digit would make a stored document a changed one.
        confidence = round(min(confidences[language], 1.0), 2)
        return (language if confidence >= LEAST_CONFIDENCE else UNDETERMINED), confidence


def _language(label: str) -> str:
    return _MACROLANGUAGE.get(label, label)


@functools.cache
def _identifier() -> LanguageIdentifier:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise MissingDependency("py3langid", "curation") from None
    identifier: LanguageIdentifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return identifier
