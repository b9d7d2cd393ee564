"""Files of training pairs: JSON Lines in our form or FlagEmbedding's; every line that is none is named.

Ours is one pair a line, ``{"query", "positive", "lang_q", "lang_p"}``. FlagEmbedding's is
``{"query", "pos": [...], "neg": [...]}``: one pair for each text of ``pos``. Files may be UTF-8, with or without a
byte-order mark, or UTF-16 with one; blank lines are skipped, as everywhere else that lines are read.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3_connectors.errors import InvalidInput

UNDETERMINED = "und"
"""The language of texts whose file says none (ISO 639-2)."""

_ENDINGS = (".jsonl", ".jsonl.gz")
_KEYS = ("query", "positive", "lang_q", "lang_p")
_FLAG_EMBEDDING_KEYS = ("query", "pos", "lang_q", "lang_p")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_FORMS = (
    '  A line is {"query": "…", "positive": "…", "lang_q": "en", "lang_p": "en"}, or FlagEmbedding\'s '
    '{"query": "…", "pos": ["…"]}.'
)


@dataclass(frozen=True)
class Pair:
    """One query with one passage that answers it."""

    source: str
    query: str
    positive: str
    lang_q: str
    lang_p: str


@dataclass(frozen=True)
class Line:
    """One line of a training file.

    Attributes:
        pairs: One, or one for each text of ``pos``.
        unused: Keys with a value that the trainer does not use, such as FlagEmbedding's ``neg`` and ``prompt``.
    """

    pairs: tuple[Pair, ...]
    unused: tuple[str, ...] = ()


def read_pairs(folder: Path) -> Iterator[Pair]:
    """The pairs of ``read_lines``."""
    for line in read_lines(folder):
        yield from line.pairs


def read_lines(folder: Path) -> Iterator[Line]:
    """Read every ``*.jsonl`` and ``*.jsonl.gz`` file of a folder, in the order of their names.

    Endings may be in capital letters.

    Raises:
        InvalidInput: The folder holds no such file or no pair, a file cannot be decoded, or a line is not a pair
            (file and line number are named).
    """
    files = _files(folder)
    if not files:
        raise InvalidInput(
            f"{folder} holds no *.jsonl or *.jsonl.gz file.\n  Give a folder of training pairs.\n{_FORMS}"
        )
    found = False
    for file in files:
        source = file.name[: file.name.lower().rindex(".jsonl")]
        for number, text in _texts(file):
            if text.strip():
                found = True
                yield _parse(source, text, f"{file}:{number}")
    if not found:
        raise InvalidInput(
            f"{folder}: its files hold no line: {', '.join(file.name for file in files)}.\n"
            f"  Give a folder of training pairs.\n{_FORMS}"
        )


def fingerprint_files(folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of every file that ``read_pairs`` reads, by its name: the same wherever the folder lies."""
    prints = {}
    for file in _files(folder):
        with file.open("rb") as content:
            prints[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return prints


def other_files(folder: Path) -> list[str]:
    """Names of the files and folders that ``read_pairs`` does not read; hidden ones are left out."""
    read = set(_files(folder))
    return sorted(
        path.name for path in folder.iterdir() if path not in read and not path.name.startswith(".")
    )


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.name.lower().endswith(_ENDINGS) and path.is_file()
    )


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line."""
    number = 0
    try:
        with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as content:
            if content.peek(2)[:2] in _UTF_16:
                # Lines of UTF-16 cannot be told apart before they are decoded.
                with io.TextIOWrapper(content, "utf-16", newline="\n") as texts:
                    for number, text in enumerate(texts, 1):
                        yield number, text
                return
            for number, line in enumerate(content, 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise InvalidInput(
                        f"{file}:{number} is not UTF-8 at byte {error.start} of the line (0x{line[error.start]:02X}).\n"
                        f"  Convert the file, such as with: iconv -f ISO-8859-1 -t UTF-8 {file.name} > utf8.jsonl"
                    ) from None
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{file}:{number + 1} or shortly after it is not UTF-16: {error.reason}.\n"
            f"  Convert the file, such as with: iconv -f UTF-16 -t UTF-8 {file.name} > utf8.jsonl"
        ) from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InvalidInput(
            f"{file} cannot be unpacked after line {number}: {error}\n  Fetch or pack the file again."
        ) from None


def _parse(source: str, text: str, where: str) -> Line:
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise _refusal(where, f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except (RecursionError, ValueError):  # absurd nesting; a whole number of thousands of digits
        raise _refusal(where, "not JSON that can be read: nested too deeply, or a number too long") from None
    if not isinstance(raw, dict):
        raise _refusal(where, f"a JSON {type(raw).__name__}, not an object")
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
        raise _refusal(where, f"pos is {positives!r:.60}; it must be a list of at least one text")
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
        raise _refusal(where, f"{key} is {value!r:.60}; it must be a text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{where}: {key} holds a lone surrogate U+{ord(value[error.start]):04X} at character {error.start + 1}: "
            "it is not valid Unicode.\n  Replace it in the file, or take the line out."
        ) from None


def _refusal(where: str, reason: str) -> InvalidInput:
    return InvalidInput(f"{where} is no training pair: {reason}.\n{_FORMS}")
