"""Which metadata values a field name in a filter refers to: the one rule that all stores follow.

``a.b`` refers to every value that can be reached through objects and lists; a key may itself contain dots.
``{"a": {"b": 1}}``, ``{"a.b": 1}``, ``{"a": [{"b": 1}, {"b": 2}]}`` and ``{"a": [[{"b": 1}]]}`` all have the
field. An empty key, or an empty part between dots, is not a field name, and values below it are not fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Scalar = str | int | float | bool

MAX_PARTS = 20
"""A key with at least this many dots is a single name: its prefixes are not fields."""


def fields_of(metadata: Mapping[str, Any]) -> dict[str, list[Scalar]]:
    """Return every field that exists (neither null nor an empty list), with the scalars that it refers to.

    Args:
        metadata: A JSON object.

    Returns:
        A dict from field name to scalars in their order. A field that holds an object or only nulls has none.
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
