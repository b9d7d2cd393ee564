"""Metadata filters, exactly: what is stored beside a document for them, and the expression of a filter.

Milvus' own JSON operators mean other things than ``filters.matches`` (lists, booleans, null, missing fields, ``not``),
differently in each version. So a document carries what its metadata answer, worked out by this package when it is
written, and an expression asks for nothing else:

- *terms*: one digest for each (field, value) that ``OneOf`` finds, each field that ``Exists`` finds, and each field
  that holds a number or a date;
- *bounds*: the lowest and highest number and date of each field, as dynamic fields. Some element is above a bound
  where the highest is, and below it where the lowest is, so lists need nothing more.

``Not`` is pushed down to these two, because a comparison with a missing field is neither true nor false to Milvus.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Mapping
from typing import Any, assert_never

from m3_connectors.backends.milvus.naming import digest
from m3_connectors.filters import And, Compare, Comparison, Exists, Filter, Not, OneOf, Or, Scalar, parse_date

EVERYTHING = 'key != ""'
NOTHING = 'key == ""'

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_BEYOND = 2**53 + 2
"""Larger than every bound of a filter, and exact in a float: larger numbers are stored as this."""

_NEGATED: dict[Comparison, Comparison] = {"$gt": "$lte", "$gte": "$lt", "$lt": "$gte", "$lte": "$gt"}
_SYMBOL: dict[Comparison, str] = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a document's metadata answer to filters.

    Attributes:
        terms: Digests, each once.
        bounds: Dynamic field to number.
    """

    terms: tuple[str, ...]
    bounds: dict[str, int | float]


def answers(metadata: Mapping[str, Any]) -> Answers:
    """The answers of one document's metadata."""
    terms: dict[str, None] = {}
    bounds: dict[str, int | float] = {}
    for field, value in _fields(metadata, ""):
        items = list(value) if isinstance(value, list | tuple) else [value]
        terms[_exists(field)] = None
        numbers: list[int | float] = []
        dates: list[int] = []
        for item in items:
            if isinstance(item, bool | str | int | float):
                terms[_equals(field, item)] = None
            if isinstance(item, int | float) and not isinstance(item, bool):
                numbers.append(max(-_BEYOND, min(_BEYOND, item)))
            elif (date := parse_date(item)) is not None:
                dates.append(_instant(date))
        for kind, values in (("number", numbers), ("date", dates)):
            if values:
                terms[_comparable(kind, field)] = None
                bounds[_bound("lowest", kind, field)] = min(values)
                bounds[_bound("highest", kind, field)] = max(values)
    return Answers(tuple(terms), bounds)


def expression(filter: Filter | None, *, terms_as_array: bool) -> str:
    """The Milvus expression that holds exactly where ``matches`` does; empty for None.

    Args:
        filter: A parsed filter.
        terms_as_array: As the collection's layout says.
    """

    def has(term: str) -> str:
        return f'array_contains(terms, "{term}")' if terms_as_array else f'terms like "%{term}%"'

    def lacks(term: str) -> str:
        return f"not ({has(term)})"

    def joined(parts: Iterator[str], word: str, empty: str) -> str:
        return f" {word} ".join(f"({part})" for part in parts) or empty

    def compiled(node: Filter, holds: bool) -> str:
        match node:
            case Not(part):
                return compiled(part, not holds)
            case And(parts) | Or(parts):
                inner = (compiled(part, holds) for part in parts)
                if isinstance(node, And) == holds:
                    return joined(inner, "and", EVERYTHING)
                return joined(inner, "or", NOTHING)
            case Exists(field):
                return has(_exists(field)) if holds else lacks(_exists(field))
            case OneOf(field, values):
                terms = dict.fromkeys(_equals(field, value) for value in values)
                if terms_as_array and len(terms) > 1:
                    # One node, however many values: a server parses thousands of alternatives by recursion.
                    among = ",".join(f'"{term}"' for term in terms)
                    found = f"array_contains_any(terms, [{among}])"
                    return found if holds else f"not ({found})"
                if holds:
                    return joined(map(has, terms), "or", NOTHING)
                return joined(map(lacks, terms), "and", EVERYTHING)
            case Compare(field, operator, bound):
                kind, value = _kind_and_value(bound)
                end = "highest" if operator in ("$gt", "$gte") else "lowest"
                path = f'$meta["{_bound(end, kind, field)}"]'
                if holds:
                    return f"{path} {_SYMBOL[operator]} {value!r}"
                return f"{lacks(_comparable(kind, field))} or {path} {_SYMBOL[_NEGATED[operator]]} {value!r}"
            case _:
                assert_never(node)

    return "" if filter is None else compiled(filter, True)


def _fields(metadata: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Every field that a filter can name and that is there, with its value."""
    for key, value in metadata.items():
        # A key with a dot in it is no one's field: a filter reads "a.b" as field b of the object in field a.
        if not key or "." in key or value is None or (isinstance(value, list | tuple) and not value):
            continue
        yield prefix + key, value
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{key}.")


def _equals(field: str, value: Scalar) -> str:
    """One term for all values that are equal to each other, and to no others: True is not 1, but 1.0 is."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    kind = "bool" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
    return digest("equals", field, kind, value if isinstance(value, str) else repr(value))


def _exists(field: str) -> str:
    return digest("exists", field)


def _comparable(kind: str, field: str) -> str:
    return digest("comparable", kind, field)


def _bound(end: str, kind: str, field: str) -> str:
    return "m3_" + digest("bound", end, kind, field)


def _kind_and_value(bound: int | float | datetime.datetime) -> tuple[str, int | float]:
    return ("date", _instant(bound)) if isinstance(bound, datetime.datetime) else ("number", bound)


def _instant(date: datetime.datetime) -> int:
    """Microseconds since 1970, exact."""
    return (date - _EPOCH) // _MICROSECOND
