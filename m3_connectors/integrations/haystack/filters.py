"""Haystack's filters as filters of this package, one to one; what has no meaning here is refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from haystack.dataclasses import Document
from haystack.errors import FilterError

from m3_connectors.errors import InvalidInput
from m3_connectors.filters import parse_filter

_ORDER = {">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
_EQUAL = ("==", "!=")
_MEMBER = ("in", "not in")
_FIELDS = frozenset(field.name for field in dataclasses.fields(Document)) - {"meta"}


def to_filter(filters: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the filter of this package that selects the same documents; None for no filter.

    ``==`` and ``in`` compare strings character by character, so two spellings of one date are not equal; ``>``, ``>=``,
    ``<`` and ``<=`` compare dates as instants.

    Raises:
        FilterError: A key is missing, an operator is unknown, or a field or value cannot be compared.
    """
    if not filters:
        return None
    try:
        translated = _translate(filters)
        parse_filter(translated)
    except InvalidInput as error:
        raise FilterError(str(error)) from error
    return translated


def _translate(node: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        raise InvalidInput(
            f"a filter is {type(node).__name__}; it must be a mapping.\n  Use Haystack's filter syntax."
        )
    if "field" in node:
        return _comparison(_key(node, "field"), _key(node, "operator"), _key(node, "value"))
    operator, conditions = _key(node, "operator"), _key(node, "conditions")
    if operator not in ("AND", "OR", "NOT"):
        raise InvalidInput(f"unknown logical operator {operator!r}.\n  Use AND, OR or NOT.")
    if not isinstance(conditions, list) or not conditions:
        raise InvalidInput(
            f"conditions is {conditions!r}; it must be a list that is not empty.\n  Give at least one condition."
        )
    parts = [_translate(condition) for condition in conditions]
    # NOT holds unless all conditions do, as in Haystack.
    return (
        {"$or": parts}
        if operator == "OR"
        else {"$and": parts}
        if operator == "AND"
        else _not({"$and": parts})
    )


def _comparison(field: Any, operator: Any, value: Any) -> dict[str, Any]:
    name = _metadata_field(field)
    if operator in _EQUAL:
        # Here, == None means that the field does not exist.
        equal = {name: value}
        return equal if operator == "==" else _not(equal)
    if operator in _MEMBER:
        if not isinstance(value, list):
            raise InvalidInput(
                f"{field!r} {operator} is given {type(value).__name__}; it must be a list.\n  Use a list of values."
            )
        present = [item for item in value if item is not None]
        branches: list[dict[str, Any]] = [{name: {"$in": present}}] if present else []
        if len(present) < len(value):
            branches.append({name: {"$exists": False}})
        member = {"$or": branches} if branches else _never(name)
        return member if operator == "in" else _not(member)
    if operator in _ORDER:
        # Nothing is greater or less than None, in Haystack too.
        return _never(name) if value is None else {name: {_ORDER[operator]: value}}
    raise InvalidInput(
        f"unknown comparison operator {operator!r} on {field!r}.\n"
        f"  Use one of {', '.join([*_EQUAL, *_ORDER, *_MEMBER])}."
    )


def _metadata_field(field: Any) -> str:
    if not isinstance(field, str):
        raise InvalidInput(f"field is {type(field).__name__}; it must be a string.\n  Use 'meta.NAME'.")
    if field in _FIELDS:
        raise InvalidInput(
            f"field {field!r} is not metadata, and only metadata can be filtered on.\n"
            "  Use 'meta.NAME'; to get documents by id, store the id in their meta too."
        )
    return field.removeprefix("meta.")


def _key(node: Mapping[str, Any], key: str) -> Any:
    if key not in node:
        raise InvalidInput(
            f"{key!r} is missing in the filter {dict(node)!r}.\n"
            "  A comparison has field, operator and value; a group has operator and conditions."
        )
    return node[key]


def _not(part: dict[str, Any]) -> dict[str, Any]:
    return {"$not": part}


def _never(name: str) -> dict[str, Any]:
    """Return a filter that no document matches."""
    return {"$and": [{name: {"$exists": True}}, {name: {"$exists": False}}]}
