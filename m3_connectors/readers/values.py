"""Convert the values of databases to values that metadata can hold."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Mapping
from typing import Any

_EXACT_DIGITS = 15
"""The decimal digits that a float64 represents exactly."""


class NotStorable(ValueError):
    """JSON has no values of a type; the message is its name."""


def storable_value(value: Any) -> Any:
    """Return a value as metadata holds it.

    Dates and times become text in ISO 8601, which filters understand. Decimals become numbers if they have up to 15
    digits, else text. UUIDs become text. Lists and objects are converted value by value.

    Raises:
        NotStorable: JSON has no such values, as of bytes and durations.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case datetime.date() | datetime.time():  # a datetime is a date
            return value.isoformat()
        case decimal.Decimal():
            return _number(value)
        case uuid.UUID():
            return str(value)
        case list() | tuple() | set() | frozenset():
            return [storable_value(item) for item in value]
        case Mapping():
            return {str(key): storable_value(item) for key, item in value.items()}
    raise NotStorable(type(value).__name__)


def _number(value: decimal.Decimal) -> int | float | str:
    if not value.is_finite():
        return str(value)
    if value == value.to_integral_value():
        return int(value)
    return float(value) if len(value.as_tuple().digits) <= _EXACT_DIGITS else str(value)
