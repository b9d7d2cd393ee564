"""Metadata filters: a small tree that is parsed from a mapping, and its reference semantics in Python.

A filter is a mapping from field to value or to operators::

    {"lang": "en", "year": {"$gte": 2020, "$lt": 2024}, "$or": [{"tag": "a"}, {"tag": {"$exists": False}}]}

All entries must hold. ``a.b`` refers to field ``b`` of the object in field ``a``, or of each object in the
list there (see ``fields``). If a field has several values, a condition holds if any of them fulfils it,
separately for each operator. Types are strict: ``True`` is not ``1``, ``"1"`` is not ``1``, but ``1`` equals
``1.0``. ``$gt``, ``$gte``, ``$lt`` and ``$lte`` compare dates (see ``dates``) as instants. ``matches`` is the
definition that every backend must follow. Conditions can be nested up to ``MAX_DEPTH`` deep.
``docs/filters.md`` describes filters for users.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from m3_connectors.dates import parse_date
from m3_connectors.documents import MAX_WHOLE, MIN_WHOLE, check_unicode
from m3_connectors.errors import InvalidInput
from m3_connectors.fields import Scalar, fields_of

Comparison = Literal["$gt", "$gte", "$lt", "$lte"]

MAX_DEPTH = 20
"""The maximum nesting depth of conditions, including the innermost. Elasticsearch allows 30 nested bool
queries (``indices.query.bool.max_nested_depth``), some of which we add ourselves. A gRPC message to Qdrant
allows 100 nested messages, of which a condition needs two or three."""


@dataclasses.dataclass(frozen=True)
class And:
    """All parts hold; true if there are no parts."""

    parts: tuple[Filter, ...]


@dataclasses.dataclass(frozen=True)
class Or:
    """At least one part holds; false if there are no parts."""

    parts: tuple[Filter, ...]


@dataclasses.dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: Filter


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The field equals one of the values."""

    field: str
    values: tuple[Scalar, ...]


@dataclasses.dataclass(frozen=True)
class Compare:
    """The field is a number (or a date) that compares to the bound as the operator says."""

    field: str
    operator: Comparison
    bound: int | float | datetime.datetime


@dataclasses.dataclass(frozen=True)
class Exists:
    """The field exists and is neither null nor an empty list."""

    field: str


Filter = And | Or | Not | OneOf | Compare | Exists


def parse_filter(raw: Mapping[str, Any] | Filter | None) -> Filter | None:
    """Parse a mapping to a filter; None and an empty mapping select all documents and return None.

    Raises:
        InvalidInput: An operator is unknown, a value has a wrong type, a field name is not valid, a date is
            outside the years 1 to 9999 in UTC, or conditions are nested more than ``MAX_DEPTH`` deep.
    """
    if raw is None:
        return None
    if isinstance(raw, And | Or | Not | OneOf | Compare | Exists):
        parsed: Filter = raw
    elif not isinstance(raw, Mapping):
        raise InvalidInput(
            f"filter is {type(raw).__name__}; it must be a mapping.\n  Pass a dict such as {{'lang': 'en'}}."
        )
    elif not raw:
        return None
    else:
        parsed = _parse_mapping(raw, "filter")
    _check_tree(parsed)
    return parsed


def matches(filter: Filter | None, metadata: Mapping[str, Any]) -> bool:
    """Return whether the metadata match a filter; this is the reference definition."""
    return filter is None or _holds(filter, fields_of(metadata))


def numbers_of(filter: Filter) -> Iterator[int | float]:
    """Yield every number that a filter compares with."""
    match filter:
        case And(parts) | Or(parts):
            for part in parts:
                yield from numbers_of(part)
        case Not(part):
            yield from numbers_of(part)
        case OneOf(values=values):
            yield from (value for value in values if isinstance(value, int | float))
        case Compare(bound=int() | float() as bound):
            yield bound


def _check_tree(filter: Filter) -> None:
    """Raise InvalidInput for a tree that some store would refuse, whether or not it was parsed here."""
    level: list[Filter] = [filter]
    depth = 0
    while level:  # a loop, because a deep tree would exceed the recursion limit
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        inner: list[Filter] = []
        for node in level:
            match node:
                case And(parts) | Or(parts):
                    inner += parts
                case Not(part):
                    inner.append(part)
                case _:
                    _check_leaf(node)
        level = inner


def _check_leaf(leaf: OneOf | Compare | Exists) -> None:
    _check_field(leaf.field, "filter")
    where = f"filter[{leaf.field!r}]"
    if isinstance(leaf, OneOf):
        for value in leaf.values:
            _scalar(value, where)
    elif isinstance(leaf, Compare):
        bound = _bound(leaf.bound, where)
        if isinstance(bound, datetime.datetime):
            _check_instant(bound, where)


def _check_instant(date: datetime.datetime, where: str) -> None:
    """Raise InvalidInput if the offset moves the date out of the years 1 to 9999, the range of the stores."""
    try:
        date.astimezone(datetime.UTC)
    except OverflowError:
        message = f"{where} is {date.isoformat()}; dates must be in the years 1 to 9999 in UTC."
        raise InvalidInput(f"{message}\n  Use a date in this range, or omit the condition.") from None


def _too_deep() -> InvalidInput:
    return InvalidInput(
        f"filter has conditions that are nested more than {MAX_DEPTH} deep.\n"
        "  Merge nested $and or $or into one list, and remove double $not."
    )


