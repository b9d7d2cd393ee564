"""Keep the texts of evaluations out of training data: by runs of words that two texts share."""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_connectors.curation.words import shingles
from m3_connectors.errors import InvalidInput
from m3_connectors.training_data.examples import Unusable
from m3_connectors.training_data.lines import json_records, text_rows

RUN_WORDS = 13
"""The number of words of a run, as in the decontamination of language models (Brown et al., 2020)."""

_RECORDS = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst")
_TEXTS = (".txt", ".txt.gz", ".txt.zst")
_FIELDS = ("query", "question", "positive", "pos", "neg", "context", "passage", "contents", "title", "text")
"""The fields of a record that have its texts; a title is joined with the text below it."""


@dataclasses.dataclass(frozen=True)
class Shared:
    """What a text shares with a set of evaluation texts.

    Attributes:
        name: The name of the set.
        run: The words, without case and punctuation.
    """

    name: str
    run: str


class KeptOut:
    """Evaluation texts, each as its runs of words: 8 bytes of memory a run.

    Two texts overlap if they share a run of 13 words, without case and punctuation; in scripts that are written without
    spaces, each character counts as a word. A text with fewer words, such as most queries, overlaps only with a text of
    exactly the same words.

    Args:
        sets: The texts of each set, by its name.
        run_words: The number of words of a run.

    Raises:
        InvalidInput: ``run_words`` is below 1.
    """

    def __init__(self, sets: Mapping[str, Iterable[str]], run_words: int = RUN_WORDS) -> None:
        if run_words < 1:
            raise InvalidInput(
                f"a run of {run_words} words is too short.\n  Use at least 1, such as {RUN_WORDS}."
            )
        self._run_words = run_words
        self._sets: dict[str, NDArray[np.uint64]] = {}
        for name, texts in sets.items():
            hashes = array("Q")
            for text in texts:
                hashes.extend(map(_hash, shingles(text, run_words)))
            self._sets[name] = np.unique(np.frombuffer(hashes, np.uint64))

    @classmethod
    def read(cls, places: Sequence[Path], run_words: int = RUN_WORDS) -> KeptOut:
        """Read evaluation sets: BEIR folders, folders of them, JSON Lines, or text files.

        Raises:
            InvalidInput: There is no text in one of them, or a line cannot be read: what it has would not be kept out.
        """
        sets: dict[str, Iterable[str]] = {}
        for place in places:
            for name, files in _files_of(place).items():
                sets[name] = _texts(files)
        return cls(sets, run_words)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sets."""
        return tuple(self._sets)

    def shared_with(self, text: str) -> Shared | None:
        """Return the first set that a text overlaps with, and by which words; None if there is none."""
        runs = list(shingles(text, self._run_words))
        hashes = np.fromiter(map(_hash, runs), np.uint64, len(runs))
        for name, known in self._sets.items():
            if not len(known):
                continue
            found = known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes
            if found.any():
                return Shared(name, runs[int(found.argmax())])
        return None


def _hash(run: str) -> int:
    return int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little")


def _files_of(place: Path) -> dict[str, list[Path]]:
    """Return the files of evaluation texts in a place, by the name of the set: the folder that they are in."""
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist.\n  Give a BEIR folder, or a file of texts.")
    if place.is_file():
        return {str(place): [place]}
    found: dict[str, list[Path]] = {}
    for path in sorted(place.rglob("*")):
        if path.is_file() and path.name.lower().endswith((*_RECORDS, *_TEXTS)):
            found.setdefault(str(path.parent), []).append(path)
    if not found:
        raise InvalidInput(
            f"{place} has no file of texts ({', '.join(('*.jsonl', '*.jsonl.gz', '*.txt'))}) in any folder.\n"
            "  Give a BEIR folder, or a file of texts."
        )
    return found


def _texts(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        count = 0
        for text in _of_records(path) if path.name.lower().endswith(_RECORDS) else _of_lines(path):
            count += 1
            yield text
        if not count:
            raise InvalidInput(f"{path} has no text.\n  Give a file with evaluation texts, or omit it.")


def _of_records(path: Path) -> Iterator[str]:
    for row in json_records(path):
        if isinstance(row, Unusable):
            raise _cannot_be_kept_out(row)
        fields: Mapping[str, Any] = row[1]
        known = {name: fields[name] for name in _FIELDS if name in fields}
        title = known.pop("title", "")
        texts = list(_strings(known or fields))
        if isinstance(title, str) and title.strip():
            texts = [f"{title}\n{texts[0]}", *texts] if texts else [title]
        yield from texts


def _of_lines(path: Path) -> Iterator[str]:
    """Yield each line, which may be a query, and the lines together, as a sentence may go on in the next one."""
    lines = []
    for row in text_rows(path):
        if isinstance(row, Unusable):
            raise _cannot_be_kept_out(row)
        if row[1].strip():
            lines.append(row[1])
            yield row[1]
    if len(lines) > 1:
        yield "\n".join(lines)


def _cannot_be_kept_out(row: Unusable) -> InvalidInput:
    return InvalidInput(
        f"{row.place}: {row.reason}. What it has would not be kept out of the training data.\n"
        "  Fix or remove the line."
    )


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
