"""Your own data as JSON Lines: ``documents.jsonl`` and ``queries.jsonl`` with the judgements inside.

    {"id": "d1", "text": "Clouds bring rain.", "title": "Rain", "metadata": {"lang": "en"}}
    {"id": "q1", "text": "where does rain come from", "relevant": ["d1"]}

Title and metadata are optional. ``relevant`` may give grades, ``{"d1": 2, "d7": 1}``; where no document is
judged, ``"answers": ["Goethe"]`` gives strings of which a relevant document holds one. Further splits of the
queries are ``queries-SPLIT.jsonl``; each file may be ``.gz``.
"""

from __future__ import annotations

from pathlib import Path

from m3_connectors.documents import Document, check_unicode
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.answers import tokens
from m3_connectors.evaluation.datasets.dataset import Dataset, PaperProtocol, Qrels
from m3_connectors.evaluation.datasets.judged import add_query, folder_names, join, said
from m3_connectors.evaluation.datasets.lines import (
    Record,
    as_id,
    document_with_title,
    find,
    identifier,
    read_corpus,
    records,
    string,
)

DEFAULT_SPLIT = "test"
"""The split of ``queries.jsonl``."""

_IDS = ("id", "_id")


def load_own(directory: Path, split: str = DEFAULT_SPLIT) -> Dataset:
    """Read one split of a folder.

    Raises:
        InvalidInput: A file is missing or malformed (says which line), no query is judged, or some queries
            have judgements and others answers.
    """
    path = find(directory, "queries.jsonl" if split == DEFAULT_SPLIT else f"queries-{split}.jsonl")
    queries: dict[str, str] = {}
    qrels: Qrels = {}
    answers: dict[str, tuple[str, ...]] = {}
    for where, record in records(path):
        id = identifier(record, _IDS, where)
        add_query(queries, id, string(record, "text", where), where)
        if "answers" in record:
            answers[id] = _answers(record["answers"], where)
        elif grades := _judgements(record.get("relevant", []), where):
            qrels[id] = grades  # an empty list says as little as none
    if qrels and answers:
        raise InvalidInput(
            f"{path}: some queries have relevant documents and others answers: one measure cannot have both.\n"
            "  Split them into two files."
        )
    (name, family, language), files = folder_names(directory), [find(directory, "documents.jsonl")]
    if answers:
        return Dataset(
            name=name,
            split=split,
            documents=read_corpus(files, _document),
            queries={id: queries[id] for id in answers},
            qrels={},
            answers=answers,
            family=family,
            source=name,
            query_language=language,
            passage_language=language,
            paper=PaperProtocol(measures=("Recall@100", "Recall@20")),
            warnings=said([(len(queries) - len(answers), "queries without an answer: not asked")]),
        )
    corpus, asked, judged, warnings = join(
        str(directory), split, queries, qrels, lambda notice: read_corpus(files, _document, notice)
    )
    return Dataset(
        name=name,
        split=split,
        documents=corpus,
        queries=asked,
        qrels=judged,
        family=family,
        source=name,
        query_language=language,
        passage_language=language,
        warnings=warnings,
    )


def _document(record: Record, where: str) -> Document:
    return document_with_title(record, where, _IDS)


def _judgements(value: object, where: str) -> dict[str, int]:
    given = dict.items(value) if isinstance(value, dict) else None
    judged = [(id, 1) for id in value] if isinstance(value, list) else given
    if judged is None or not all(
        isinstance(grade, int) and not isinstance(grade, bool) for _, grade in judged
    ):
        raise InvalidInput(
            f"{where}: relevant is {value!r}, which does not list ids.\n"
            '  Write a list of ids, ["d1"], or an object of ids with integers as grades, {"d1": 2}.'
        )
    return {as_id(id, where, "an id of relevant"): grade for id, grade in judged}


def _answers(value: object, where: str) -> tuple[str, ...]:
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(one, str) and tokens(one) for one in value)
    ):
        raise InvalidInput(
            f"{where}: answers is {value!r}; each answer must be a string with a letter or digit.\n"
            '  Write a list such as ["Goethe"].'
        )
    for answer in value:
        check_unicode(answer, f"{where}: an answer")
    return tuple(value)
