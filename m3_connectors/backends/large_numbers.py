"""Numbers beyond 2**53, exactly, in stores that compare numbers as doubles.

A store keeps terms for each number of that size: every beginning of its hexadecimal digits. A comparison then asks
for the beginnings that lead to one side of its bound: above ``b`` is what agrees with ``b`` up to some digit and has a
larger one there. So any store that finds texts among a list compares whole numbers of 64 bits to the last digit.
"""

from __future__ import annotations

import math

from m3_connectors.filters import Compare

EXACT = 2**53
"""Whole numbers smaller than this in size are doubles, and so are their neighbours."""

_DIGITS = "0123456789abcdef"
_WIDTH = 17
_ZERO = 16 ** (_WIDTH - 1)


def is_large(number: float) -> bool:
    """Whether terms are kept of a number."""
    return abs(number) >= EXACT


def terms_of(number: float) -> list[str]:
    """The terms of a large number; the last is found by equality."""
    # Doubles from 2**63 on are beyond every bound that is asked for by terms.
    whole = max(-(2**63) - 1, min(2**63, int(number)))
    digits = f"{whole + _ZERO:0{_WIDTH}x}"
    return [digits[:length] for length in range(1, _WIDTH + 1)]


def double(number: float) -> float:
    """The double that compares as the number does with every bound that is not asked for by terms."""
    nearest = float(number)
    if isinstance(number, int) and abs(int(nearest)) > abs(number):
        # Towards zero: 2**63 - 1 must not become 2**63, which a filter can ask for.
        return math.nextafter(nearest, 0.0)
    return nearest


def split(compare: Compare) -> tuple[list[str], Compare | None]:
    """A comparison with a number as the terms that answer it, one of which is enough, and the rest of it.

    Returns:
        Terms (none for a bound that doubles can answer), and the comparison that finds the rest by their doubles.
    """
    field, operator, bound = compare.field, compare.operator, compare.bound
    assert isinstance(bound, int | float)
    if not abs(bound) >= EXACT or not -(2**63) <= bound < 2**63:
        return [], compare
    above = operator in ("$gt", "$gte")
    *_, digits = terms_of(bound)
    terms = [
        digits[:i] + other
        for i, digit in enumerate(digits)
        for other in _DIGITS
        if (other > digit if above else other < digit)
    ]
    if operator in ("$gte", "$lte"):
        terms.append(digits)
    if above == (bound > 0):
        return terms, None
    # What is smaller in size than 2**53 is a whole number from 2**52 on.
    return terms, Compare(field, "$gte", 1 - EXACT) if above else Compare(field, "$lte", EXACT - 1)
