"""Exact metadata filters: the fields that are stored for them, and the expression of a filter.

Milvus' own JSON operators differ from ``filters.matches`` (lists, booleans, null, missing fields, ``not``),
in another way in each version. This package therefore derives fields from a document's metadata when it is
written, and an expression uses only these:

- *terms*: one digest for each (field, value) that ``OneOf`` finds, each field that ``Exists`` finds, each
  field that holds a number or a date, and the terms of ``large_numbers``;
- *bounds*: the lowest and highest number and date of each field, as dynamic fields. An element is above a
  bound if the highest is, and below it if the lowest is, so lists need nothing else.

``Not`` is pushed down to these two, because in Milvus a comparison with a missing field is neither true nor
false.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, assert_never

from m3_connectors.backends.large_numbers import beyond, double, is_large, terms_beside, terms_of
from m3_connectors.backends.milvus.naming import digest
from m3_connectors.dates import parse_date
from m3_connectors.fields import Scalar, fields_of
from m3_connectors.filters import And, Compare, Comparison, Exists, Filter, Not, OneOf, Or

EVERYTHING = 'key != ""'
NOTHING = 'key == ""'

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_NEGATED: dict[Comparison, Comparison] = {"$gt": "$lte", "$gte": "$lt", "$lt": "$gte", "$lte": "$gt"}
_SYMBOL: dict[Comparison, str] = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


@dataclasses.dataclass(frozen=True)
class Answers:
    """The fields for filters on a document's metadata.

    Attributes:
        terms: Distinct digests.
        bounds: Numbers by the name of their dynamic field.
    """

    terms: tuple[str, ...]
    bounds: dict[str, int | float]


def answers(metadata: Mapping[str, Any]) -> Answers:
    """Return the filter fields for one document's metadata."""
    terms: dict[str, None] = {}
    bounds: dict[str, int | float] = {}
    for field, items in fields_of(metadata).items():
        terms[_exists(field)] = None
        numbers: list[int | float] = []
        dates: list[int] = []
        for item in items:
            terms[_equals(field, item)] = None
            if isinstance(item, int | float) and not isinstance(item, bool):
                numbers.append(double(item) if is_large(item) else item)
                terms |= dict.fromkeys(_large(field, terms_of(item)) if is_large(item) else ())
            elif (date := parse_date(item)) is not None:
                dates.append(_instant(date))
        for kind, values in (("number", numbers), ("date", dates)):
            if values:
                terms[_comparable(kind, field)] = None
                bounds[_bound("lowest", kind, field)] = min(values)
                bounds[_bound("highest", kind, field)] = max(values)
    return Answers(tuple(terms), bounds)


def expression(filter: Filter | None, *, terms_as_array: bool) -> str:
    """Return the Milvus expression with the same meaning as ``matches``; empty for None.

    Args:
        filter: A parsed filter.
        terms_as_array: The value in the collection's layout.
    """

    def has(term: str) -> str:
        return f'array_contains(terms, "{term}")' if terms_as_array else f'terms like "%{term}%"'

    def lacks(term: str) -> str:
        return f"not ({has(term)})"

    def joined(parts: Iterable[str], word: str, empty: str) -> str:
        return f" {word} ".join(f"({part})" for part in parts) or empty

    def among(alternatives: Sequence[str], holds: bool) -> str:
        terms = list(dict.fromkeys(alternatives))
        if terms_as_array and len(terms) > 1:
            # One node for any number of values, because a server parses alternatives recursively.
            listed = ",".join(f'"{term}"' for term in terms)
            found = f"array_contains_any(terms, [{listed}])"
            return found if holds else f"not ({found})"
        if holds:
            return joined(map(has, terms), "or", NOTHING)
        return joined(map(lacks, terms), "and", EVERYTHING)

    def on_side(compare: Compare, holds: bool) -> str:
        field, operator = compare.field, compare.operator
        kind, value = _kind_and_value(compare.bound)
        end = "highest" if operator in ("$gt", "$gte") else "lowest"
        path = f'$meta["{_bound(end, kind, field)}"]'
        if holds:
            return f"{path} {_SYMBOL[operator]} {value!r}"
        return f"{lacks(_comparable(kind, field))} or {path} {_SYMBOL[_NEGATED[operator]]} {value!r}"

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
                return among([_equals(field, value) for value in values], holds)
            case Compare(field, _, bound) if isinstance(bound, int | float) and is_large(bound):
                here = among(_large(field, terms_beside(node)), holds)
                return joined((here, on_side(beyond(node), holds)), "or" if holds else "and", NOTHING)
            case Compare():
                return on_side(node, holds)
            case _:
                assert_never(node)

    return "" if filter is None else compiled(filter, True)


def _equals(field: str, value: Scalar) -> str:
    """Return one term for all values that are equal, and for no others: True is not 1, but 1.0 is."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    kind = "bool" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
    return digest("equals", field, kind, value if isinstance(value, str) else repr(value))


def _exists(field: str) -> str:
    return digest("exists", field)


def _large(field: str, terms: Iterable[str]) -> list[str]:
    return [digest("large", field, term) for term in terms]


def _comparable(kind: str, field: str) -> str:
    return digest("comparable", kind, field)


def _bound(end: str, kind: str, field: str) -> str:
    return "m3_" + digest("bound", end, kind, field)


def _kind_and_value(bound: int | float | datetime.datetime) -> tuple[str, int | float]:
    return ("date", _instant(bound)) if isinstance(bound, datetime.datetime) else ("number", bound)


def _instant(date: datetime.datetime) -> int:
    """Return the exact number of microseconds since 1970."""
    return (date - _EPOCH) // _MICROSECOND