def _parse_mapping(raw: Mapping[str, Any], where: str, depth: int = 1) -> Filter:
    if depth > MAX_DEPTH:
        raise _too_deep()
    parts: list[Filter] = []
    for key, value in raw.items():
        if not isinstance(key, str):
            raise InvalidInput(
                f"{where} has the key {key!r}; field names must be strings.\n  Use {str(key)!r}."
            )
        inside = f"{where}[{key!r}]"
        if key in ("$and", "$or"):
            branches = tuple(
                _parse_mapping(_mapping(branch, f"{inside}[{i}]"), f"{inside}[{i}]", depth + 1)
                for i, branch in enumerate(_sequence(value, inside))
            )
            parts.append(And(branches) if key == "$and" else Or(branches))
        elif key == "$not":
            parts.append(Not(_parse_mapping(_mapping(value, inside), inside, depth + 1)))
        elif key.startswith("$"):
            raise InvalidInput(
                f"{where} has the unknown operator {key!r}.\n  Use $and, $or or $not between filters, and "
                f"{', '.join(_OPERATORS)} on a field. A field whose name begins with $ cannot be filtered on."
            )
        else:
            _check_field(key, where)
            parts.extend(_parse_field(key, value, inside))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _parse_field(field: str, value: object, where: str) -> list[Filter]:
    if not isinstance(value, Mapping):
        return [_equals(field, value, where)]
    if not value:
        raise InvalidInput(f"{where} is empty.\n  Give a value or one of {', '.join(_OPERATORS)}.")
    return [_parse_operator(field, operator, operand, where) for operator, operand in value.items()]


def _parse_operator(field: str, operator: object, operand: object, where: str) -> Filter:
    where = f"{where}[{operator!r}]"
    match operator:
        case "$eq":
            return _equals(field, operand, where)
        case "$ne":
            return Not(_equals(field, operand, where))
        case "$in" | "$nin":
            values = tuple(_scalar(item, where) for item in _sequence(operand, where))
            return OneOf(field, values) if operator == "$in" else Not(OneOf(field, values))
        case "$exists":
            if not isinstance(operand, bool):
                raise InvalidInput(f"{where} is {operand!r}; it must be a bool.\n  Use True or False.")
            return Exists(field) if operand else Not(Exists(field))
        case "$gt" | "$gte" | "$lt" | "$lte":
            return Compare(field, operator, _bound(operand, where))
    raise InvalidInput(
        f"{where} has the unknown operator {operator!r}.\n  Use one of {', '.join(_OPERATORS)}."
    )


def _equals(field: str, value: object, where: str) -> Filter:
    return Not(Exists(field)) if value is None else OneOf(field, (_scalar(value, where),))


def _scalar(value: object, where: str) -> Scalar:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        check_unicode(value, where)
        return value
    if isinstance(value, int | float):
        return _number(value, where)
    raise InvalidInput(
        f"{where} is {type(value).__name__}, which cannot be compared with a field.\n"
        "  Use a string, a number, True or False."
    )


def _bound(value: object, where: str) -> int | float | datetime.datetime:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value, where)
    if isinstance(value, datetime.datetime):
        return value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC)
    date = parse_date(value)
    if date is None:
        raise InvalidInput(
            f"{where} is {value!r}, which is neither a number nor a date.\n"
            "  Use a number or an ISO 8601 date such as '2024-05-31'."
        )
    return date


def _number(value: float, where: str) -> int | float:
    if isinstance(value, int):
        if not MIN_WHOLE <= value <= MAX_WHOLE:
            raise InvalidInput(
                f"{where} is {value}; integers in filters, as in metadata, must fit into 64 bits "
                "(-2**63 to 2**63 - 1).\n"
                "  Store larger ones as strings and compare with strings, or use a float such as 1e30."
            )
    elif not math.isfinite(value):
        raise InvalidInput(f"{where} is {value}; numbers in filters must be finite.\n  Use a finite bound.")
    return value


def _check_field(field: str, where: str) -> None:
    check_unicode(field, where)
    if not all(field.split(".")) or _FORBIDDEN.search(field):
        raise InvalidInput(
            f"{where} has the field {field!r}; a field consists of non-empty names joined by '.', without "
            "quotes, backslashes, square brackets and control characters.\n"
            "  Such a key can be stored, but not filtered on. Rename it when you add the documents."
        )


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise InvalidInput(
            f"{where} is {value!r}; it must be a filter that is not empty.\n"
            "  Use a mapping such as {'lang': 'en'}."
        )
    return value


def _sequence(value: object, where: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple | set | frozenset) or not value:
        raise InvalidInput(
            f"{where} is {value!r}; it must be a list that is not empty.\n"
            "  Use a list with at least one element."
        )
    return list(value)


def _holds(filter: Filter, fields: Mapping[str, Sequence[Scalar]]) -> bool:
    match filter:
        case And(parts):
            return all(_holds(part, fields) for part in parts)
        case Or(parts):
            return any(_holds(part, fields) for part in parts)
        case Not(part):
            return not _holds(part, fields)
        case Exists(field):
            return field in fields
        case OneOf(field, values):
            return any(_equal(item, value) for item in fields.get(field, ()) for value in values)
        case Compare(field, operator, bound):
            holds = _COMPARE[operator]
            if isinstance(bound, datetime.datetime):
                dates = (parse_date(item) for item in fields.get(field, ()))
                return any(date is not None and holds(date, bound) for date in dates)
            return any(_is_number(item) and holds(item, bound) for item in fields.get(field, ()))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(item: object, value: Scalar) -> bool:
    if isinstance(item, bool) or isinstance(value, bool):
        return item is value
    return item == value and (isinstance(item, str) or _is_number(item))


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda a, b: bool(a > b),
    "$gte": lambda a, b: bool(a >= b),
    "$lt": lambda a, b: bool(a < b),
    "$lte": lambda a, b: bool(a <= b),
}
_OPERATORS = ("$eq", "$ne", "$in", "$nin", "$exists", *_COMPARE)
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\"'`\\\[\]]")
