"""What a filter means in Qdrant's terms, once for the server and the engine in this process.

The two have different classes for the same conditions; a ``Dialect`` makes them.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from m3_connectors.backends.qdrant.payload import DATES, FLAGS, ID, METADATA, flag_form
from m3_connectors.filters import And, Compare, Exists, Filter, Not, OneOf, Or, Scalar, field_path

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
            return dialect.none_of(dialect.is_empty(key(METADATA, field)))
        case OneOf(field, values):
            return _any_of([_equals(field, value, dialect) for value in values], dialect)
        case Compare(field, operator, bound):
            name = operator.removeprefix("$")
            if isinstance(bound, datetime.datetime):
                return dialect.in_time(key(DATES, field), {name: bound})
            limit = _lower(bound) if operator in ("$gte", "$lt") else _upper(bound)
            return dialect.in_range(key(METADATA, field), {name: limit})


def key(tree: str, field: str) -> str:
    """The payload path of a metadata field in one of the trees.

    Quoted, so that spaces, dashes and any script are taken as they are; ``filters`` forbids quotes in fields.
    """
    return ".".join([tree, *(f'"{part}"' for part in field_path(field))])


def _any_of(parts: Sequence[F], dialect: Dialect[F]) -> F:
    # An empty ``should`` is true in Qdrant; that our own id is missing is never so.
    return dialect.any_of(parts) if parts else dialect.is_empty(ID)


def _equals(field: str, value: Scalar, dialect: Dialect[F]) -> F:
    if isinstance(value, bool):
        return dialect.equals(key(FLAGS, field), flag_form(value))
    if isinstance(value, str):
        return dialect.equals(key(METADATA, field), value)
    # A match on 1 does not find 1.0, and no match takes a fraction: a range of one point finds both.
    return dialect.in_range(key(METADATA, field), {"gte": _lower(value), "lte": _upper(value)})


def _lower(value: float) -> float:
    # The engine reads back decimals of 16 and 17 digits up to two units in the last place off (measured): an equal
    # fraction is found within that much, so fractions that differ in their last two bits only are equal to it.
    return value if _is_whole(value) else math.nextafter(math.nextafter(value, -math.inf), -math.inf)


def _upper(value: float) -> float:
    return value if _is_whole(value) else math.nextafter(math.nextafter(value, math.inf), math.inf)


def _is_whole(value: float) -> bool:
    return isinstance(value, int) or value.is_integer()
