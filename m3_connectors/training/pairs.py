"""Reads files of training pairs: JSON Lines in our format or FlagEmbedding's; invalid lines are named.

Our format has one pair per line, ``{"query", "positive", "lang_q", "lang_p"}``. FlagEmbedding's is
``{"query", "pos": [...], "neg": [...]}``, with one pair for each text in ``pos``. Files may be UTF-8, with or
without a byte-order mark, or UTF-16 with one. Blank lines are skipped, as by all other readers.
"""

from __future__ import annotations

import hashlib
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
_FLAG_EMBEDDING_KEYS = ("query", "pos", "lang_q", "lang_p")
_FORMS = (
    '  Write each line as {"query": "…", "positive": "…", "lang_q": "en", "lang_p": "en"}, or as '
    'FlagEmbedding\'s {"query": "…", "pos": ["…"]}.'
)


@dataclass(frozen=True)
class Pair:
    """One query with a relevant passage."""

    source: str
    query: str
    positive: str
    lang_q: str
    lang_p: str


@dataclass(frozen=True)
class Line:
    """One line of a training file.

    Attributes:
        pairs: One pair, or one for each text in ``pos``.
        unused: The keys with a value that the trainer does not use, such as FlagEmbedding's ``neg`` and ``prompt``.
    """

    pairs: tuple[Pair, ...]
    unused: tuple[str, ...] = ()


def read_pairs(folder: PairFiles) -> Iterator[Pair]:
    """Yield the pairs of ``read_lines``."""
    for line in read_lines(folder):
        yield from line.pairs


def read_lines(folder: PairFiles) -> Iterator[Line]:
    """Read every ``*.jsonl`` and ``*.jsonl.gz`` file of a folder, in the order of their names.

    Endings may be in capital letters.

    Raises:
        InvalidInput: The folder contains no such file or no pair, a file cannot be decoded, or a line is not
            a pair (the message gives the file and the line number).
    """
    files = _files(folder)
    if not files:
        raise InvalidInput(
            f"{shown_paths(folder)} contains no *.jsonl or *.jsonl.gz file.\n"
            f"  Use a folder of training pairs.\n{_FORMS}"
        )
    found, decoder = False, Decoder()
    for file in files:
        source = file.name[: file.name.lower().rindex(".jsonl")]
        for number, text in numbered_lines(file):
            found = True
            where = f"{file}:{number}"
            try:
                record = decoder.record(text)
            except NotARecord as error:
                raise _refusal(where, str(error)) from None
            yield _parse(source, record, where)
    if not found:
        raise InvalidInput(
            f"{shown_paths(folder)} has only empty files: {', '.join(file.name for file in files)}.\n"
            f"  Use a folder of training pairs.\n{_FORMS}"
        )


def fingerprint_files(folder: PairFiles) -> dict[str, str]:
    """Return the SHA-256 (hex) of every file that ``read_pairs`` reads, by name without the folder."""
    prints = {}
    for file in _files(folder):
        with file.open("rb") as content:
            prints[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return prints


def other_files(folder: PairFiles) -> list[str]:
    """Names of the files and folders that ``read_pairs`` does not read; hidden ones are left out."""
    read = set(_files(folder))
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


def _files(folder: PairFiles) -> list[Path]:
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


def _parse(source: str, raw: dict[str, Any], where: str) -> Line:
    if "pos" in raw and "positive" not in raw:
        return _flag_embedding(source, raw, where)
    for key in _KEYS:
        if key not in raw:
            raise _refusal(where, f"it lacks {key!r}")
        _check_text(where, key, raw[key])
    return Line((Pair(source, *(raw[key] for key in _KEYS)),), _unused(raw, _KEYS))


def _flag_embedding(source: str, raw: dict[str, Any], where: str) -> Line:
    if "query" not in raw:
        raise _refusal(where, "it lacks 'query'")
    _check_text(where, "query", raw["query"])
    positives = raw["pos"]
    if not isinstance(positives, list) or not positives:
        raise _refusal(where, f"pos is {positives!r:.60}; it must be a list with at least one string")
    languages = [raw.get(key, UNDETERMINED) for key in ("lang_q", "lang_p")]
    for key, language in zip(("lang_q", "lang_p"), languages, strict=True):
        _check_text(where, key, language)
    for number, positive in enumerate(positives):
        _check_text(where, f"pos[{number}]", positive)
    return Line(
        tuple(Pair(source, raw["query"], positive, *languages) for positive in dict.fromkeys(positives)),
        _unused(raw, _FLAG_EMBEDDING_KEYS),
    )


def _unused(raw: dict[str, Any], used: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key for key, value in raw.items() if key not in used and value not in (None, "", [], {}))


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
