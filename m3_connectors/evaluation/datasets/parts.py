"""Find the missing parts of a dataset that is split into several files."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

_OF = re.compile(r"(\d+)-of-(\d+)")


def missing_parts(pattern: str, names: Collection[str], parts: int | None = None) -> list[str]:
    """Return the names that match a pattern and were not found, in the order of their numbers.

    Args:
        pattern: A pattern of paths, with at most one ``*`` in place of the number of a part: ``docs-*.jsonl.gz`` (0,
            1, …) or ``test-*.parquet`` (``00000-of-00008``, …).
        names: The paths that were found and match it.
        parts: The number of parts, if the names do not contain it.
    """
    if "*" not in pattern:
        return [] if names else [pattern]
    before, _, after = pattern.partition("*")
    stars = {name.removeprefix(before).removesuffix(after) for name in names}
    needed: set[str] = set()
    for star in stars:
        if of := _OF.fullmatch(star):
            number, total = of.groups()
            needed |= {f"{part:0{len(number)}}-of-{total}" for part in range(int(total))}
    numbers = [int(star) for star in stars if star.isdecimal()]
    needed |= set(map(str, range(max([parts or 0, *(number + 1 for number in numbers)]))))
    if not needed:
        return [] if names else [pattern]
    return [f"{before}{star}{after}" for star in sorted(needed - stars, key=in_order)]


def in_folders(folders: Sequence[Path], pattern: str) -> tuple[list[Path], list[str]]:
    """The files that fit a pattern, ``docs-2`` before ``docs-10``, and their paths in their folders."""
    found = {
        path: path.relative_to(folder).as_posix()
        for folder in folders
        for path in folder.glob(pattern)
        if path.is_file()
    }
    ordered = sorted(found, key=lambda path: in_order(found[path]))
    return ordered, [found[path] for path in ordered]


def in_order(name: str) -> list[tuple[int, str]]:
    """A key by which ``docs-2`` comes before ``docs-10``."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
