"""What a field name of a filter reaches in a document's metadata: the one rule of the oracle and of every store.

``a.b`` reaches every value that is found by going through objects and lists, where a key may itself hold dots:
``{"a": {"b": 1}}``, ``{"a.b": 1}``, ``{"a": [{"b": 1}, {"b": 2}]}`` and ``{"a": [[{"b": 1}]]}`` all have the field.
An empty key, also between dots, is no name, and nothing below it is a field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Scalar = str | int | float | bool

MAX_PARTS = 20
"""Keys with more dots than this are one name: their beginnings are no fields of their own."""


def fields_of(metadata: Mapping[str, Any]) -> dict[str, list[Scalar]]:
    """Every field that is there (neither null nor an empty list), with the scalars that it reaches.

    Args:
        metadata: A JSON object.

    Returns:
        Field name to scalars in their order; an object's field, and a list of nulls, has none.
    """
    fields: dict[str, list[Scalar]] = {}
    _read_object(metadata, "", fields)
    return fields


def _read_object(value: Mapping[str, Any], prefix: str, fields: dict[str, list[Scalar]]) -> None:
    for key, item in value.items():
        if not all(key.split(".")):
            continue
        if 0 < key.count(".") < MAX_PARTS:
            *outer, _ = key.split(".")
            for i in range(len(outer)):
                fields.setdefault(prefix + ".".join(outer[: i + 1]), [])
        _read_value(item, prefix + key, fields)


def _read_value(value: Any, field: str, fields: dict[str, list[Scalar]]) -> None:
    if value is None or (isinstance(value, list | tuple) and not value):
        return
    scalars = fields.setdefault(field, [])
    if isinstance(value, Mapping):
        _read_object(value, field + ".", fields)
    elif isinstance(value, list | tuple):
        for item in value:
            _read_value(item, field, fields)
    else:
        scalars.append(value)
