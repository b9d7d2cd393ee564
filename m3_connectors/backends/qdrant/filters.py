"""A filter tree as a Qdrant filter on the metadata in a point's payload."""

from __future__ import annotations

import datetime
import math

import qdrant_edge as engine

from m3_connectors.backends.qdrant.points import DATES, FLAGS, METADATA, date_form, flag_form
from m3_connectors.filters import And, Compare, Exists, Filter, Not, OneOf, Or, Scalar, field_path


def edge_filter(filter: Filter) -> engine.Filter:
    """The same condition in the engine's terms; ``filters.matches`` is what it must mean."""
    match filter:
        case And(parts):
            return engine.Filter(must=[edge_filter(part) for part in parts])
        case Or(parts):
            # An empty ``should`` is true in Qdrant; no id at all is false.
            return engine.Filter(should=[edge_filter(part) for part in parts]) if parts else _nothing()
        case Not(part):
            return engine.Filter(must_not=[edge_filter(part)])
        case Exists(field):
            return engine.Filter(must_not=[engine.IsEmptyCondition(_key(METADATA, field))])
        case OneOf(field, values):
            return engine.Filter(should=[_equals(field, value) for value in values]) if values else _nothing()
        case Compare(field, operator, bound):
            name = operator.removeprefix("$")
            if isinstance(bound, datetime.datetime):
                limits = engine.RangeDateTime(**{name: date_form(bound)})
                return _holds(_condition(DATES, field, range=limits))
            limit = _lower(bound) if operator in ("$gte", "$lt") else _upper(bound)
            return _holds(_condition(METADATA, field, range=engine.RangeFloat(**{name: limit})))


def _equals(field: str, value: Scalar) -> engine.FieldCondition:
    if isinstance(value, bool):
        return _condition(FLAGS, field, match=engine.MatchValue(flag_form(value)))
    if isinstance(value, str):
        return _condition(METADATA, field, match=engine.MatchValue(value))
    # A match on 1 does not find 1.0, and no match takes a float: a range of one point finds both.
    return _condition(METADATA, field, range=engine.RangeFloat(gte=_lower(value), lte=_upper(value)))


def _condition(
    tree: str,
    field: str,
    *,
    match: engine.MatchValue | None = None,
    range: engine.RangeFloat | engine.RangeDateTime | None = None,
) -> engine.FieldCondition:
    return engine.FieldCondition(_key(tree, field), match=match, range=range)


def _lower(value: float) -> float:
    # The engine reads back decimals of 16 and 17 digits up to two units in the last place off (measured): an equal
    # fraction is found within that much, so fractions that differ in their last two bits only are equal to it.
    return value if _is_whole(value) else math.nextafter(math.nextafter(value, -math.inf), -math.inf)


def _upper(value: float) -> float:
    return value if _is_whole(value) else math.nextafter(math.nextafter(value, math.inf), math.inf)


def _is_whole(value: float) -> bool:
    return isinstance(value, int) or value.is_integer()


def _holds(condition: engine.FieldCondition) -> engine.Filter:
    return engine.Filter(must=[condition])


def _nothing() -> engine.Filter:
    return engine.Filter(must=[engine.HasIdCondition(set())])


def _key(tree: str, field: str) -> str:
    # Quoted, so that spaces, dashes and any script are taken as they are; ``filters`` forbids quotes in fields.
    return ".".join([tree, *(f'"{key}"' for key in field_path(field))])
