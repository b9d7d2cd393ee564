"""Convert the columns of Arrow to values that metadata can hold."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_EXACT_DIGITS = 15
"""The decimal digits that a float64 represents exactly."""


def storable(type: Any) -> Any:
    """Return the Arrow type as which metadata holds a column, or None if JSON has no values for it.

    Whole numbers, floats, booleans and strings keep their type. Dates and times become text in ISO 8601, which
    filters understand. Decimals become numbers if they have up to 15 digits, else text. Lists, structs and maps
    with string keys become lists and objects. Bytes, durations and extension types have no values in JSON.
    """
    target = _target(type)
    if target is None:
        return None
    try:
        pa.array([], type).cast(target)
    except pa.ArrowNotImplementedError:
        return None
    return target


def _target(type: Any) -> Any:
    types = pa.types
    if types.is_float16(type):
        return pa.float32()
    if types.is_temporal(type) and not types.is_duration(type) and not types.is_interval(type):
        return pa.string()
    if types.is_decimal(type):
        return pa.float64() if type.precision <= _EXACT_DIGITS else pa.string()
    if types.is_dictionary(type):
        return _target(type.value_type)
    if types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type):
        inner = _target(type.value_type)
        return None if inner is None else pa.large_list(inner)
    if types.is_map(type):
        inner = _target(type.item_type)
        return pa.map_(pa.string(), inner) if inner is not None and _is_text(type.key_type) else None
    if types.is_struct(type):
        inners = [_target(field.type) for field in type.fields]
        names = [field.name for field in type.fields]
        if None in inners or len(set(names)) < len(names):
            return None
        return pa.struct(list(zip(names, inners, strict=True)))
    is_plain = types.is_integer(type) or types.is_floating(type) or types.is_boolean(type) or _is_text(type)
    return type if is_plain or types.is_null(type) else None


def _is_text(type: Any) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))
