"""Reads the files of the catalogue's datasets, wherever they lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.evaluation.answers import tokens, unify_punctuation
from m3_connectors.evaluation.datasets.catalogue import Entry
from m3_connectors.evaluation.datasets.dataset import Corpus, Dataset, Qrels
from m3_connectors.evaluation.datasets.judged import add_judgement, add_query, join, said
from m3_connectors.evaluation.datasets.lines import (
    Record,
    cells,
    identifier,
    read_corpus,
    records,
    string,
    titled,
    whole_number,
)


def read_hub_set(entry: Entry, language: str | None, split: str, roots: Sequence[Path]) -> Dataset:
    """Read one task.

    Args:
        entry: Which dataset.
        language: Which language of it; None where there is only one task.
        split: Which judgements.
        roots: Folders with the files of its repositories under their paths there.

    Raises:
        InvalidInput: A file is missing or malformed (says which and where), or nothing is judged.
    """
    files = [
        _find(roots, pattern)
        for repository in entry.repositories
        for pattern in repository.filled(language, split).files
    ]
    return _READERS[entry.family](entry, language, split, files)


def _miracl(entry: Entry, language: str | None, split: str, files: Sequence[Sequence[Path]]) -> Dataset:
    (topics,), (judgements,), passages = files
    qrels: Qrels = {}
    for where, (query, _, document, grade) in cells(judgements, "query", "Q0", "document", "grade"):
        add_judgement(qrels, query, document, whole_number(grade, where, "the grade"), where)
    queries: dict[str, str] = {}
    for where, (id, text) in cells(topics, "query", "text"):
        add_query(queries, id, text, where)
    return _judged(entry, language, split, queries, qrels, passages, _miracl_document)


def _miracl_document(record: Record, where: str) -> Document:
    text = titled(string(record, "title", where), string(record, "text", where))
    return Document(identifier(record, ("docid",), where), text)


def _mldr(entry: Entry, language: str | None, split: str, files: Sequence[Sequence[Path]]) -> Dataset:
    corpus, (questions,) = files
    queries: dict[str, str] = {}
    qrels: Qrels = {}
    for where, record in records(questions):
        id = identifier(record, ("query_id",), where)
        add_query(queries, id, string(record, "query", where), where)
        for field, grade in (("negative_passages", 0), ("positive_passages", 1)):
            for passage in _list(record, field, where):
                qrels.setdefault(id, {})[identifier(passage, ("docid",), where)] = grade
    return _judged(entry, language, split, queries, qrels, corpus, _mldr_document)


def _mldr_document(record: Record, where: str) -> Document:
    return Document(identifier(record, ("docid",), where), string(record, "text", where))


def _mkqa(entry: Entry, language: str | None, split: str, files: Sequence[Sequence[Path]]) -> Dataset:
    (archive,), corpus = files
    queries: dict[str, str] = {}
    answers: dict[str, tuple[str, ...]] = {}
    asked = empty = 0
    for where, record in records(archive, f"{language}.jsonl"):
        asked += 1
        id = identifier(record, ("id",), where)
        given = _list(record, "answers", where)
        # An answer without a letter or sign would be found in every passage.
        found = tuple(answer for answer in given if isinstance(answer, str) and tokens(answer))
        empty += len(given) - len(found)
        if found:
            add_query(queries, id, string(record, "question", where), where)
            answers[id] = found
    counts = (
        (asked - len(queries), "questions without an answer: not asked"),
        (empty, "answers without a letter or sign: left out"),
    )
    passages = read_corpus(corpus, _mkqa_document)
    return _dataset(entry, language, split, passages, queries, {}, answers, said(counts))


def _mkqa_document(record: Record, where: str) -> Document:
    text = titled(string(record, "title", where), string(record, "text", where))
    # The paper's scripts encode passages like this and look for answers in them like this (C_MTEB/MKQA).
    return Document(identifier(record, ("_id",), where), unify_punctuation(text.lower()))


def _narrativeqa(entry: Entry, language: str | None, split: str, files: Sequence[Sequence[Path]]) -> Dataset:
    (parts,) = files
    queries: dict[str, str] = {}
    qrels: Qrels = {}
    for row in _rows(parts, ["document.id", "question.text"]):
        id = str(len(queries))
        queries[id] = row["question"]["text"]
        qrels[id] = {row["document"]["id"]: 1}

    def stories() -> Iterator[Document]:
        seen: set[str] = set()
        for row in _rows(parts, ["document.id", "document.text"]):
            id = row["document"]["id"]
            if id not in seen:  # a story stands beside each of its questions
                seen.add(id)
                yield Document(id, row["document"]["text"])

    corpus, asked, judged, warnings = join(
        entry.family, split, queries, qrels, lambda notice: Corpus(stories, entry.family, notice)
    )
    return _dataset(entry, language, split, corpus, asked, judged, {}, warnings)


def _rows(parts: Sequence[Path], columns: list[str]) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingDependency("pyarrow", "eval") from None
    for part in parts:
        try:
            # A row holds a whole book.
            for batch in parquet.ParquetFile(part).iter_batches(16, columns=columns):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, KeyError, OSError) as error:
            raise InvalidInput(f"{part} is not Parquet with {' and '.join(columns)}: {error}") from error


def _judged(
    entry: Entry,
    language: str | None,
    split: str,
    queries: dict[str, str],
    qrels: Qrels,
    passages: Sequence[Path],
    document: Callable[[Record, str], Document],
) -> Dataset:
    corpus, asked, judged, warnings = join(
        f"{entry.family}/{language}",
        split,
        queries,
        qrels,
        lambda notice: read_corpus(passages, document, notice),
    )
    return _dataset(entry, language, split, corpus, asked, judged, {}, warnings)


def _dataset(
    entry: Entry,
    language: str | None,
    split: str,
    documents: Corpus,
    queries: dict[str, str],
    qrels: Qrels,
    answers: Mapping[str, tuple[str, ...]],
    warnings: tuple[str, ...],
) -> Dataset:
    return Dataset(
        name=f"{entry.family}/{language}" if language else entry.family,
        split=split,
        documents=documents,
        queries=queries,
        qrels=qrels,
        answers=answers,
        family=entry.family,
        source=entry.source,
        revision=entry.revision,
        licence=entry.licence,
        query_language=language or entry.passage_language,
        passage_language=entry.passage_language or language,
        paper=entry.paper,
        warnings=warnings,
    )


def _list(record: Record, field: str, where: str) -> list[Any]:
    value = record.get(field)
    if not isinstance(value, list):
        raise InvalidInput(f"{where}: {field} is {type(value).__name__}: it must be a list.")
    return value


def _find(roots: Sequence[Path], pattern: str) -> list[Path]:
    found = list(chain.from_iterable(root.glob(pattern) for root in roots))
    if not found:
        raise InvalidInput(
            f"no {pattern} in {', '.join(map(str, roots))}.\n"
            "  A data directory holds the files of the hub under the paths that they have there: docs/datasets.md."
        )
    return sorted(found, key=_by_number)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """``docs-2`` before ``docs-10``."""
    parts = re.split(r"(\d+)", PurePosixPath(path).as_posix())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


_READERS: Mapping[str, Callable[[Entry, str | None, str, Sequence[Sequence[Path]]], Dataset]] = {
    "miracl": _miracl,
    "mkqa": _mkqa,
    "mldr": _mldr,
    "narrativeqa": _narrativeqa,
}
