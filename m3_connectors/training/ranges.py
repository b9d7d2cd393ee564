"""The ranges of settings; every dataclass of settings checks its own fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m3_connectors.errors import InvalidInput


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, including the ends unless they are ``open``; never NaN."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"{'>' if self.open_low else '>='} {self.low:g}" if self.low > -math.inf else ""
        high = f"{'<' if self.open_high else '<='} {self.high:g}" if self.high < math.inf else ""
        finite = "finite " if self.open_high and not high else ""
        return f"a {finite}number {' and '.join(filter(None, (low, high)))}".rstrip()


def at_least(low: float) -> Range:
    """Return the range of finite numbers from ``low``."""
    return Range(low, open_high=True)


POSITIVE = Range(0, open_low=True, open_high=True)
FINITE = Range(open_low=True, open_high=True)
SEED = Range(0, 2**63 - 1)
SHARE = Range(0, 1)
SHARE_BELOW_1 = Range(0, 1, open_high=True)


def require(settings: object, **ranges: Range) -> None:
    """Check the fields of a dataclass; in a tuple or a table, every number is checked.

    Raises:
        InvalidInput: A field is out of range; the message names the first one.
    """
    for name, allowed in ranges.items():
        value = getattr(settings, name)
        for number in _numbers(value):
            if number not in allowed:
                raise InvalidInput(f"{name} is {value!r}.\n  It must be {allowed}.")


def require_one_above_0(settings: object, *names: str) -> None:
    """Check that a tuple or table of weights, each at least 0, has one that is above 0.

    Raises:
        InvalidInput: All weights are 0, or there are none.
    """
    for name in names:
        value = getattr(settings, name)
        if not any(number > 0 for number in _numbers(value)):
            raise InvalidInput(f"{name} is {value!r}.\n  At least one of them must be > 0.")


def _numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, Mapping):
        return tuple(value.values())
    return value if isinstance(value, tuple) else (value,)
