"""Seeded random metadata and filters that fail if a store reads a field, a number or a date differently.

``filters.matches`` defines the correct result.
"""

from __future__ import annotations

import random
from typing import Any

NAMES = ("a", "b", "c", "x y", "日本", "0", "a-b", "*")

DATES = (
    "2024-05-31", "2024-05-31T12:00:00Z", "2024-05-31T14:00:00+02:00", "2024-05-31T12:00:00.1234567Z",
    "2024-05-31T12:00:00.123456Z", "2024-05-31T12:00:00.123456999Z", "2024-05-31T14:00:00+0200", "2024-05-31T14:00+02",
    "2024-05-31 12:00:00,5", "20240531T120000Z", "2024-05-31t12:00:00z", "2024-05-31T14:00+02:00[Europe/Berlin]",
    "2024-05-31T24:00", "2016-12-31T23:59:60Z", "1880-01-01T00:00:00+00:53:28", "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59.999999-12:00",
)  # fmt: skip
"""Dates as other programs write them; the last two are outside the years 1 to 9999 in UTC."""

WHOLE = tuple(
    sign * size + step
    for sign in (1, -1)
    for size in (2**53, 2**62, 1768907725507217522, 2**63 - 2)
    for step in (-1, 0, 1)
)
"""Integers around the limits of doubles and of 64 bits."""

SCALARS: tuple[str | int | float | bool, ...] = (
    "", "en", "EN", "true", "1", "2024-5-31", "20240531", "2024-05-31T12:00:60Z", "soon", *DATES, *WHOLE,
    0, 1, 1.0, -1, 2.5, 0.1, 1e-9, 2.0**53, -(2.0**53), 2.0**62, 2.0**63, -(2.0**63), 1e18, 1e30, -1.7e308, True, False,
)  # fmt: skip

_OPERATORS = ("$eq", "$ne", "$in", "$nin", "$exists", "$gt", "$gte", "$lt", "$lte")
_BOUNDS = tuple(
    value
    for value in SCALARS
    if value in DATES[:-2] or (isinstance(value, int | float) and not isinstance(value, bool))
)


def random_metadata(rng: random.Random) -> dict[str, Any]:
    """Return metadata of scalars, nested lists and objects, and keys with dots, with few names."""
    return _object(rng, 0)


def random_filter(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """Return a filter in the form that users write, on fields that ``random_metadata`` often has."""
    kind = rng.random()
    if kind < 0.3 and depth < 3:
        parts = [random_filter(rng, depth + 1) for _ in range(rng.randint(1, 3))]
        return {rng.choice(("$and", "$or")): parts}
    if kind < 0.4 and depth < 3:
        return {"$not": random_filter(rng, depth + 1)}
    operator = rng.choice(_OPERATORS)
    operand: Any = rng.choice(SCALARS)
    if operator in ("$in", "$nin"):
        operand = [rng.choice(SCALARS) for _ in range(rng.randint(1, 3))]
    elif operator == "$exists":
        operand = rng.random() < 0.5
    elif operator in ("$gt", "$gte", "$lt", "$lte"):
        operand = rng.choice(_BOUNDS)
    field = ".".join(rng.choice(NAMES[:3]) for _ in range(rng.randint(1, 3)))
    return {rng.choice((field, field, field, rng.choice(NAMES))): {operator: operand}}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    made = {}
    for name in NAMES[:3] if depth else NAMES:
        if rng.random() < (0.5 if depth else 0.7):
            key = f"{name}.{rng.choice(NAMES[:3])}" if rng.random() < 0.25 else name
            made[key] = _value(rng, depth + 1)
    return made


def _value(rng: random.Random, depth: int) -> Any:
    kind = rng.random()
    if depth < 4 and kind < 0.25:
        return _object(rng, depth)
    if depth < 4 and kind < 0.5:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return rng.choice((*SCALARS, None))
