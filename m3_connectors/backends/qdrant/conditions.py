"""Filters in Qdrant's terms, for both the server and the engine in this process.

The two libraries have different classes for the same conditions; a ``Dialect`` creates them.
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
    """The required conditions, as filters of one library."""

    def all_of(self, parts: Sequence[F]) -> F:
        """Return a filter that requires every part."""

    def any_of(self, parts: Sequence[F]) -> F:
        """Return a filter that requires one of the parts; there is at least one part."""

    def none_of(self, part: F) -> F:
        """Return a filter that excludes the part."""

    def is_empty(self, key: str) -> F:
        """Return a filter for a key that is missing, null or an empty list."""

    def equals(self, key: str, text: str) -> F:
        """Return a filter for exactly this text, or a list with it."""

    def is_among(self, key: str, texts: Sequence[str]) -> F:
        """Return a filter for one of these texts, or a list with one of them."""

    def in_range(self, key: str, bounds: dict[str, float]) -> F:
        """Return a filter for a number (or a list with one) within ``gt``, ``gte``, ``lt``, ``lte``."""

    def in_time(self, key: str, bounds: dict[str, datetime.datetime]) -> F:
        """Return the same filter for instants."""


def translate(filter: Filter, dialect: Dialect[F]) -> F:
    """Return the same condition in Qdrant's terms; ``filters.matches`` defines its meaning."""
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
        # In Qdrant an empty ``should`` is true. The negation of an empty conjunction is always false, without
        # an index.
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
    # A match on 1 does not find 1.0, and a match does not accept a fraction: a range of one point finds both.
    bounds = {"gte": _lower(value), "lte": _upper(value)}
    return _somewhere(METADATA, field, lambda path: dialect.in_range(path, bounds), dialect)


def _lower(value: float) -> float:
    # The engine reads decimals of 16 and 17 digits with an error of up to two units in the last place
    # (measured). Equality allows for that error, so fractions that differ only in their last two bits are
    # equal.
    return value if _is_short(value) else math.nextafter(math.nextafter(value, -math.inf), -math.inf)


def _upper(value: float) -> float:
    return value if _is_short(value) else math.nextafter(math.nextafter(value, math.inf), math.inf)


def _is_short(value: float) -> bool:
    return isinstance(value, int) or (value.is_integer() and -(2**63) <= value < 2**63)
