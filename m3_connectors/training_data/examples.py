"""One training example, and its two forms as JSON: that of ``m3 train``, and FlagEmbedding's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from m3_connectors.documents import check_unicode
from m3_connectors.errors import InvalidInput

_OWN = ("query", "positive", "lang_q", "lang_p", "negatives")
_FLAG_EMBEDDING = ("query", "pos", "neg", "pos_scores", "neg_scores", "lang_q", "lang_p")


class NotAnExample(ValueError):
    """A record is not a training example; the message is the reason, in one line."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A query with its relevant passages, and others that are not relevant.

    Attributes:
        query: The query.
        positives: The relevant passages, at least one.
        place: Where it was read, such as ``file.jsonl:12``.
        kind: How it was made, by which reports count: ``title-body``, ``squad``, …
        negatives: Passages that are not relevant.
        positive_scores: A teacher's score of each positive; empty without a teacher.
        negative_scores: The same for the negatives.
        lang_q: The language of the query, an ISO 639-1 code; None if the source does not say.
        lang_p: The language of the passages.
        extra: Further fields, which are written as they are.
    """

    query: str
    positives: tuple[str, ...]
    place: str
    kind: str
    negatives: tuple[str, ...] = ()
    positive_scores: tuple[float, ...] = ()
    negative_scores: tuple[float, ...] = ()
    lang_q: str | None = None
    lang_p: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """Return the example as JSON takes it.

        It has the form of ``m3 train`` (``query``, ``positive``), unless it has several positives, negatives or
        scores: then it has FlagEmbedding's (``query``, ``pos``, ``neg``).
        """
        languages = {"lang_q": self.lang_q or "und", "lang_p": self.lang_p or "und"}
        if len(self.positives) == 1 and not (self.negatives or self.positive_scores):
            return {"query": self.query, "positive": self.positives[0], **languages, **self.extra}
        scores = {"pos_scores": list(self.positive_scores), "neg_scores": list(self.negative_scores)}
        return {
            "query": self.query,
            "pos": list(self.positives),
            "neg": list(self.negatives),
            **(scores if self.positive_scores else {}),
            **languages,
            **self.extra,
        }


@dataclasses.dataclass(frozen=True)
class Unusable:
    """A line, record or document from which no example can be made.

    Attributes:
        place: Where it is, such as ``file.jsonl:12``.
        stage: What found it, by which reports count.
        reason: Why, in one line.
    """

    place: str
    stage: str
    reason: str


def broken(place: str, reason: str) -> Unusable:
    """Return what a line that cannot be read is reported as."""
    return Unusable(place, "broken", reason)


def example_of(record: Mapping[str, Any], place: str, kind: str) -> Example:
    """Return the example of a record in one of the two forms.

    ``negative`` and ``negatives`` beside ``positive`` are read too. Fields that are not known are kept.

    Raises:
        NotAnExample: The record has neither form.
    """
    if "pos" in record and "positive" not in record:
        return _flag_embedding(record, place, kind)
    if "positive" not in record:
        raise NotAnExample(f"it has neither 'positive' nor 'pos', only {', '.join(map(repr, record))}")
    negatives = record.get("negatives", [record["negative"]] if "negative" in record else [])
    return Example(
        text_of(record, "query"),
        (text_of(record, "positive"),),
        place,
        kind,
        texts_of(negatives, "negatives"),
        lang_q=_language(record, "lang_q"),
        lang_p=_language(record, "lang_p"),
        extra=_others(record, (*_OWN, "negative")),
    )


def _flag_embedding(record: Mapping[str, Any], place: str, kind: str) -> Example:
    positives = texts_of(record["pos"], "pos")
    if not positives:
        raise NotAnExample("'pos' is empty; it must have at least one text")
    negatives = texts_of(record.get("neg") or [], "neg")
    positive_scores = _scores(record, "pos_scores", len(positives))
    negative_scores = _scores(record, "neg_scores", len(negatives))
    if bool(positive_scores) != bool(negative_scores) and negatives:
        raise NotAnExample("only one of 'pos_scores' and 'neg_scores' is there; a teacher scores both")
    return Example(
        text_of(record, "query"),
        positives,
        place,
        kind,
        negatives,
        positive_scores,
        negative_scores,
        _language(record, "lang_q"),
        _language(record, "lang_p"),
        _others(record, _FLAG_EMBEDDING),
    )


def text_of(record: Mapping[str, Any], field: str) -> str:
    """Return a field that must be a text with more than white space.

    Raises:
        NotAnExample: It is not.
    """
    if field not in record:
        raise NotAnExample(f"it has no {field!r}, only {', '.join(map(repr, record))}")
    return _checked(record[field], field)


def texts_of(value: object, field: str) -> tuple[str, ...]:
    """Return a list of texts; raises NotAnExample if it is something else."""
    if not isinstance(value, list):
        raise NotAnExample(f"{field!r} is {value!r:.60}; it must be a list of texts")
    return tuple(_checked(text, f"{field}[{i}]") for i, text in enumerate(value))


def _checked(value: object, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise NotAnExample(f"{field!r} is {value!r:.60}; it must be a text with more than white space")
    try:
        check_unicode(value, field)
    except InvalidInput as error:
        raise NotAnExample(str(error).splitlines()[0]) from None
    return value


def _language(record: Mapping[str, Any], field: str) -> str | None:
    value = record.get(field)
    if value is None or value == "und":
        return None
    return _checked(value, field)


def _scores(record: Mapping[str, Any], field: str, count: int) -> tuple[float, ...]:
    values = record.get(field) or []
    if not isinstance(values, list) or not all(_is_number(value) for value in values):
        raise NotAnExample(f"{field!r} is {values!r:.60}; it must be a list of finite numbers")
    if len(values) not in (0, count):
        raise NotAnExample(f"{field!r} has {len(values)} numbers for {count} texts")
    return tuple(values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _others(record: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: value for name, value in record.items() if name not in known and value not in (None, "", [])
    }
