"""Numbers beyond 2**53, exactly, in stores that compare numbers as doubles.

A store keeps the double of such a number's block of 4,096, and terms for the number within its block: the beginnings of
its hexadecimal digits that reach into the last three. A comparison then asks for larger (or smaller) blocks, or for the
terms of the bound's own block that lie on the right side: those that agree with the bound up to some digit and have a
larger one there. So any store that finds a text in a list compares whole numbers of 64 bits to the last digit.
"""

from __future__ import annotations

from m3_connectors.filters import Compare, Comparison

EXACT = 2**53
"""Whole numbers smaller than this in size are doubles, and so are their neighbours."""

_BLOCK_DIGITS = 3
_DIGITS = "0123456789abcdef"
_WIDTH = 17
_ZERO = 16 ** (_WIDTH - 1)


def is_large(number: float) -> bool:
    """Whether terms are kept of a number: a whole one of 64 bits (a double of that size is one too) beyond 2**53."""
    return abs(number) >= EXACT and -(2**63) <= number < 2**63


def terms_of(number: float) -> list[str]:
    """The terms of a large number; the last is found by equality."""
    digits = f"{int(number) + _ZERO:0{_WIDTH}x}"
    return [digits[:length] for length in range(_WIDTH - _BLOCK_DIGITS + 1, _WIDTH + 1)]


def double(number: float) -> float:
    """The double by which a number is compared: its own, or that of a large one's block."""
    block = 16**_BLOCK_DIGITS
    return float(int(number) // block * block) if is_large(number) else float(number)


def terms_beside(compare: Compare) -> list[str]:
    """The terms, of which one is enough, that a comparison with a large number asks for besides ``beyond``."""
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
    """The rest of a comparison with a large number: doubles beyond that of its bound."""
    assert isinstance(compare.bound, int | float)
    side: Comparison = "$gt" if compare.operator in ("$gt", "$gte") else "$lt"
    return Compare(compare.field, side, double(compare.bound))
