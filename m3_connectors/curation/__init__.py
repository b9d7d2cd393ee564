"""Curate documents before they are stored or trained on: language tags, filters, and duplicates.

Works over any iterable of documents and needs neither a store nor an encoder. Each dropped document is reported with
the stage that dropped it, a reason, and the value that decided.
"""

from __future__ import annotations

from m3_connectors.curation.characters import BrokenCharacters, Letters, RepeatedLines
from m3_connectors.curation.curator import CurationReport, Curator
from m3_connectors.curation.exact import ExactDuplicates
from m3_connectors.curation.languages import Languages
from m3_connectors.curation.length import CharacterCount, Span, WordCount
from m3_connectors.curation.near import NearDuplicates
from m3_connectors.curation.settings import Curation, Duplicates
from m3_connectors.curation.stage import Dropped, Stage

__all__ = [
    "BrokenCharacters",
    "CharacterCount",
    "Curation",
    "CurationReport",
    "Curator",
    "Dropped",
    "Duplicates",
    "ExactDuplicates",
    "Languages",
    "Letters",
    "NearDuplicates",
    "RepeatedLines",
    "Span",
    "Stage",
    "WordCount",
]
