"""Metadata filters in Elasticsearch: the fields that are indexed for them, and filter trees as queries.

Metadata are arbitrary: a field can be a number in one document and a text in another, and no field may be
refused or read as the type that it has in another document. Three fields of this package therefore hold what
filters need:

- ``terms``: a keyword for each value and for each existing field, ``["year",2020]`` and ``["year"]`` in JSON,
  and the terms of ``large_numbers``, ``["year",">","1"]``;
- ``numbers.FIELD``: every number of a field, as a double, for ranges;
- ``dates.FIELD``: every text of a field that is a date, in microseconds since 1970, for ranges.

``filters.matches`` defines the meaning of the queries.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from m3_connectors.backends.large_numbers import beyond, double, is_large, terms_beside, terms_of
from m3_connectors.dates import parse_date
from m3_connectors.fields import Scalar, fields_of
from m3_connectors.filters import And, Compare, Exists, Filter, Not, OneOf, Or

TERMS, NUMBERS, DATES = "terms", "numbers", "dates"

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
LONGEST_TERM = 512
"""Longer terms are hashed, because Lucene refuses terms of 32 KiB. Terms are never shown, so nothing is
lost."""


def indexed(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the filter fields for one document's metadata."""
    terms: dict[str, None] = {}
    numbers: dict[str, list[float]] = {}
    dates: dict[str, list[int]] = {}
    for field, items in fields_of(metadata).items():
        terms[_term(field)] = None
        for item in items:
            terms[_term(field, item)] = None
            if isinstance(item, int | float) and not isinstance(item, bool):
                numbers.setdefault(_name(field), []).append(_double(item))
                terms |= dict.fromkeys(_large(field, terms_of(item)) if is_large(item) else ())
            date = parse_date(item)
            if date is not None:
                dates.setdefault(_name(field), []).append(_microseconds(date))
    return {TERMS: list(terms), NUMBERS: numbers, DATES: dates}


def query_of(filter: Filter) -> dict[str, Any]:
    """Return the same condition as a query without scores."""
    match filter:
        case And(parts):
            return {"bool": {"filter": [query_of(part) for part in parts]}} if parts else {"match_all": {}}
        case Or(parts):
            return _any([query_of(part) for part in parts])
        case Not(part):
            return {"bool": {"must_not": [query_of(part)]}}
        case Exists(field):
            return {"term": {TERMS: _term(field)}}
        case OneOf(field, values):
            return {"terms": {TERMS: [_term(field, value) for value in values]}}
        case Compare(field, _, bound) if isinstance(bound, int | float) and is_large(bound):
            here = {"terms": {TERMS: _large(field, terms_beside(filter))}}
            return _any([here, _range(beyond(filter))])
        case Compare():
            return _range(filter)


def _range(compare: Compare) -> dict[str, Any]:
    name, side, bound = _name(compare.field), compare.operator.removeprefix("$"), compare.bound
    if isinstance(bound, datetime.datetime):
        return {"range": {f"{DATES}.{name}": {side: _microseconds(bound)}}}
    return {"range": {f"{NUMBERS}.{name}": {side: _double(bound)}}}


def _any(queries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"bool": {"should": queries, "minimum_should_match": 1}} if queries else {"match_none": {}}


def _term(field: str, *value: Scalar) -> str:
    """Return the term of a field, or of a field with a value; JSON keeps values of different types apart."""
    plain = [int(item) if isinstance(item, float) and item.is_integer() else item for item in value]
    term = json.dumps([field, *plain], ensure_ascii=False, separators=(",", ":"))
    return term if len(term) <= LONGEST_TERM else hashlib.sha256(term.encode()).hexdigest()


def _large(field: str, terms: list[str]) -> list[str]:
    return [_term(field, ">", term) for term in terms]


def _name(field: str) -> str:
    """Return a field's name in the index: without dots, so that it never collides with an object."""
    return "/".join(quote(name, safe="") for name in field.split("."))


def _double(number: float) -> float:
    # Elasticsearch sorts -0.0 before 0.0.
    return double(number) + 0.0


def _microseconds(date: datetime.datetime) -> int:
    return (date - _EPOCH) // _MICROSECOND
