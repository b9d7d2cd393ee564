"""Exact comparison of numbers beyond 2**53 in stores that compare numbers as doubles.

For such a number a store keeps the double of its block of 4,096 numbers, and terms for the position within
the block: the prefixes of its hexadecimal digits that extend into the last three digits. A comparison then
matches larger (or smaller) blocks, or the terms within the bound's own block that are on the right side:
those that agree with the bound up to some digit and have a larger (or smaller) digit there. In this way any
store that can find a string in a list compares 64-bit integers exactly.
"""

from __future__ import annotations

from m3_connectors.filters import Compare, Comparison

EXACT = 2**53
"""Integers smaller than this in size are exact as doubles, and so are their neighbours."""

_BLOCK_DIGITS = 3
_DIGITS = "0123456789abcdef"
_WIDTH = 17
_ZERO = 16 ** (_WIDTH - 1)


def is_large(number: float) -> bool:
    """Whether a number has terms: a 64-bit integer beyond 2**53 (doubles of that size are integers)."""
    return abs(number) >= EXACT and -(2**63) <= number < 2**63


def terms_of(number: float) -> list[str]:
    """Return the terms of a large number; the last one identifies the number."""
    digits = f"{int(number) + _ZERO:0{_WIDTH}x}"
    return [digits[:length] for length in range(_WIDTH - _BLOCK_DIGITS + 1, _WIDTH + 1)]


def double(number: float) -> float:
    """Return the double that a number is compared by: its own, or that of a large number's block."""
    block = 16**_BLOCK_DIGITS
    return float(int(number) // block * block) if is_large(number) else float(number)


def terms_beside(compare: Compare) -> list[str]:
    """Return the terms for a comparison with a large number; one of them, or ``beyond``, must match."""
    assert isinstance(compare.bound, int | float)
    above = compare.operator in ("$gt", "$gte")
    *_, digits = terms_of(compare.bound)
    terms = [
        digits[:i] + other
        for i in range(_WIDTH - _BLOCK_DIGITS, _WIDTH)
        for other in _DIGITS
        if (other > digits[i] if above else other < digits[i])
    ]
    return [*terms, digits] if compare.operator in ("$gte", "$lte") else terms


def beyond(compare: Compare) -> Compare:
    """Return the rest of a comparison with a large number: doubles beyond that of the bound."""
    assert isinstance(compare.bound, int | float)
    side: Comparison = "$gt" if compare.operator in ("$gt", "$gte") else "$lt"
    return Compare(compare.field, side, double(compare.bound))
