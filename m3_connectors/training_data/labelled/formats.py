"""The formats of labelled sets by name, and which one a file has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from m3_connectors.errors import InvalidInput
from m3_connectors.training_data.examples import Example, Unusable, broken
from m3_connectors.training_data.labelled.beir import read_beir
from m3_connectors.training_data.labelled.miracl import read_miracl
from m3_connectors.training_data.labelled.own import read_examples
from m3_connectors.training_data.labelled.squad import read_squad
from m3_connectors.training_data.labelled.triples import read_triples
from m3_connectors.training_data.lines import json_records

AUTO = "auto"
BEIR = "beir"
_READERS: dict[str, Callable[[Path, str], Iterator[Example | Unusable]]] = {
    "flagembedding": read_examples,
    "squad": read_squad,
    "msmarco": read_triples,
    "mrtydi": read_miracl,
    "miracl": read_miracl,
    "pairs": read_examples,
}
FORMATS = (AUTO, BEIR, *_READERS)
"""The names of the formats; ``auto`` recognises the others."""

_FIELDS = {
    "positive_passages": "miracl",
    "pos": "flagembedding",
    "positive": "pairs",
    "context": "squad",
}
_TRIED_LINES = 100
"""The number of lines among which one that can be read says which format a file has."""


def read_labelled(path: Path, format: str = AUTO, split: str | None = None) -> Iterator[Example | Unusable]:
    """Return the examples of a file or BEIR folder, and what cannot be read.

    Args:
        path: The file or folder.
        format: One of ``FORMATS``.
        split: The judgements of a BEIR folder; ``train`` by default.

    Raises:
        InvalidInput: The file has none of the formats, or a BEIR folder lacks a file.
        FileNotFoundError: The path does not exist.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.\n  Give files or BEIR folders of training data.")
    chosen = format_of(path) if format == AUTO else format
    if path.is_dir() != (chosen == BEIR):
        what, other = ("a folder", "a BEIR folder") if path.is_dir() else ("a file", "a folder")
        raise InvalidInput(
            f"{path} is {what}, which the format {chosen} does not read.\n"
            f"  Give the files, or {other} with --format beir."
        )
    if split is not None and chosen != BEIR:
        raise InvalidInput(f"split {split!r} has no effect on {path}, which is {chosen}.\n  Omit --split.")
    if chosen == BEIR:
        return _named_if_empty(path, read_beir(path, chosen, split))
    return _named_if_empty(path, _READERS[chosen](path, chosen))


def format_of(path: Path) -> str:
    """Return the format that a file or folder has.

    Raises:
        InvalidInput: It has none of them.
    """
    if path.is_dir():
        if (path / "qrels").is_dir():
            return BEIR
        raise InvalidInput(
            f"{path} is no BEIR folder: it has no folder qrels.\n"
            "  Give its files, or a folder with corpus.jsonl, queries.jsonl and qrels."
        )
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    if name.endswith((".tsv", ".txt")):
        return "msmarco"
    if name.endswith(".json"):
        return "squad"
    for _, row in zip(range(_TRIED_LINES), json_records(path), strict=False):
        if isinstance(row, Unusable):
            continue
        for field, format in _FIELDS.items():
            if field in row[1]:
                return format
        raise InvalidInput(
            f"{row[0]} has the fields {', '.join(map(repr, row[1]))}, which are those of no known format.\n"
            f"  Name it with --format, one of {', '.join(FORMATS[1:])}."
        )
    return "pairs"  # whose reader names each line that is not JSON


def _named_if_empty(path: Path, items: Iterator[Example | Unusable]) -> Iterator[Example | Unusable]:
    found = False
    for item in items:
        found = True
        yield item
    if not found:
        yield broken(str(path), "it is empty")
