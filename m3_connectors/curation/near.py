"""Drop documents whose text is nearly the same as an earlier one: MinHash signatures, found by bands (LSH)."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from m3_connectors.curation.exact import exact_duplicate
from m3_connectors.curation.originals import Original, Originals, text_hash
from m3_connectors.curation.stage import Dropped
from m3_connectors.curation.words import shingles
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, MissingDependency

DEFAULT_THRESHOLD = 0.8

_VALUES = 128
"""The number of values of a signature: the standard error of a similarity of 0.8 is 0.035."""

_SEED = 20240203
_RECALL = 0.995
"""The probability that a pair at the threshold is compared; that of more similar pairs is higher."""

_LARGEST_BUCKET = 64
"""Documents of the same template share bands. A full bucket takes no more, so that each document is compared with a
bounded number of others; documents that are nearly the same share further buckets."""

_TABLE = "CREATE TABLE bands (band INTEGER, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID"


class NearDuplicates:
    """Drops each text that is the same or nearly the same as that of an earlier document that stayed.

    Two texts are nearly the same if the estimated Jaccard similarity of their sets of five-word shingles (without case
    and punctuation) is at least the threshold. At 0.8, a text of 100 words may differ in two separate words. The
    estimate has a standard error of about 0.035. Of texts with fewer than five words, only those with the same words
    are duplicates.

    The decisions depend only on the documents and their order: a run that is repeated from the beginning makes the same
    ones. About 1 KB a document is in a temporary file, so memory does not grow. A context manager.

    Args:
        threshold: The smallest similarity of duplicates, above 0 and up to 1.

    Raises:
        InvalidInput: The threshold is out of range.
        MissingDependency: rensa is not installed.
    """

    name = "near duplicates"

    def __init__(self, threshold: float = DEFAULT_THRESHOLD) -> None:
        check_threshold(threshold)
        try:
            from rensa import RMinHash
        except ImportError:
            raise MissingDependency("rensa", "curation") from None
        self._min_hash = RMinHash
        self._threshold = threshold
        self._rows = _rows_of_bands(threshold)
        self._bands = _VALUES // self._rows
        random = np.random.default_rng(_SEED)
        self._factors = random.integers(1, 2**63, (self._bands, self._rows), dtype=np.uint64) * np.uint64(
            2
        ) + np.uint64(1)
        self._originals = Originals(_TABLE)

    def __call__(self, document: Document) -> Document | Dropped:
        """Return the document, or why it is dropped."""
        hash = text_hash(document.text)
        original = self._originals.of_text(hash)
        if original is not None:
            if original.id == document.id:
                return document
            self._originals.note_duplicate(original, document.id)
            return exact_duplicate(document, original.id)
        runs = list(shingles(document.text))
        signature = self._signature(runs)
        bands = self._bands_of(signature) if runs else []
        places = ", ".join("?" * len(bands))
        found = self._originals.run(f"SELECT band, number FROM bands WHERE band IN ({places})", bands)
        original = self._most_similar({number for _, number in found}, signature, document.id)
        if original is not None and original.similarity >= self._threshold:
            self._originals.note_duplicate(original, document.id)
            similarity = original.similarity
            reason = f"is {similarity:.1%} similar to {original.id!r}, at least {self._threshold:.1%}"
            return Dropped(document, self.name, reason, round(similarity, 4), original.id)
        number = self._originals.keep(document.id, hash, signature.tobytes())
        sizes = Counter(band for band, _ in found)
        rows = [(band, number) for band in bands if sizes[band] < _LARGEST_BUCKET]
        self._originals.run_many("INSERT INTO bands VALUES (?, ?)", rows)
        return document

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._originals.__exit__(kind, error, trace)

    def _signature(self, runs: list[str]) -> NDArray[np.uint32]:
        sketch = self._min_hash(num_perm=_VALUES, seed=_SEED)
        sketch.update(runs)
        return np.array(sketch.digest(), np.uint32)

    def _bands_of(self, signature: NDArray[np.uint32]) -> list[int]:
        """Return a hash of each band of a signature, which SQLite stores as a signed integer."""
        bands = signature[: self._bands * self._rows].reshape(self._bands, self._rows).astype(np.uint64)
        hashes: list[int] = (bands * self._factors).sum(axis=1, dtype=np.uint64).view(np.int64).tolist()
        return list(dict.fromkeys(hashes))

    def _most_similar(self, numbers: set[int], signature: NDArray[np.uint32], but: str) -> Original | None:
        """Return the most similar of these originals, and of several the earliest; none with the id ``but``."""
        places = ", ".join("?" * len(numbers))
        query = f"SELECT number, id, signature FROM originals WHERE number IN ({places}) AND id != ? ORDER BY number"
        rows = self._originals.run(query, [*numbers, but]) if numbers else []
        if not rows:
            return None
        signatures = np.frombuffer(b"".join(row[2] for row in rows), np.uint32).reshape(len(rows), _VALUES)
        similarities = (signatures == signature).mean(axis=1)
        best = int(similarities.argmax())
        return Original(rows[best][0], rows[best][1], float(similarities[best]))


def check_threshold(threshold: float) -> None:
    """Raise InvalidInput unless a threshold is above 0 and up to 1."""
    if not 0 < threshold <= 1:
        raise InvalidInput(
            f"the similarity {threshold} of near duplicates is out of range.\n"
            f"  Give one above 0 and up to 1, such as {DEFAULT_THRESHOLD}."
        )


def _rows_of_bands(threshold: float) -> int:
    """Return the largest number of rows of a band with which pairs at the threshold are found."""
    rows = 1
    while rows < _VALUES and 1 - (1 - threshold ** (rows + 1)) ** (_VALUES // (rows + 1)) >= _RECALL:
        rows += 1
    return rows
