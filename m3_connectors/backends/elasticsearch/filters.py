"""Metadata filters in Elasticsearch: what is indexed of a document's metadata, and filter trees as queries on it.

Metadata are anyone's: one document has a number where another has a text, and no field may be refused or read in
another document's type. So three fields of ours hold what filters ask, whatever the caller's fields are called:

- ``terms``: a keyword for each value and for each field that is there, ``["year",2020]`` and ``["year"]`` in JSON;
- ``numbers.FIELD``: every number of a field, as a double, for ranges;
- ``dates.FIELD``: every text of a field that is a date, as microseconds since 1970, for ranges.

``filters.matches`` is what the queries must mean.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from m3_connectors.filters import And, Compare, Exists, Filter, Not, OneOf, Or, Scalar, field_path, parse_date

TERMS, NUMBERS, DATES = "terms", "numbers", "dates"

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_EXACT = 2**53
"""Whole numbers up to here are doubles; filters ask for none beyond."""

LONGEST_TERM = 512
"""Longer terms are hashed: Lucene refuses those of 32 KiB, and nobody reads them."""


def indexed(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The filter fields of one document's metadata."""
    terms: dict[str, None] = {}
    numbers: dict[str, list[float]] = {}
    dates: dict[str, list[int]] = {}
    for path, value in _fields(metadata, ()):
        terms[_term(path)] = None
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, str | bool | int | float):
                terms[_term(path, item)] = None
            if isinstance(item, int | float) and not isinstance(item, bool):
                numbers.setdefault(_name(path), []).append(_double(item))
            date = parse_date(item)
            if date is not None:
                dates.setdefault(_name(path), []).append(_microseconds(date))
    return {TERMS: list(terms), NUMBERS: numbers, DATES: dates}


def query_of(filter: Filter) -> dict[str, Any]:
    """The same condition as a query that scores nothing."""
    match filter:
        case And(parts):
            return {"bool": {"filter": [query_of(part) for part in parts]}} if parts else {"match_all": {}}
        case Or(parts):
            return _any([query_of(part) for part in parts])
        case Not(part):
            return {"bool": {"must_not": [query_of(part)]}}
        case Exists(field):
            return {"term": {TERMS: _term(field_path(field))}}
        case OneOf(field, values):
            path = field_path(field)
            return {"terms": {TERMS: [_term(path, value) for value in values]}}
        case Compare(field, operator, bound):
            name = _name(field_path(field))
            side = operator.removeprefix("$")
            if isinstance(bound, datetime.datetime):
                return {"range": {f"{DATES}.{name}": {side: _microseconds(bound)}}}
            return {"range": {f"{NUMBERS}.{name}": {side: _double(bound)}}}


def _any(queries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"bool": {"should": queries, "minimum_should_match": 1}} if queries else {"match_none": {}}


def _fields(value: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field that a filter can name and that is there, objects before what they hold."""
    for key, item in value.items():
        # A filter reads "a.b" as field b of field a: it cannot name a key with a dot, nor an empty one.
        if not key or "." in key or item is None or item in ([], ()):
            continue
        yield (*path, key), item
        if isinstance(item, Mapping):
            yield from _fields(item, (*path, key))


def _term(path: Sequence[str], *value: Scalar) -> str:
    """A field, or a field with a value; JSON keeps apart what differs in type."""
    plain = [int(item) if isinstance(item, float) and item.is_integer() else item for item in value]
    term = json.dumps([".".join(path), *plain], ensure_ascii=False, separators=(",", ":"))
    return term if len(term) <= LONGEST_TERM else hashlib.sha256(term.encode()).hexdigest()


def _name(path: Sequence[str]) -> str:
    """A field's name in the index: no dot, so that a field and an object of the same name never meet."""
    return "/".join(quote(key, safe="") for key in path)


def _double(number: float) -> float:
    """The double that compares with every bound of a filter as the number does."""
    if isinstance(number, int) and abs(number) > _EXACT:
        # 2**53 + 1 would round to 2**53, which a filter can ask for.
        beyond = max(abs(float(number)), _EXACT + 2.0)
        return beyond if number > 0 else -beyond
    # Elasticsearch orders -0.0 before 0.0.
    return float(number) + 0.0


def _microseconds(date: datetime.datetime) -> int:
    return (date - _EPOCH) // _MICROSECOND
