"""The files of a run of questions: what is in them is not asked again, and half a line of a killed run is removed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from m3_connectors.errors import InvalidInput
from m3_connectors.training_data.examples import Example, Unusable
from m3_connectors.training_data.files import beside
from m3_connectors.training_data.lines import json_records
from m3_connectors.training_data.questions.articles import Article
from m3_connectors.training_data.questions.checks import Rejection

REJECTED_SUFFIX = ".rejected.jsonl"
_KEY = "key"


class Journal:
    """Appends accepted questions to one file and rejected ones to another; a context manager.

    Args:
        to: The file of accepted questions, which are training examples with the whole article as positive.

    Raises:
        InvalidInput: A file was not written by an earlier run, or is damaged.
    """

    def __init__(self, to: Path) -> None:
        self._to = to
        self.rejected_to = beside(to, REJECTED_SUFFIX)
        self.asked: set[str] = set()
        """The keys of the articles that were asked about."""
        self.accepted = 0
        """The number of accepted questions, with those of earlier runs."""
        self.rejected: Counter[str] = Counter()
        """The number of rejected questions by stage, with those of earlier runs."""
        self.languages: Counter[str] = Counter()
        """The number of accepted questions by language, with those of earlier runs."""
        for record in _earlier(to):
            self.accepted += 1
            self.languages[str(record.get("lang_p"))] += 1
            self.asked.add(record[_KEY])
        for record in _earlier(self.rejected_to):
            self.rejected[str(record.get("stage"))] += 1
            self.asked.add(record[_KEY])
        self._accepted_file = to.open("a", encoding="utf-8", newline="\n")
        self._rejected_file = self.rejected_to.open("a", encoding="utf-8", newline="\n")

    def accept(self, question: str, article: Article) -> None:
        """Write a question that passed all checks."""
        example = Example(
            question,
            (article.text,),
            article.place,
            "question",
            lang_q=article.language,
            lang_p=article.language,
            extra=_origin(article),
        )
        _append(self._accepted_file, example.to_record())
        self.accepted += 1
        self.languages[article.language] += 1
        self.asked.add(article.key)

    def reject(self, answer: str | None, article: Article, rejection: Rejection) -> None:
        """Write an answer that is not used, with the reason."""
        record = {
            "stage": rejection.stage,
            "reason": rejection.reason,
            "value": rejection.value,
            "answer": answer,
            **_origin(article),
        }
        _append(self._rejected_file, record)
        self.rejected[rejection.stage] += 1
        self.asked.add(article.key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._accepted_file.close()
        self._rejected_file.close()
        for path, count in ((self._to, self.accepted), (self.rejected_to, self.rejected.total())):
            if not count:
                path.unlink()


def _origin(article: Article) -> dict[str, Any]:
    start, end = article.passages[article.chosen]
    return {"document": article.place, "passage": {"start": start, "end": end}, _KEY: article.key}


def _append(file: Any, record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    file.flush()


def _earlier(path: Path) -> list[dict[str, Any]]:
    """Return the lines of an earlier run, after removing the beginning of one that it was killed in."""
    if not path.exists():
        return []
    _remove_half_line(path)
    records = []
    for row in json_records(path):
        if isinstance(row, Unusable) or not isinstance(row[1].get(_KEY), str):
            place, why = (
                (row.place, row.reason) if isinstance(row, Unusable) else (row[0], f"no field {_KEY!r}")
            )
            raise InvalidInput(
                f"{place} is not a line of m3 data questions: {why}.\n"
                "  Give another --to, or remove the line to have its question asked again."
            )
        records.append(row[1])
    return records


def _remove_half_line(path: Path) -> None:
    with path.open("rb+") as file:
        content_end = file.seek(0, 2)
        position = content_end
        while position:
            start = max(0, position - 2**16)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                position = start + found + 1
                break
            position = start
        if position < content_end:
            file.truncate(position)
