"""Reads files of training pairs: JSON Lines in our format or FlagEmbedding's; invalid lines are named and skipped.

Our format has one pair per line, ``{"query", "positive", "lang_q", "lang_p"}``. FlagEmbedding's is
``{"query", "pos": [...], "neg": [...]}``, with one pair for each text in ``pos``. Both may have hard negatives
(``neg``) and a teacher's scores (``pos_scores``, ``neg_scores``). A line ``{"text", "lang"}`` is a text without a
query, for ``retromae``. Files may be UTF-8, with or without a byte-order mark, or UTF-16 with one. Blank lines are
skipped, as by all other readers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3_connectors.errors import InvalidInput
from m3_connectors.json_lines import Decoder, NotARecord, numbered_lines

UNDETERMINED = "und"
"""The language of texts without a language (ISO 639-2)."""

PairFiles = Path | tuple[Path, ...]
"""A folder of pairs, or files and folders."""

_ENDINGS = (".jsonl", ".jsonl.gz")
_KEYS = ("query", "positive", "lang_q", "lang_p")
_TEXT_KEYS = ("text", "lang")
_FLAG_EMBEDDING_KEYS = ("query", "pos", "lang_q", "lang_p")

ALWAYS_SKIPPED = 10
"""The number of broken lines that are skipped in any case; of more, at most ``SKIPPED_SHARE`` of all lines."""

SKIPPED_SHARE = 0.01

_LARGEST_SCORE = 1e30
_FORMS = (
    '  Write each line as {"query": "…", "positive": "…", "lang_q": "en", "lang_p": "en"}, or as '
    'FlagEmbedding\'s {"query": "…", "pos": ["…"]}; texts without queries, for the stage retromae, as '
    '{"text": "…"}.'
)


@dataclass(frozen=True)
class Pair:
    """One query with a relevant passage, or a text without a query, which is then both.

    Attributes:
        score: The teacher's score of the passage; NaN without one.
        alone: Whether it is a text without a query.
    """

    source: str
    query: str
    positive: str
    lang_q: str
    lang_p: str
    score: float = math.nan
    alone: bool = False


@dataclass(frozen=True)
class Line:
    """One line of a training file.

    Attributes:
        pairs: One pair, or one for each text in ``pos``; none if the line is broken.
        negatives: The hard negatives of the query, each once.
        negative_scores: The teacher's score of each negative; NaN without one.
        unused: The keys with a value that the trainer does not use, such as FlagEmbedding's ``prompt``.
        broken: Why the line is not used, with its file and number; empty if it is used.
    """

    pairs: tuple[Pair, ...]
    negatives: tuple[str, ...] = ()
    negative_scores: tuple[float, ...] = ()
    unused: tuple[str, ...] = ()
    broken: str = ""


def read_pairs(folder: PairFiles) -> Iterator[Pair]:
    """Yield the pairs of ``read_lines``."""
    for line in read_lines(folder):
        yield from line.pairs


def read_lines(folder: PairFiles) -> Iterator[Line]:
    """Read every ``*.jsonl`` and ``*.jsonl.gz`` file of a folder, in the order of their names.

    Endings may be in capital letters. A line that is not a pair, or that is not UTF-8, is yielded as broken.

    Raises:
        InvalidInput: The folder contains no such file or no pair, a file cannot be read on (it is damaged), or
            more lines are broken than ``ALWAYS_SKIPPED`` and ``SKIPPED_SHARE`` of all.
    """
    files = pair_files(folder)
    if not files:
        raise InvalidInput(
            f"{shown_paths(folder)} contains no *.jsonl or *.jsonl.gz file.\n"
            f"  Use a file or a folder of training pairs.\n{_FORMS}"
        )
    decoder = Decoder()
    good = bad = 0
    first_broken = ""
    for file in files:
        source = file.name[: file.name.lower().rindex(".jsonl")]
        undecodable: list[str] = []
        for number, text in numbered_lines(file, undecodable=undecodable.append):
            yield from (Line((), broken=message) for message in undecodable)
            line = _read(source, text, f"{file}:{number}", decoder)
            yield line
            first_broken = first_broken or next(iter(undecodable), "") or line.broken
            bad += len(undecodable) + bool(line.broken)
            good += not line.broken
            undecodable.clear()
        yield from (Line((), broken=message) for message in undecodable)
        first_broken = first_broken or next(iter(undecodable), "")
        bad += len(undecodable)
    if not good + bad:
        raise InvalidInput(
            f"{shown_paths(folder)} has only empty files: {', '.join(file.name for file in files)}.\n"
            f"  Use a file or a folder of training pairs.\n{_FORMS}"
        )
    if not good or bad > max(ALWAYS_SKIPPED, SKIPPED_SHARE * (good + bad)):
        reason, _, remedy = first_broken.partition("\n")
        raise InvalidInput(
            f"{bad:,} of {good + bad:,} lines of {shown_paths(folder)} are broken; "
            f"at most {SKIPPED_SHARE:.0%} are skipped. The first one: {reason}\n{remedy}"
        )


def _read(source: str, text: str, where: str, decoder: Decoder) -> Line:
    try:
        return parse_line(source, decoder.record(text), where)
    except NotARecord as error:
        return Line((), broken=str(_refusal(where, str(error))))
    except InvalidInput as error:
        return Line((), broken=str(error))


def fingerprint_files(folder: PairFiles) -> dict[str, str]:
    """Return the SHA-256 (hex) of every file that ``read_pairs`` reads, by name without the folder."""
    prints = {}
    for file in pair_files(folder):
        with file.open("rb") as content:
            prints[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return prints


def other_files(folder: PairFiles) -> list[str]:
    """Names of the files and folders that ``read_pairs`` does not read; hidden ones are left out."""
    read = set(pair_files(folder))
    return sorted(
        path.name
        for one in _paths(folder)
        if one.is_dir()
        for path in one.iterdir()
        if path not in read and not path.name.startswith(".")
    )


def shown_paths(folder: PairFiles) -> str:
    """Return the paths for a message."""
    return ", ".join(map(str, _paths(folder)))


def _paths(folder: PairFiles) -> tuple[Path, ...]:
    return (folder,) if isinstance(folder, Path) else folder


def pair_files(folder: PairFiles) -> list[Path]:
    """Return the files that ``read_lines`` reads, in the order of their names.

    Raises:
        InvalidInput: A path does not exist, a file has another ending, or two files have one name.
    """
    found: dict[str, Path] = {}
    for one in _paths(folder):
        for file in _files_at(one):
            other = found.setdefault(file.name, file)
            if not other.samefile(file):
                raise InvalidInput(
                    f"{other} and {file} have the same name, and a source is known by the name of its file.\n"
                    "  Rename one of them."
                )
    return [found[name] for name in sorted(found)]


def _files_at(path: Path) -> list[Path]:
    if path.is_dir():
        return [file for file in path.iterdir() if file.name.lower().endswith(_ENDINGS) and file.is_file()]
    if not path.exists():
        raise InvalidInput(f"{path} does not exist.\n  Use JSON Lines files of pairs, or a folder of them.")
    if not path.name.lower().endswith(_ENDINGS):
        raise InvalidInput(
            f"{path} does not end in {' or '.join(_ENDINGS)}.\n  Use JSON Lines files of pairs, or a folder of them."
        )
    return [path]


def parse_line(source: str, raw: dict[str, Any], where: str) -> Line:
    """Return the JSON object of a line as pairs; ``where`` is its place, for messages.

    Raises:
        InvalidInput: It is not a training pair.
    """
    if "text" in raw and "query" not in raw:
        language = raw.get("lang", UNDETERMINED)
        _check_text(where, "text", raw["text"])
        _check_text(where, "lang", language)
        pair = Pair(source, raw["text"], raw["text"], language, language, alone=True)
        return Line((pair,), unused=_unused(raw, _TEXT_KEYS))
    flag_embedding = "pos" in raw and "positive" not in raw
    keys = _FLAG_EMBEDDING_KEYS if flag_embedding else _KEYS
    if flag_embedding:
        raw = dict.fromkeys(("lang_q", "lang_p"), UNDETERMINED) | raw
    for key in keys:
        if key not in raw:
            raise _refusal(where, f"it lacks {key!r}")
        if key != "pos":
            _check_text(where, key, raw[key])
    positives = _texts(where, "pos", raw["pos"], 1) if flag_embedding else [raw["positive"]]
    negatives = _texts(where, "neg", raw.get("neg") or [], 0)
    scored = raw.get("pos_scores") is not None and raw.get("neg_scores") is not None and len(negatives)
    pos_scores, neg_scores = (
        _scores(where, key, raw[key], count) if scored else [math.nan] * count
        for key, count in (("pos_scores", len(positives)), ("neg_scores", len(negatives)))
    )
    # A repeated text counts once.
    scores = dict(reversed(list(zip(positives, pos_scores, strict=True))))
    hard = {text: score for text, score in zip(negatives, neg_scores, strict=True) if text not in scores}
    used = (*keys, "neg", *(("pos_scores", "neg_scores") if scored else ()))
    return Line(
        tuple(
            Pair(source, raw["query"], positive, raw["lang_q"], raw["lang_p"], scores[positive])
            for positive in dict.fromkeys(positives)
        ),
        tuple(hard),
        tuple(hard.values()),
        _unused(raw, used),
    )


def _unused(raw: dict[str, Any], used: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key for key, value in raw.items() if key not in used and value not in (None, "", [], {}))


def _texts(where: str, key: str, value: object, fewest: int) -> list[str]:
    if not isinstance(value, list) or len(value) < fewest:
        at_least = f" with at least {fewest}" if fewest else " of"
        raise _refusal(
            where, f"{key} is {value!r:.60}; it must be a list{at_least} string{'s' * (not fewest)}"
        )
    for number, text in enumerate(value):
        _check_text(where, f"{key}[{number}]", text)
    return value


def _scores(where: str, key: str, value: object, count: int) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        raise _refusal(
            where, f"{key} is {value!r:.60}; it must be a list of {count} numbers, one for each text"
        )
    for number, score in enumerate(value):
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < _LARGEST_SCORE:
            raise _refusal(where, f"{key}[{number}] is {score!r:.60}; it must be a finite number")
    return [float(score) for score in value]


def _check_text(where: str, key: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise _refusal(where, f"{key} is {value!r:.60}; it must be a non-empty string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{where}: {key} has a lone surrogate U+{ord(value[error.start]):04X} at character "
            f"{error.start + 1}, so it is not valid Unicode.\n  Replace it in the file, or remove the line."
        ) from None


def _refusal(where: str, reason: str) -> InvalidInput:
    return InvalidInput(f"{where} is not a training pair: {reason}.\n{_FORMS}")
