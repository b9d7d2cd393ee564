"""The date formats that filters accept, and that every store indexes for them."""

from __future__ import annotations

import datetime
import re


def parse_date(value: object) -> datetime.datetime | None:
    """Parse an ISO 8601 or RFC 3339 date or date-time to a timezone-aware datetime; None if it is not a date.

    Without an offset the date is in UTC; without a time it is midnight. Digits beyond microseconds are
    truncated, not rounded. ``24:00`` is the next midnight, and so is the leap second ``23:59:60Z``, as in
    POSIX time. A bare ``20240131`` is a number, not a date. ``docs/filters.md`` lists the formats.
    """
    if not isinstance(value, str):
        return None
    found = _EXTENDED.fullmatch(value) or _BASIC.fullmatch(value)
    if found is None:
        return None
    part = found.groupdict(default="0")
    hour, minute, second = int(part["hour"]), int(part["minute"]), int(part["second"])
    microsecond = int(part["fraction"][:6].ljust(6, "0"))
    whole_day = hour == 24
    if whole_day and (minute or second or int(part["fraction"])):
        return None
    leap = second == 60
    try:
        instant = datetime.datetime(
            int(part["year"]),
            int(part["month"]),
            int(part["day"]),
            0 if whole_day else hour,
            minute,
            59 if leap else second,
            microsecond,
            _zone(found["offset"]),
        )
        instant += datetime.timedelta(days=whole_day, seconds=leap)
        if leap and instant.astimezone(datetime.UTC).timetz().replace(microsecond=0) != _MIDNIGHT:
            return None
    except (ValueError, OverflowError):  # the day or hour does not exist, or the year is after 9999
        return None
    return instant


def _zone(offset: str | None) -> datetime.tzinfo:
    if offset is None or offset in "Zz":
        return datetime.UTC
    hours, minutes, seconds = (int(digits or 0) for digits in _OFFSET.findall(offset)[0])
    if minutes > 59 or seconds > 59:
        raise ValueError(offset)
    ahead = datetime.timedelta(hours=hours, minutes=minutes, seconds=seconds)
    if ahead >= _TOO_FAR:
        raise ValueError(offset)
    return datetime.timezone(-ahead if offset[0] == "-" else ahead)


_TOO_FAR = datetime.timedelta(hours=23, minutes=59, seconds=1)
"""Larger offsets cannot be written as whole minutes."""

_MIDNIGHT = datetime.time(tzinfo=datetime.UTC)
_OFFSET = re.compile(r"(\d\d):?(\d\d)?:?(\d\d)?", re.ASCII)
_ZONE = r"(?: ?(?P<offset>[Zz]|[+-]\d\d(?::?\d\d(?::?\d\d)?)?)(?:\[[A-Za-z0-9_+/=-]+\])?)?"
_SECONDS = r"(?P<second>\d\d)(?:[.,](?P<fraction>\d+))?"
_EXTENDED = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
    rf"(?:[Tt ](?P<hour>\d\d):(?P<minute>\d\d)(?::{_SECONDS})?{_ZONE})?",
    re.ASCII,
)
_BASIC = re.compile(
    rf"(?P<year>\d{{4}})(?P<month>\d\d)(?P<day>\d\d)[Tt](?P<hour>\d\d)(?P<minute>\d\d)(?:{_SECONDS})?{_ZONE}",
    re.ASCII,
)
