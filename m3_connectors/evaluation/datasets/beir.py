"""BEIR folders: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``, each plain or ``.gz``."""

from __future__ import annotations

from pathlib import Path

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.dataset import Dataset, Qrels
from m3_connectors.evaluation.datasets.judged import (
    add_judgement,
    add_query,
    folder_names,
    is_language,
    join,
)
from m3_connectors.evaluation.datasets.lines import (
    Record,
    cells,
    document_with_title,
    find,
    identifier,
    read_corpus,
    records,
    string,
    whole_number,
)

_IDS = ("_id", "id")


def load_beir(directory: Path, split: str = "test") -> Dataset:
    """Read one split.

    A folder that is named after a language (``mlqa-dev/de``) has passages of that language; its queries have
    it too, but for splits ``q-LANGUAGE``, which are asked in another one. Other folders say nothing of
    languages.

    Args:
        directory: The folder.
        split: File name in ``qrels`` without its ending.

    Raises:
        InvalidInput: The folder lacks a file or the split, a line is malformed (says which), or no query is
            judged.
    """
    if not directory.is_dir():
        raise InvalidInput(
            f"{directory} is not a folder.\n  Use a BEIR folder with corpus, queries and qrels."
        )
    qrels = _qrels(directory, split)
    queries = _read_queries(find(directory, "queries.jsonl"))
    files = [find(directory, "corpus.jsonl")]
    corpus, asked, judged, warnings = join(
        str(directory), split, queries, qrels, lambda notice: read_corpus(files, _document, notice)
    )
    name, family, language = folder_names(directory)
    asked_in = split.removeprefix("q-")
    return Dataset(
        name=name,
        split=split,
        documents=corpus,
        queries=asked,
        qrels=judged,
        family=family,
        source=name,
        query_language=asked_in if language and split != asked_in and is_language(asked_in) else language,
        passage_language=language,
        warnings=warnings,
    )


def _read_queries(path: Path) -> dict[str, str]:
    queries: dict[str, str] = {}
    for where, record in records(path):
        add_query(queries, identifier(record, _IDS, where), string(record, "text", where), where)
    return queries


def _document(record: Record, where: str) -> Document:
    return document_with_title(record, where, _IDS)


def _qrels(directory: Path, split: str) -> Qrels:
    try:
        path = find(directory / "qrels", f"{split}.tsv")
    except InvalidInput as error:
        splits = {file.name.partition(".tsv")[0] for file in (directory / "qrels").glob("*.tsv*")}
        raise InvalidInput(
            f"{error}\n  Splits that are there: {', '.join(sorted(splits)) or 'none'}."
        ) from None
    qrels: Qrels = {}
    for position, (where, (query, document, grade)) in enumerate(
        cells(path, "query-id", "corpus-id", "whole number")
    ):
        if position == 0 and grade == "score":
            continue
        add_judgement(qrels, query, document, whole_number(grade, where, "the score"), where)
    return qrels
