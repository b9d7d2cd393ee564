"""What a filter means in Qdrant's terms, once for the server and the engine in this process.

The two have different classes for the same conditions; a ``Dialect`` makes them.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from m3_connectors.backends.large_numbers import beyond, is_large, terms_beside, terms_of
from m3_connectors.backends.qdrant.payload import DATES, FLAGS, LARGE, METADATA, flag_form, paths_of
from m3_connectors.fields import Scalar
from m3_connectors.filters import And, Compare, Exists, Filter, Not, OneOf, Or

F = TypeVar("F")


class Dialect(Protocol[F]):
    """The conditions that are needed, as filters of one library."""

    def all_of(self, parts: Sequence[F]) -> F:
        """Every part holds."""

    def any_of(self, parts: Sequence[F]) -> F:
        """Some part holds; at least one part."""

    def none_of(self, part: F) -> F:
        """The part does not hold."""

    def is_empty(self, key: str) -> F:
        """Missing, null or an empty list."""

    def equals(self, key: str, text: str) -> F:
        """This very text, or a list with it."""

    def is_among(self, key: str, texts: Sequence[str]) -> F:
        """One of these texts, or a list with one."""

    def in_range(self, key: str, bounds: dict[str, float]) -> F:
        """A number (or a list with one) within ``gt``, ``gte``, ``lt``, ``lte``."""

    def in_time(self, key: str, bounds: dict[str, datetime.datetime]) -> F:
        """The same of instants."""


def translate(filter: Filter, dialect: Dialect[F]) -> F:
    """The same condition in Qdrant's terms; ``filters.matches`` is what it must mean."""
    match filter:
        case And(parts):
            return dialect.all_of([translate(part, dialect) for part in parts])
        case Or(parts):
            return _any_of([translate(part, dialect) for part in parts], dialect)
        case Not(part):
            return dialect.none_of(translate(part, dialect))
        case Exists(field):
            return dialect.none_of(
                dialect.all_of([dialect.is_empty(path) for path in paths_of(METADATA, field)])
            )
        case OneOf(field, values):
            return _any_of([_equals(field, value, dialect) for value in values], dialect)
        case Compare(field, operator, bound) if isinstance(bound, datetime.datetime):
            bounds = {operator.removeprefix("$"): bound}
            return _somewhere(DATES, field, lambda path: dialect.in_time(path, bounds), dialect)
        case Compare(field, _, bound) if isinstance(bound, int | float) and is_large(bound):
            terms = terms_beside(filter)
            here = _somewhere(LARGE, field, lambda path: dialect.is_among(path, terms), dialect)
            return dialect.any_of([here, _beyond(beyond(filter), dialect)])
        case Compare():
            return _beyond(filter, dialect)


def _beyond(compare: Compare, dialect: Dialect[F]) -> F:
    assert isinstance(compare.bound, int | float)
    limit = _lower(compare.bound) if compare.operator in ("$gte", "$lt") else _upper(compare.bound)
    bounds = {compare.operator.removeprefix("$"): limit}
    return _somewhere(METADATA, compare.field, lambda path: dialect.in_range(path, bounds), dialect)


def _somewhere(tree: str, field: str, condition: Callable[[str], F], dialect: Dialect[F]) -> F:
    return _any_of([condition(path) for path in paths_of(tree, field)], dialect)


def _any_of(parts: Sequence[F], dialect: Dialect[F]) -> F:
    if not parts:
        # An empty ``should`` is true in Qdrant; that nothing at all holds is never so, and it needs no index.
        return dialect.none_of(dialect.all_of([]))
    return parts[0] if len(parts) == 1 else dialect.any_of(parts)


def _equals(field: str, value: Scalar, dialect: Dialect[F]) -> F:
    if isinstance(value, bool):
        return _somewhere(FLAGS, field, lambda path: dialect.equals(path, flag_form(value)), dialect)
    if isinstance(value, str):
        return _somewhere(METADATA, field, lambda path: dialect.equals(path, value), dialect)
    if is_large(value):
        *_, exact = terms_of(value)
        return _somewhere(LARGE, field, lambda path: dialect.equals(path, exact), dialect)
    # A match on 1 does not find 1.0, and no match takes a fraction: a range of one point finds both.
    bounds = {"gte": _lower(value), "lte": _upper(value)}
    return _somewhere(METADATA, field, lambda path: dialect.in_range(path, bounds), dialect)


def _lower(value: float) -> float:
    # The engine reads back decimals of 16 and 17 digits up to two units in the last place off (measured): an equal
    # fraction is found within that much, so fractions that differ in their last two bits only are equal to it.
    return value if _is_short(value) else math.nextafter(math.nextafter(value, -math.inf), -math.inf)


def _upper(value: float) -> float:
    return value if _is_short(value) else math.nextafter(math.nextafter(value, math.inf), math.inf)


def _is_short(value: float) -> bool:
    return isinstance(value, int) or (value.is_integer() and -(2**63) <= value < 2**63)
