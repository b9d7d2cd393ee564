"""Read the files of the catalogue's datasets from the hub's cache or a data directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from m3_connectors.documents import Document, check_documents
from m3_connectors.errors import InvalidInput
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
from m3_connectors.evaluation.datasets.parquet import parquet_records
from m3_connectors.evaluation.datasets.parts import in_folders, missing_parts
from m3_connectors.evaluation.datasets.sizes import Size, size_of

SAMPLE = "SAMPLE"
"""A file of this name marks a data directory that intentionally contains only a part of the dataset."""


def read_hub_set(entry: Entry, language: str | None, split: str, roots: Sequence[Path]) -> Dataset:
    """Read one task.

    Args:
        entry: Which dataset.
        language: Which language of it; None where there is only one task.
        split: Which judgements.
        roots: Folders with the files of its repositories under their paths there.

    Raises:
        InvalidInput: A file is missing or malformed (says which and where), nothing is judged, or the dataset
            has more or less than it should (see ``sizes``) and no file ``SAMPLE`` says that it is a part on
            purpose.
    """
    size = size_of(entry.family, language, split)
    patterns = [p for repository in entry.repositories for p in repository.filled(language, split).files]
    sample = any((root / SAMPLE).is_file() for root in roots)
    files = [_find(roots, pattern, size.parts if size else None, sample) for pattern in patterns]
    read = _READERS[entry.family](entry, language, split, files)
    odd = _differences(read, size) if size else []
    if not odd:
        return read.dataset
    found = f"{' and '.join(odd)} in {', '.join(map(str, roots))}"
    if not sample:
        raise InvalidInput(
            f"{read.dataset.name}, split {split}: {found}: files are missing, truncated or of another "
            "version.\n"
            f"  Copy or download them again: {' '.join(patterns)}. "
            f"For an intended sample, add a file {SAMPLE} beside them."
        )
    warning = f"a sample: {found}; no number compares with a published one"
    return dataclasses.replace(read.dataset, warnings=(warning, *read.dataset.warnings))


@dataclasses.dataclass(frozen=True)
class _Read:
    """A dataset, and how many questions its files had before some were left out."""

    dataset: Dataset
    queries: int


def _differences(read: _Read, size: Size) -> list[str]:
    counts = (
        (len(read.dataset.documents), size.documents, "documents"),
        (read.queries, size.queries, "questions"),
    )
    return [
        f"{found:,} {what} of {expected:,}"
        for found, expected, what in counts
        if expected is not None and found != expected
    ]


def _miracl(entry: Entry, language: str | None, split: str, files: Sequence[Sequence[Path]]) -> _Read:
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


def _mldr(entry: Entry, language: str | None, split: str, files: Sequence[Sequence[Path]]) -> _Read:
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


def _mkqa(entry: Entry, language: str | None, split: str, files: Sequence[Sequence[Path]]) -> _Read:
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
    # Few passages at a time: a corpus is read while a model computes.
    passages = read_corpus(
        corpus, _mkqa_document, rows=partial(parquet_records, columns=("_id", "title", "text"), rows=1_000)
    )
    return _Read(_dataset(entry, language, split, passages, queries, {}, answers, said(counts)), asked)


def _mkqa_document(record: Record, where: str) -> Document:
    text = titled(string(record, "title", where), string(record, "text", where))
    # The paper's scripts encode passages like this and look for answers in them like this (C_MTEB/MKQA).
    return Document(identifier(record, ("_id",), where), unify_punctuation(text.lower()))


def _narrativeqa(entry: Entry, language: str | None, split: str, files: Sequence[Sequence[Path]]) -> _Read:
    (parts,) = files
    rows = partial(parquet_records, rows=16)  # a row holds a whole book
    queries: dict[str, str] = {}
    qrels: Qrels = {}
    for part in parts:
        for where, row in rows(part, ("document.id", "question.text")):
            id = str(len(queries))
            queries[id] = string(row["question"], "text", where)
            qrels[id] = {identifier(row["document"], ("id",), where): 1}

    def stories() -> Iterator[Document]:
        seen: set[str] = set()
        for part in parts:
            for where, row in rows(part, ("document.id", "document.text")):
                id = identifier(row["document"], ("id",), where)
                if id not in seen:  # a story stands beside each of its questions
                    seen.add(id)
                    yield check_documents([Document(id, string(row["document"], "text", where))])[0]

    corpus, asked, judged, warnings = join(
        entry.family, split, queries, qrels, lambda notice: Corpus(stories, entry.family, notice)
    )
    return _Read(_dataset(entry, language, split, corpus, asked, judged, {}, warnings), len(queries))


def _judged(
    entry: Entry,
    language: str | None,
    split: str,
    queries: dict[str, str],
    qrels: Qrels,
    passages: Sequence[Path],
    document: Callable[[Record, str], Document],
) -> _Read:
    corpus, asked, judged, warnings = join(
        f"{entry.family}/{language}",
        split,
        queries,
        qrels,
        lambda notice: read_corpus(passages, document, notice),
    )
    return _Read(_dataset(entry, language, split, corpus, asked, judged, {}, warnings), len(queries))


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
        raise InvalidInput(
            f"{where}: {field} is {type(value).__name__}; it must be a list.\n  Download the file again."
        )
    return value


def _find(roots: Sequence[Path], pattern: str, parts: int | None, sample: bool) -> list[Path]:
    files, names = in_folders(roots, pattern)
    missing = missing_parts(pattern, names, parts)
    if not files or (missing and not sample):
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3:,} more" if len(missing) > 3 else "")
        raise InvalidInput(
            f"no {listed} in {', '.join(map(str, roots))}.\n"
            "  Put the files of the hub there under their original paths; see docs/datasets.md."
        )
    return files


_READERS: Mapping[str, Callable[[Entry, str | None, str, Sequence[Sequence[Path]]], _Read]] = {
    "miracl": _miracl,
    "mkqa": _mkqa,
    "mldr": _mldr,
    "narrativeqa": _narrativeqa,
}
