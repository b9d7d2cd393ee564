"""Sets like SQuAD: paragraphs with questions, as one JSON file or as JSON Lines with a question each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m3_connectors.errors import InvalidInput
from m3_connectors.readers.encodings import UNDECODABLE, written
from m3_connectors.readers.inputs import Input
from m3_connectors.training_data.examples import Example, NotAnExample, Unusable, broken, text_of
from m3_connectors.training_data.lines import json_records, unreadable

IMPOSSIBLE = "impossible questions"
"""The name by which reports count the questions that their paragraph does not answer (SQuAD 2)."""


def read_squad(path: Path, kind: str) -> Iterator[Example | Unusable]:
    """Yield each question with its paragraph; a question that the paragraph does not answer is named."""
    data = _whole(path)
    if isinstance(data, Unusable):
        yield data
    elif data is not None:
        yield from _articles(data, path, kind)
    else:
        for row in json_records(path):
            if isinstance(row, Unusable):
                yield row
            else:
                yield _question(row[1], row[1], row[0], kind)


def _whole(path: Path) -> list[Any] | Unusable | None:
    """Return the articles of a JSON file, or why it cannot be read; None if it is JSON Lines."""
    try:
        with Input(path, path, path.name, "").open_text(None) as stream:
            encoding = written(stream.encoding)
            first = next((line for line in stream if line.strip("\ufeff\r\n\t ")), "")
            if _is_lines(first.removeprefix("\ufeff")):
                return None
            text = first.removeprefix("\ufeff") + stream.read()
    except (OSError, InvalidInput) as error:
        return unreadable(path, 0, error)
    if undecodable := UNDECODABLE.search(text):
        return broken(
            str(path), f"not {encoding} at character {undecodable.start() + 1}; nothing of the file was used"
        )
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        return broken(f"{path}:{error.lineno}", f"not JSON: {error.msg}; nothing of the file was used")
    except (RecursionError, ValueError):
        return broken(str(path), "not readable JSON: nested too deeply, or a number is too long")
    data = found.get("data") if isinstance(found, dict) else found
    if not isinstance(data, list):
        return broken(str(path), "it has no list 'data' of articles")
    return data


def _is_lines(first: str) -> bool:
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "question" in record


def _articles(articles: list[Any], path: Path, kind: str) -> Iterator[Example | Unusable]:
    for i, article in enumerate(articles):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            yield broken(f"{path} data[{i}]", "it has no list 'paragraphs'")
            continue
        for j, paragraph in enumerate(paragraphs):
            place = f"{path} data[{i}].paragraphs[{j}]"
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list):
                yield broken(place, "it has no list 'qas' of questions")
                continue
            for k, question in enumerate(questions):
                yield _question(question, paragraph, f"{place}.qas[{k}]", kind)


def _question(question: object, paragraph: Mapping[str, Any], place: str, kind: str) -> Example | Unusable:
    if not isinstance(question, dict):
        return broken(place, f"{question!r:.60} is not a question")
    try:
        text, passage = text_of(question, "question"), text_of(paragraph, "context")
    except NotAnExample as error:
        return broken(place, str(error))
    if question.get("is_impossible") is True or _has_no_answer(question.get("answers")):
        return Unusable(place, IMPOSSIBLE, f"its paragraph does not answer {text[:100]!r}")
    return Example(text, (passage,), place, kind)


def _has_no_answer(answers: object) -> bool:
    """Return whether the answers are there and empty; a test set may come without them."""
    if isinstance(answers, dict):
        answers = answers.get("text")
    return isinstance(answers, list) and not answers
