"""BEIR folders: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``, each plain or ``.gz``.

A measure over a corpus that was read in part would be wrong without a sign of it, so a malformed line is an error.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m3_connectors.documents import Document, check_documents
from m3_connectors.errors import InvalidInput

Qrels = dict[str, dict[str, int]]
"""Query id to document id to grade; a grade of 1 or more is relevant."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a BEIR folder.

    Attributes:
        name: Name of the folder.
        split: Name of the split.
        documents: The corpus, in the file's order; a title stands before its text, on a line of its own.
        queries: The judged queries of the split, id to text.
        qrels: Their judgements, those of missing documents too (they count as not found).
        warnings: What does not fit together, counted, for people.
    """

    name: str
    split: str
    documents: list[Document]
    queries: dict[str, str]
    qrels: Qrels
    warnings: tuple[str, ...] = ()


def load_beir(directory: Path, split: str = "test") -> Dataset:
    """Read one split.

    Args:
        directory: The folder.
        split: File name in ``qrels`` without its ending.

    Raises:
        InvalidInput: The folder lacks a file or the split, a line is malformed (says which), or no query is judged.
    """
    if not directory.is_dir():
        raise InvalidInput(f"{directory} is no folder: give a BEIR folder with corpus, queries and qrels.")
    qrels = _qrels(directory, split)
    queries = _queries(_find(directory, "queries.jsonl"))
    documents = list(_documents(_find(directory, "corpus.jsonl")))
    ids = {document.id for document in documents}
    judged = {id: grades for id, grades in qrels.items() if id in queries}
    if not judged:
        raise InvalidInput(
            f"{directory}: none of the {len(queries)} queries is judged in split {split!r}.\n"
            "  Do the ids in qrels and in queries.jsonl belong together?"
        )
    missing = sum(id not in ids for grades in judged.values() for id in grades)
    counts = (
        (len(queries) - len(judged), f"queries without a judgement in split {split}: not asked"),
        (len(qrels) - len(judged), "judged queries that queries.jsonl does not have: left out"),
        (missing, "judgements of documents that the corpus does not have: they count as not found"),
    )
    return Dataset(
        name=directory.resolve().name,
        split=split,
        documents=documents,
        queries={id: text for id, text in queries.items() if id in judged},
        qrels=judged,
        warnings=tuple(f"{count:,} {what}" for count, what in counts if count),
    )


def _documents(path: Path) -> Iterator[Document]:
    seen: set[str] = set()
    for line, record in _records(path):
        text, title = record.get("text"), record.get("title") or ""
        if not isinstance(text, str) or not isinstance(title, str):
            raise InvalidInput(f"{path}:{line}: text and title must be strings.")
        metadata = record.get("metadata") or {}
        document = Document(_id(path, line, record), f"{title}\n{text}" if title else text, metadata)
        try:
            check_documents([document])
        except InvalidInput as error:
            raise InvalidInput(f"{path}:{line}: {error}") from None
        if document.id in seen:
            raise InvalidInput(f"{path}:{line}: the id {document.id!r} came before: ids of a corpus differ.")
        seen.add(document.id)
        yield document


def _queries(path: Path) -> dict[str, str]:
    queries: dict[str, str] = {}
    for line, record in _records(path):
        if not isinstance(record.get("text"), str):
            raise InvalidInput(f"{path}:{line}: text must be a string.")
        queries[_id(path, line, record)] = record["text"]
    return queries


def _qrels(directory: Path, split: str) -> Qrels:
    try:
        path = _find(directory / "qrels", f"{split}.tsv")
    except InvalidInput as error:
        splits = {file.name.partition(".tsv")[0] for file in (directory / "qrels").glob("*.tsv*")}
        raise InvalidInput(
            f"{error}\n  Splits that are there: {', '.join(sorted(splits)) or 'none'}."
        ) from None
    qrels: Qrels = {}
    for line, raw in _lines(path):
        cells = raw.rstrip("\r\n").split("\t")
        if line == 1 and cells[-1] == "score":
            continue
        try:
            query, document, grade = cells
            qrels.setdefault(query, {})[document] = int(grade)
        except ValueError:
            raise InvalidInput(
                f"{path}:{line}: {raw.strip()!r} is not 'query-id TAB corpus-id TAB whole number'."
            ) from None
    return qrels


def _find(directory: Path, name: str) -> Path:
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    raise InvalidInput(f"{directory} has neither {name} nor {name}.gz.")


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, raw in _lines(path):
        try:
            record = json.loads(raw)
        except ValueError as error:
            raise InvalidInput(f"{path}:{line}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise InvalidInput(f"{path}:{line}: not a JSON object.")
        yield line, record


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    line = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                if raw.strip():
                    yield line, raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}:{line}: not UTF-8: {error.reason}.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInput(f"{path}: damaged after line {line}: {error}") from None


def _id(path: Path, line: int, record: dict[str, Any]) -> str:
    id = record.get("_id", record.get("id"))
    if isinstance(id, bool) or not isinstance(id, str | int):
        raise InvalidInput(f"{path}:{line}: _id is {type(id).__name__}: an id is a string or a whole number.")
    return str(id)
